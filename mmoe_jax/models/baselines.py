"""Baselines of Ma et al. (2018): the methods that MMoE is compared with, except OMoE (mmoe.py).

Shape letters: B rows, T tasks, H hidden units, D inputs, M inputs and N units of a layer, O outputs
of all tasks.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmoe_jax.errors import require
from mmoe_jax.models.base import BottomModel
from mmoe_jax.models.embedding import FeatureEmbedding
from mmoe_jax.models.layers import Mlp, NormActDropout, ensemble, is_enabled, towers

Array = jax.Array


class SingleTask(BottomModel):
  """Separate network for each task, embeddings included: y_k = h^k(f^k(x^k)).

  References:
    A baseline of Ma et al. 2018.
  """

  dense_tables = "each task has separate tables"

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` enables dropout and batch statistics."""
    embeddings = ensemble(FeatureEmbedding, self.tasks)(**self.embedding, name="embedding")
    x_TxBxD = embeddings(features, train)
    bottoms = ensemble(Mlp, self.tasks, in_axes=0)(**self.bottom, name="bottoms")
    return towers(self.outputs, self.tower, bottoms(x_TxBxD, train), train)


class SharedBottom(BottomModel):
  """One network for all tasks, and a tower for each: y_k = h^k(f(x)) (equation 1).

  References:
    Caruana: Multitask Learning. Machine Learning 28, 1997; the baseline of Ma et al. 2018.
  """

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` enables dropout and batch statistics."""
    x_BxD = FeatureEmbedding(**self.embedding, name="embedding")(features, train)
    shared_BxH = Mlp(**self.bottom, name="bottom")(x_BxD, train)
    shared_TxBxH = jnp.repeat(shared_BxH[None], self.tasks, axis=0)
    return towers(self.outputs, self.tower, shared_TxBxH, train)


class L2Constrained(SingleTask):
  """Separate networks whose parameters attract each other.

  The penalty is l2_strength · sum over j < k of |theta_j − theta_k|², theta_k all parameters of
  task k, embeddings included. The last layers of tasks with different numbers of outputs have no
  counterparts and are left out.

  Attributes:
    l2_strength: strength of the constraint, alpha in the paper.

  References:
    Duong, Cohn, Bird, Cook: Low Resource Dependency Parsing: Cross-lingual Parameter Sharing in a
    Neural Network Parser. ACL 2015; as in Ma et al. 2018.
  """

  dense_tables = "its penalty depends on every row of the tables"

  l2_strength: float = 1e-3

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` enables dropout, batch statistics and the penalty."""
    logits_BxO = super().__call__(features, train)
    if train and is_enabled(self.l2_strength):
      params = self.variables["params"]
      stacked = {name: tree for name, tree in params.items() if not name.startswith("head_")}
      # sum over j < k of |a_j − a_k|² = T · sum over k of |a_k − mean|².
      distance = sum(((p - p.mean(0)[None]) ** 2).sum() for p in jax.tree.leaves(stacked))
      self.sow("losses", "l2", self.l2_strength * (self.tasks * distance))
    return logits_BxO


class CrossStitch(BottomModel):
  """Network per task; after each hidden layer, units are mixed linearly across tasks.

  h_k ← sum over j of alpha_kj h_j, with alpha (T, T) per layer (equation 1). Embeddings are shared.

  Attributes:
    stitch_own: initial alpha_kk; the other tasks share the rest of one.

  References:
    Misra, Shrivastava, Gupta, Hebert: Cross-stitch Networks for Multi-task Learning. CVPR 2016.
    https://arxiv.org/abs/1604.03539
  """

  stitch_own: float = 0.9

  def check(self, kinds: Sequence[str]) -> None:
    """Validates that there is a hidden layer."""
    super().check(kinds)
    self.require_hidden()

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` enables dropout and batch statistics."""
    x_BxD = FeatureEmbedding(**self.embedding, name="embedding")(features, train)
    h_TxBxH = jnp.repeat(x_BxD[None], self.tasks, axis=0)
    for i, units in enumerate(self.bottom_hidden):
      settings = self.bottom | {"hidden": (units,)}
      layer = ensemble(Mlp, self.tasks, in_axes=0)(**settings, name=f"layer_{i}")
      stitch_TxT = self.param(f"stitch_{i}", self._init_stitch)
      h_TxBxH = jnp.einsum("kj,jbh->kbh", stitch_TxT, layer(h_TxBxH, train))
    return towers(self.outputs, self.tower, h_TxBxH, train)

  def _init_stitch(self, key: Array) -> Array:
    del key
    if self.tasks == 1:
      return jnp.ones((1, 1))
    own = jnp.asarray(self.stitch_own, jnp.float32)
    eye_TxT = jnp.eye(self.tasks)
    return own * eye_TxT + (1 - own) / (self.tasks - 1) * (1 - eye_TxT)


