"""Multi-gate Mixture-of-Experts, and its ancestor with one gate.

Ma, Zhao, Yi, Chen, Hong, Chi: Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts. KDD 2018. https://doi.org/10.1145/3219819.3220007

Shape letters: B rows, T tasks, E experts, H hidden units, D inputs, O outputs of all tasks.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmoe_jax.errors import require
from mmoe_jax.models.base import ExpertModel
from mmoe_jax.models.embedding import FeatureEmbedding
from mmoe_jax.models.kernels import mixture
from mmoe_jax.models.layers import Gate, Mlp, ensemble, is_enabled, towers

Array = jax.Array


class MMoE(ExpertModel):
  """Multi-gate Mixture-of-Experts: shared experts f_i; a gate g^k and a tower h^k for each task k.

  y_k = h^k(f^k(x)),  f^k(x) = sum over i of g^k(x)_i f_i(x),  g^k(x) = softmax(W_gk x)
  (equations 5 to 7).

  Attributes:
    experts: number of experts E.
    gate_hidden: hidden layers of each gate; none in the paper.
    gate_dropout: rate at which a gate loses an expert of a row in training, see layers.Gate.
    exclusivity: share of the experts that belong to one task each, in turn; a task's gate weighs
      its own and the shared experts.

  References:
    gate_dropout: Zhao et al.: Recommending What Video to Watch Next: A Multitask Ranking System.
    RecSys 2019. https://doi.org/10.1145/3298689.3346997
    exclusivity: Aoki, Tung, Oliveira: Heterogeneous Multi-task Learning with Expert Diversity.
    2021. https://arxiv.org/abs/2106.10595
  """

  experts: int = 8
  gate_hidden: Sequence[int] = ()
  gate_dropout: float = 0.0
  exclusivity: float = 0.0

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` enables dropout and batch statistics."""
    x_BxD = FeatureEmbedding(**self.embedding, name="embedding")(features, train)
    experts_ExBxH = ensemble(Mlp, self.experts)(**self.expert, name="experts")(x_BxD, train)
    gating = ensemble(Gate, self.tasks, in_axes=(None, None, 0))(
      self.experts, self.gate_hidden, self.gate_dropout, self.axis_name, name="gating"
    )
    gates_TxBxE = gating(x_BxD, train, self._visible_TxE())
    self.sow("intermediates", "gates", gates_TxBxE)
    return towers(self.outputs, self.tower, mixture(gates_TxBxE, experts_ExBxH), train)

  def check(self, kinds: Sequence[str]) -> None:
    """Validates that every task has an expert."""
    super().check(kinds)
    require(
      round(self.exclusivity * self.experts) < self.experts or self.experts >= self.tasks,
      f"config.model.exclusivity = {self.exclusivity}: must leave each of {self.tasks} tasks an "
      f"expert; decrease it, or increase config.model.experts = {self.experts}",
    )

  def _visible_TxE(self) -> Array | None:
    """Returns which experts each task may use; None for all."""
    if not is_enabled(self.exclusivity):
      return None
    # The first ones are exclusive. Any choice will do: experts differ only by what they learn.
    expert_E = jnp.arange(self.experts)
    is_shared_E = expert_E >= jnp.round(self.exclusivity * self.experts)
    is_own_TxE = expert_E[None] % self.tasks == jnp.arange(self.tasks)[:, None]
    return is_shared_E[None] | is_own_TxE


class OMoE(ExpertModel):
  """One-gate Mixture-of-Experts: MMoE with the same gate for all tasks.

  y_k = h^k(f(x)),  f(x) = sum over i of g(x)_i f_i(x),  g(x) = softmax(W_g x) (equations 1 and 5).

  Attributes:
    experts: number of experts E.
    gate_hidden: hidden layers of the gate; none in the paper.
  """

  experts: int = 8
  gate_hidden: Sequence[int] = ()

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` enables dropout and batch statistics."""
    x_BxD = FeatureEmbedding(**self.embedding, name="embedding")(features, train)
    experts_ExBxH = ensemble(Mlp, self.experts)(**self.expert, name="experts")(x_BxD, train)
    gate_BxE = Gate(self.experts, self.gate_hidden, name="gating")(x_BxD, train)
    gates_TxBxE = jnp.repeat(gate_BxE[None], self.tasks, axis=0)
    self.sow("intermediates", "gates", gates_TxBxE)
    return towers(self.outputs, self.tower, mixture(gates_TxBxE, experts_ExBxH), train)
