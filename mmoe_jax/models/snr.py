"""Sub-Network Routing with transformations.

Ma, Zhao, Chen, Li, Hong, Chi: SNR: Sub-Network Routing for Flexible Parameter Sharing in Multi-Task
Learning. AAAI 2019. https://doi.org/10.1609/aaai.v33i01.3301216

Shape letters: B rows, T tasks, D inputs, H and G hidden units, O outputs of all tasks, I and J
sub-networks of the level below and above.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmoe_jax.models.base import ExpertModel
from mmoe_jax.models.embedding import FeatureEmbedding
from mmoe_jax.models.layers import Mlp, ensemble, is_enabled, towers

Array = jax.Array


class Connections(nn.Module):
  """Linear maps from each sub-network below to each one above, with gates z that can close.

  v_j = sum over i of z_ij W_ij u_i. In training z is drawn, once for all rows of all devices, from
  a hard concrete distribution: a concrete distribution stretched to (LOW, HIGH) and clipped to
  [0, 1], so that it is 0 or 1 with positive probability. In evaluation z is
  clip(sigmoid(log_alpha) (HIGH − LOW) + LOW, 0, 1).

  Attributes:
    above: number of sub-networks J above.

  References:
    Louizos, Welling, Kingma: Learning Sparse Neural Networks through L0 Regularization. ICLR 2018,
    equations 10 to 13, with its constants. https://arxiv.org/abs/1712.01312
  """

  above: int

  TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1  # Without annotation, so that they are not fields.

  @nn.compact
  def __call__(self, u_IxBxH: Array, train: bool) -> tuple[Array, Array]:
    """Returns v_JxBxH and the expected number of open connections, the L0 penalty."""
    below, _, units = u_IxBxH.shape
    init = nn.initializers.lecun_normal(in_axis=(0, 2), out_axis=3, batch_axis=(1,))
    kernel_IxJxHxG = self.param("kernel", init, (below, self.above, units, units))
    # At 0, about 4 of 5 connections are at least partly open in training.
    log_alpha_IxJ = self.param("log_alpha", nn.initializers.normal(0.01), (below, self.above))
    if train:
      noise_IxJ = jax.random.logistic(self.make_rng("shared"), log_alpha_IxJ.shape)
      s_IxJ = nn.sigmoid((noise_IxJ + log_alpha_IxJ) / self.TEMPERATURE)
    else:
      s_IxJ = nn.sigmoid(log_alpha_IxJ)
    z_IxJ = jnp.clip(s_IxJ * (self.HIGH - self.LOW) + self.LOW, 0.0, 1.0)
    # Two steps: converters to ONNX know no product of three operands.
    gated_IxJxHxG = z_IxJ[:, :, None, None] * kernel_IxJxHxG
    v_JxBxG = jnp.einsum("ijhg,ibh->jbg", gated_IxJxHxG, u_IxBxH)
    is_open_IxJ = nn.sigmoid(log_alpha_IxJ - self.TEMPERATURE * math.log(-self.LOW / self.HIGH))
    return v_JxBxG, is_open_IxJ.sum()


class SNRTrans(ExpertModel):
  """Two levels of sub-networks with sparse connections between them and to the towers.

  v_j = sum over i of z_ij W_ij u_i, from the first level to the second and from there to the
  towers; z_ij learns to be 0 or 1, see Connections, under the penalty
  l0_strength · expected number of open connections.

  Attributes:
    experts: number of sub-networks of each level; the expert_* settings are theirs.
    l0_strength: strength of the penalty, lambda in the paper.
  """

  experts: int = 4
  l0_strength: float = 1e-4

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` enables dropout, batch statistics, noise and the penalty."""
    x_BxD = FeatureEmbedding(**self.embedding, name="embedding")(features, train)
    u_JxBxH = ensemble(Mlp, self.experts)(**self.expert, name="experts_1")(x_BxD, train)
    v_JxBxH, open_1 = Connections(self.experts, name="connections_1")(u_JxBxH, train)
    second = ensemble(Mlp, self.experts, in_axes=0)(**self.expert, name="experts_2")
    v_TxBxH, open_2 = Connections(self.tasks, name="connections_2")(second(v_JxBxH, train), train)
    if train and is_enabled(self.l0_strength):
      self.sow("losses", "l0", self.l0_strength * (open_1 + open_2))
    return towers(self.outputs, self.tower, v_TxBxH, train)
