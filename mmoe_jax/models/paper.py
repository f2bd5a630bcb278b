"""The seven methods that Ma et al. (2018) compare, MMoE among them.

Ma, Zhao, Yi, Chen, Hong, Chi: Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts. KDD 2018. https://doi.org/10.1145/3219819.3220007

Shape letters: B rows, T tasks, E experts, H hidden units, D inputs, O outputs of all tasks.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmoe_jax.errors import require
from mmoe_jax.layers import FeatureEmbedding, Finish, Gate, Mlp, ensemble, is_on, mixture
from mmoe_jax.models.base import BottomModel, ExpertModel
from mmoe_jax.models.parts import TuckerDense

Array = jax.Array


class SingleTask(BottomModel):
  """A network of its own for each task, embeddings included: nothing is shared.

  y_k = h^k(f^k(x^k)) (a baseline of Ma et al. 2018).
  """

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` turns dropout and batch statistics on."""
    embeddings = ensemble(FeatureEmbedding, self.tasks)(
      *self.embedding_settings(), name="embedding"
    )
    x_TxBxD = embeddings(features, train)
    bottoms_TxBxH = self.stack("bottom", self.tasks, 0, "bottoms")(x_TxBxD, train)
    return self.to_logits(bottoms_TxBxH, train)


class SharedBottom(BottomModel):
  """One network for all tasks, and a tower for each: y_k = h^k(f(x)) (equation 1).

  Caruana: Multitask Learning. Machine Learning 28, 1997; the baseline of Ma et al. 2018.
  """

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` turns dropout and batch statistics on."""
    x_BxD = self.embed(features, train)
    shared_BxH = Mlp(**self.mlp_settings("bottom"), name="bottom")(x_BxD, train)
    return self.to_logits(jnp.repeat(shared_BxH[None], self.tasks, axis=0), train)


class L2Constrained(SingleTask):
  """A network for each task, drawn together: l2_strength · sum over j < k of |theta_j − theta_k|².

  theta_k are all parameters of task k, embeddings included; not the last layers of tasks that
  have different numbers of outputs, which have no counterparts.

  Duong, Cohn, Bird, Cook: Low Resource Dependency Parsing. ACL 2015; as in Ma et al. 2018.

  Attributes:
    l2_strength: of the constraint, alpha in the paper.
  """

  l2_strength: float = 1e-3

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` turns dropout, batch statistics and the penalty on."""
    logits_BxO = super().__call__(features, train)
    if train and is_on(self.l2_strength):
      parameters = self.variables["params"]
      stacked = {name: tree for name, tree in parameters.items() if not name.startswith("head_")}
      # sum over j < k of |a_j − a_k|² = T · sum over k of |a_k − mean|².
      spread = sum(((p - p.mean(0)[None]) ** 2).sum() for p in jax.tree.leaves(stacked))
      self.sow("losses", "l2", self.l2_strength * (self.tasks * spread))
    return logits_BxO


class CrossStitch(BottomModel):
  """A network for each task, which exchange linear combinations after every hidden layer.

  h_k <- sum_j alpha_kj h_j, with alpha (T, T) for each layer (equation 1 of Misra et al.). The
  embeddings are shared.

  Misra, Shrivastava, Gupta, Hebert: Cross-stitch Networks for Multi-task Learning. CVPR 2016.

  Attributes:
    stitch_own: the initial alpha_kk; the rest of one is spread over the other tasks.
  """

  stitch_own: float = 0.9

  def check(self, kinds: Sequence[str]) -> None:
    """Raises UserError without a hidden layer to stitch."""
    super().check(kinds)
    self.require_hidden()

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` turns dropout and batch statistics on."""
    x_BxD = self.embed(features, train)
    h_TxBxH = jnp.repeat(x_BxD[None], self.tasks, axis=0)
    settings = self.mlp_settings("bottom")
    for i, units in enumerate(self.bottom_hidden):
      own = settings | {"hidden": (units,)}
      layer = ensemble(Mlp, self.tasks, 0)(**own, name=f"layer_{i}")
      stitch_TxT = self.param(f"stitch_{i}", self._init_stitch)
      h_TxBxH = jnp.einsum("kj,jbh->kbh", stitch_TxT, layer(h_TxBxH, train))
    return self.to_logits(h_TxBxH, train)

  def _init_stitch(self, key: Array) -> Array:
    del key
    if self.tasks == 1:
      return jnp.ones((1, 1))
    own = jnp.asarray(self.stitch_own, jnp.float32)
    eye_TxT = jnp.eye(self.tasks)
    return own * eye_TxT + (1 - own) / (self.tasks - 1) * (1 - eye_TxT)


