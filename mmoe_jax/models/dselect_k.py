"""MMoE with DSelect-k gates.

Hazimeh, Zhao, Chowdhery, Sathiamoorthy, Chen, Mazumder, Hong, Chi: DSelect-k: Differentiable
Selection in the Mixture of Experts with Applications to Multi-Task Learning. NeurIPS 2021.
https://arxiv.org/abs/2106.03760

Shape letters: B rows, T tasks, E experts, K selectors of a gate, C bits of a binary code, D inputs,
H hidden units, O outputs of all tasks.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax.errors import require
from mmoe_jax.models.base import ExpertModel
from mmoe_jax.models.embedding import FeatureEmbedding
from mmoe_jax.models.kernels import mixture
from mmoe_jax.models.layers import Mlp, ensemble, is_enabled, towers

Array = jax.Array


def smooth_step(t: Array, width: float | Array) -> Array:
  """Computes a cubic step: 0 below −width/2, 1 above width/2 (equation 3)."""
  r = jnp.clip(t / width, -0.5, 0.5)
  return 0.5 + 1.5 * r - 2 * r**3


class SelectGate(nn.Module):
  """DSelect-k gate of each row: a mixture of K selectors, each of which converges to one expert.

  g(x) = sum over k of softmax(A x)_k r(G_k x),  r(z)_e = product over bits c of S(z_c) where bit c
  of e is 1, and 1 − S(z_c) where it is 0, with S the smooth step (section 3).

  Once all S are 0 or 1, at most K experts have weight. If E is no power of two, weight can go to
  codes without an expert, and the weights sum to less than one.

  Attributes:
    experts: number of experts E.
    selectors: number of selectors K.
    smoothness: width of the smooth step, gamma in the paper.
  """

  experts: int
  selectors: int
  smoothness: float = 1.0

  @nn.compact
  def __call__(self, x_BxD: Array, train: bool) -> tuple[Array, Array]:
    """Returns the weights (B, E), and those of each selector (B, K, E)."""
    del train
    bits = (self.experts - 1).bit_length()
    codes_ExC = (np.arange(self.experts)[:, None] >> np.arange(bits)[None] & 1).astype(bool)
    # Small initial values, so that selectors start undecided, where the smooth step is steep.
    linear = lambda units, name: nn.Dense(
      units, use_bias=False, kernel_init=nn.initializers.normal(0.01), name=name
    )(x_BxD)
    z_BxKxC = linear(self.selectors * bits, "codes").reshape(-1, self.selectors, bits)
    s_BxKx1xC = smooth_step(z_BxKxC, self.smoothness)[:, :, None]
    r_BxKxE = jnp.where(codes_ExC[None, None], s_BxKx1xC, 1 - s_BxKx1xC).prod(-1)
    weights_BxK = nn.softmax(linear(self.selectors, "mixture"))
    return jnp.einsum("bk,bke->be", weights_BxK, r_BxKxE), r_BxKxE


class DSelectK(ExpertModel):
  """MMoE whose gates learn to select at most k experts for each row and task.

  y_k = h^k(sum over i of g^k(x)_i f_i(x)), with g^k as in SelectGate. Penalties, summed over tasks
  and selectors, weighted mean over rows: entropy_strength · entropy of r(z), which makes selectors
  decide; and, if E is no power of two, 1 / sum over experts of r(z), which keeps them from codes
  without an expert.

  Attributes:
    experts: number of experts E, at least two.
    selectors: number of selectors of each gate, k in the paper.
    smoothness: width of the selectors' smooth step, gamma in the paper.
    entropy_strength: strength of the entropy penalty, lambda in the paper; 0 for none.
  """

  experts: int = 8
  selectors: int = 2
  smoothness: float = 1.0
  entropy_strength: float = 1e-3

  def check(self, kinds: Sequence[str]) -> None:
    """Validates that there are experts to select from."""
    super().check(kinds)
    require(
      self.experts >= 2, f"config.model.experts = {self.experts}: must be at least 2 for selection"
    )

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` enables dropout, batch statistics and the penalties."""
    x_BxD = FeatureEmbedding(**self.embedding, name="embedding")(features, train)
    experts_ExBxH = ensemble(Mlp, self.experts)(**self.expert, name="experts")(x_BxD, train)
    gating = ensemble(SelectGate, self.tasks)(
      self.experts, self.selectors, self.smoothness, name="gating"
    )
    gates_TxBxE, r_TxBxKxE = gating(x_BxD, train)
    # Weight on codes without an expert is left out of what is reported.
    total_TxBx1 = gates_TxBxE.sum(-1, keepdims=True)
    self.sow("intermediates", "gates", gates_TxBxE / jnp.where(total_TxBx1 > 0, total_TxBx1, 1.0))
    if train:
      self._sow_penalties(r_TxBxKxE)
    return towers(self.outputs, self.tower, mixture(gates_TxBxE, experts_ExBxH), train)

  @nn.nowrap
  def _sow_penalties(self, r_TxBxKxE: Array) -> None:
    epsilon = 1e-6  # Selectors reach 0 exactly.
    if is_enabled(self.entropy_strength):
      entropy_B = -(r_TxBxKxE * jnp.log(r_TxBxKxE + epsilon)).sum((0, 2, 3))
      self.sow("losses", "entropy", self.entropy_strength * entropy_B)
    if self.experts & (self.experts - 1):
      self.sow("losses", "reachable", (1 / (r_TxBxKxE.sum(-1) + epsilon)).sum((0, 2)))
