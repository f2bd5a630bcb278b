"""Parts that one model of the zoo is built around.

Shape letters: B rows, T tasks, E experts, M inputs and N units of a layer, H hidden units, I and J
sub-networks below and above, K selectors, C bits of a binary code.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax.layers import Mlp

Array = jax.Array


class TuckerDense(nn.Module):
  """A dense layer for each task; the kernels of all are one tensor of low rank.

  W[m, n, k] = sum over a, b, c of S[a, b, c] U1[m, a] U2[n, b] U3[k, c]
  (Tucker's form; Yang and Hospedales 2017).

  Each factor starts at the scale which keeps the variance of what passes through it, so that W
  has entries of variance 1/M, like the kernel of a dense layer.

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
    # Never the whole tensor: the ranks are what makes it cheap.
    core_TxRxR = jnp.einsum("abc,tc->tab", core, u3_TxR)
    out_TxBxR = jnp.einsum("tbm,ma,tar->tbr", x_TxBxM, u1_MxR, core_TxRxR)
    return out_TxBxR @ u2_NxR.T + bias_TxN[:, None]


class AttentionTransfer(nn.Module):
  """Mixes what the task before passes on with a task's own bottom, by attention.

  z = sum over u in {p, q} of w_u h1(u),  w = softmax over u of h2(u)·h3(u) / sqrt(H), with
  p = g(z_before) and q the task's own bottom (Xi et al. 2021).

  Attributes:
    activation: of g, which is one layer.
  """

  activation: str = "relu"

  @nn.compact
  def __call__(self, before_BxH: Array, own_BxH: Array, train: bool) -> Array:
    """Returns z_BxH."""
    units = own_BxH.shape[1]
    passed_BxH = Mlp((units,), activation=self.activation, name="information")(before_BxH, train)
    u_2xBxH = jnp.stack([passed_BxH, own_BxH])
    value, query, key = (nn.Dense(units, name=n)(u_2xBxH) for n in ("value", "query", "key"))
    weights_2xB = nn.softmax((query * key).sum(-1) / math.sqrt(units), axis=0)
    return jnp.einsum("ub,ubh->bh", weights_2xB, value)


class Connections(nn.Module):
  """Linear maps from every sub-network below to every one above, with gates z that may close.

  v_j = sum over i of z_ij W_ij u_i (Ma et al. 2019). In training z is drawn, once for all rows,
  from a hard concrete distribution: a concrete one stretched to (LOW, HIGH) and clipped to [0, 1],
  so that it is 0 or 1 with probability above 0. In evaluation it is
  clip(sigmoid(log_alpha) (HIGH − LOW) + LOW, 0, 1).

  Louizos, Welling, Kingma: Learning Sparse Neural Networks through L0 Regularization. ICLR 2018,
  equations 10 to 13, with its constants.

  Attributes:
    above: number of sub-networks J above.
  """

  above: int

  TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1  # Not annotated: constants, no fields.

  @nn.compact
  def __call__(self, u_IxBxH: Array, train: bool) -> tuple[Array, Array]:
    """Returns v_JxBxH and the expected number of open connections, the L0 penalty."""
    below, _, units = u_IxBxH.shape
    init = nn.initializers.lecun_normal(in_axis=(0, 2), out_axis=3, batch_axis=(1,))
    kernel_IxJxHxH = self.param("kernel", init, (below, self.above, units, units))
    # At 0 four of five connections are open in training, half open on average.
    log_alpha_IxJ = self.param("log_alpha", nn.initializers.normal(0.01), (below, self.above))
    if train:
      noise_IxJ = jax.random.logistic(self.make_rng("dropout"), log_alpha_IxJ.shape)
      s_IxJ = nn.sigmoid((noise_IxJ + log_alpha_IxJ) / self.TEMPERATURE)
    else:
      s_IxJ = nn.sigmoid(log_alpha_IxJ)
    z_IxJ = jnp.clip(s_IxJ * (self.HIGH - self.LOW) + self.LOW, 0.0, 1.0)
    v_JxBxH = jnp.einsum("ij,ijhg,ibh->jbg", z_IxJ, kernel_IxJxHxH, u_IxBxH)
    is_open_IxJ = nn.sigmoid(log_alpha_IxJ - self.TEMPERATURE * math.log(-self.LOW / self.HIGH))
    return v_JxBxH, is_open_IxJ.sum()


def smooth_step(t: Array, width: float | Array) -> Array:
  """A cubic step: 0 below −width/2, 1 above width/2 (Hazimeh et al. 2021)."""
  r = jnp.clip(t / width, -0.5, 0.5)
  return 0.5 + 1.5 * r - 2 * r**3


class SelectGate(nn.Module):
  """The DSelect-k gate for each row: a mixture of K selectors, each of one expert in the end.

  g(x) = sum over k of softmax(A x)_k r(G_k x),  r(z)_e = product over bits c of S(z_c) where bit c
  of e is 1, and 1 − S(z_c) where it is 0, with S the smooth step (Hazimeh et al. 2021, section 3).

  Once all S are 0 or 1, at most K experts have weight. Where E is no power of two, weight can go
  to codes that stand for no expert, and the weights sum to less than one.

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
    """Returns the weights (B, E), and those of each selector alone (B, K, E)."""
    del train
    bits = (self.experts - 1).bit_length()
    codes_ExC = (np.arange(self.experts)[:, None] >> np.arange(bits)[None] & 1).astype(bool)
    # Small, so that selection starts undecided, where the smooth step is steep.
    linear = lambda units, name: nn.Dense(
      units, use_bias=False, kernel_init=nn.initializers.normal(0.01), name=name
    )(x_BxD)
    z_BxKxC = linear(self.selectors * bits, "codes").reshape(-1, self.selectors, bits)
    on_BxKx1xC = smooth_step(z_BxKxC, self.smoothness)[:, :, None]
    r_BxKxE = jnp.where(codes_ExC[None, None], on_BxKx1xC, 1 - on_BxKx1xC).prod(-1)
    weights_BxK = nn.softmax(linear(self.selectors, "mixture"))
    return jnp.einsum("bk,bke->be", weights_BxK, r_BxKxE), r_BxKxE