class TensorFactorization(BottomModel):
  """A network for each task, whose kernels are slices of a tensor of low rank (Tucker).

  W = S ×1 U1 ×2 U2 ×3 U3 for each hidden layer, W[:, :, k] the kernel of task k; see
  parts.TuckerDense. The embeddings are shared, and biases and towers are each task's own.

  Yang, Hospedales: Deep Multi-task Representation Learning: A Tensor Factorisation Approach.
  ICLR 2017; as in Ma et al. 2018.

  Attributes:
    ranks: (r1, r2, r3), of inputs, units and tasks.
  """

  ranks: Sequence[int] = (16, 16, 2)

  def check(self, kinds: Sequence[str]) -> None:
    """Raises UserError without a hidden layer to factorize, or without three ranks."""
    super().check(kinds)
    self.require_hidden()
    require(
      len(self.ranks) == 3,
      f"config.model.ranks is {tuple(self.ranks)}; give three: of inputs, units and tasks",
    )

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` turns dropout and batch statistics on."""
    x_BxD = self.embed(features, train)
    h_TxBxH = jnp.repeat(x_BxD[None], self.tasks, axis=0)
    settings = self.mlp_settings("bottom")
    del settings["hidden"]
    for i, units in enumerate(self.bottom_hidden):
      h_TxBxH = TuckerDense(units, self.ranks, name=f"layer_{i}")(h_TxBxH)
      h_TxBxH = ensemble(Finish, self.tasks, 0)(**settings, name=f"finish_{i}")(h_TxBxH, train)
    return self.to_logits(h_TxBxH, train)


class OMoE(ExpertModel):
  """One-gate Mixture-of-Experts: MMoE with the same gate for all tasks.

  y_k = h^k(f(x)),  f(x) = sum_i g(x)_i f_i(x),  g(x) = softmax(W_g x) (equations 1 and 5).

  Ma et al. 2018, section 4.

  Attributes:
    experts: number of experts E.
    gate_hidden: hidden layers of the gate; none in the paper.
  """

  experts: int = 8
  gate_hidden: Sequence[int] = ()

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` turns dropout and batch statistics on."""
    x_BxD = self.embed(features, train)
    experts_ExBxH = self.stack("expert", self.experts, None, "experts")(x_BxD, train)
    gate_BxE = Gate(self.experts, self.gate_hidden, name="gating")(x_BxD, train)
    gates_TxBxE = jnp.repeat(gate_BxE[None], self.tasks, axis=0)
    self.sow("intermediates", "gates", gates_TxBxE)
    mixed_TxBxH = mixture(gates_TxBxE, experts_ExBxH)
    return self.to_logits(mixed_TxBxH, train)


class MMoE(ExpertModel):
  """Multi-gate Mixture-of-Experts.

  y_k = h^k(f^k(x)),  f^k(x) = sum_i g^k(x)_i f_i(x),  g^k(x) = softmax(W_gk x)
  (equations 5 to 7): shared experts f_i, and for each task k a gate g^k and a tower h^k.

  Ma et al. 2018, section 4. Two options come from others:
  Zhao et al.: Recommending What Video to Watch Next: A Multitask Ranking System. RecSys 2019
  (`gate_dropout`), and
  Aoki, Tung, Oliveira: Heterogeneous Multi-task Learning with Expert Diversity. 2021
  (`exclusivity`).

  Attributes:
    experts: number of experts E.
    gate_hidden: hidden layers of each gate; none in the paper.
    gate_dropout: rate at which a gate loses an expert of a row in training, see layers.Gate.
    exclusivity: share of the experts that belong to one task each, in turn; a task's gate weighs
      its own and the shared ones.
  """

  experts: int = 8
  gate_hidden: Sequence[int] = ()
  gate_dropout: float = 0.0
  exclusivity: float = 0.0

  def check(self, kinds: Sequence[str]) -> None:
    """Raises UserError where a task would be left without experts."""
    super().check(kinds)
    if not isinstance(self.exclusivity, jax.Array):
      require(
        round(self.exclusivity * self.experts) < self.experts or self.experts >= self.tasks,
        f"config.model.exclusivity is {self.exclusivity}, which leaves none of "
        f"{self.experts} experts to some of {self.tasks} tasks",
      )

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` turns dropout and batch statistics on."""
    x_BxD = self.embed(features, train)
    experts_ExBxH = self.stack("expert", self.experts, None, "experts")(x_BxD, train)
    gating = ensemble(Gate, self.tasks, (None, None, 0))(
      self.experts, self.gate_hidden, self.gate_dropout, name="gating"
    )
    gates_TxBxE = gating(x_BxD, train, self._visible_TxE())
    self.sow("intermediates", "gates", gates_TxBxE)
    mixed_TxBxH = mixture(gates_TxBxE, experts_ExBxH)
    return self.to_logits(mixed_TxBxH, train)

  def _visible_TxE(self) -> Array | None:
    """Which experts a task may use; None for all."""
    if not is_on(self.exclusivity):
      return None
    # Any choice will do, as experts only differ by what they are going to learn.
    expert_E = jnp.arange(self.experts)
    shared_E = expert_E >= jnp.round(self.exclusivity * self.experts)
    own_TxE = expert_E[None] % self.tasks == jnp.arange(self.tasks)[:, None]
    return shared_E[None] | own_TxE