class TuckerDense(nn.Module):
  """Dense layer per task, whose kernels are slices of one tensor of low rank (Tucker's form).

  W[m, n, k] = sum over a, b, c of S[a, b, c] U1[m, a] U2[n, b] U3[k, c].

  Each factor starts at the scale that preserves variance, so that W has entries of variance 1/M,
  like the kernel of a dense layer.

  Attributes:
    units: number of units N.
    ranks: (r1, r2, r3), of inputs, units and tasks.
  """

  units: int
  ranks: Sequence[int]

  @nn.compact
  def __call__(self, x_TxBxM: Array) -> Array:
    """Maps each task's x to x W[:, :, k] + b_k; returns (T, B, N)."""
    tasks, _, inputs = x_TxBxM.shape
    r1, r2, r3 = self.ranks
    normal = lambda fan_in: nn.initializers.normal(fan_in**-0.5)
    core = self.param("kernel_core", normal(r1), (r1, r2, r3))
    u1_MxR = self.param("kernel_inputs", normal(inputs), (inputs, r1))
    u2_NxR = self.param("kernel_units", normal(r2), (self.units, r2))
    u3_TxR = self.param("kernel_tasks", normal(r3), (tasks, r3))
    bias_TxN = self.param("bias", nn.initializers.zeros, (tasks, self.units))
    # The full tensor is never formed: the low rank keeps the layer cheap.
    core_TxRxR = jnp.einsum("abc,tc->tab", core, u3_TxR)
    out_TxBxR = jnp.einsum("tbm,ma,tar->tbr", x_TxBxM, u1_MxR, core_TxRxR)
    return out_TxBxR @ u2_NxR.T + bias_TxN[:, None]


class TensorFactorization(BottomModel):
  """Network per task, whose kernels are slices of tensors of low rank.

  W = S ×1 U1 ×2 U2 ×3 U3 for each hidden layer, W[:, :, k] the kernel of task k; see TuckerDense.
  Embeddings are shared; biases and towers are separate.

  Attributes:
    ranks: (r1, r2, r3), of inputs, units and tasks.

  References:
    Yang, Hospedales: Deep Multi-task Representation Learning: A Tensor Factorisation Approach.
    ICLR 2017. https://arxiv.org/abs/1605.06391; as in Ma et al. 2018.
  """

  ranks: Sequence[int] = (16, 16, 2)

  def check(self, kinds: Sequence[str]) -> None:
    """Validates that there is a hidden layer, and three ranks."""
    super().check(kinds)
    self.require_hidden()
    require(
      len(self.ranks) == 3,
      f"config.model.ranks = {tuple(self.ranks)}: must be three, of inputs, units and tasks",
    )

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` enables dropout and batch statistics."""
    x_BxD = FeatureEmbedding(**self.embedding, name="embedding")(features, train)
    h_TxBxH = jnp.repeat(x_BxD[None], self.tasks, axis=0)
    settings = {name: value for name, value in self.bottom.items() if name != "hidden"}
    for i, units in enumerate(self.bottom_hidden):
      h_TxBxH = TuckerDense(units, self.ranks, name=f"layer_{i}")(h_TxBxH)
      finish = ensemble(NormActDropout, self.tasks, in_axes=0)(**settings, name=f"finish_{i}")
      h_TxBxH = finish(h_TxBxH, train)
    return towers(self.outputs, self.tower, h_TxBxH, train)
