"""Adaptive Information Transfer Multi-task.

Xi, Chen, Yan, Zhang, Zhu, Zhuang, Chen: Modeling the Sequential Dependence among Audience
Multi-step Conversions with Multi-task Learning in Targeted Display Advertising. KDD 2021.
https://doi.org/10.1145/3447548.3467071

Shape letters: B rows, T tasks, H hidden units, D inputs, O outputs of all tasks.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmoe_jax.models.base import BottomModel
from mmoe_jax.models.embedding import FeatureEmbedding
from mmoe_jax.models.layers import Mlp, ensemble, is_enabled, towers

Array = jax.Array


class AttentionTransfer(nn.Module):
  """Mixes the previous task's information with a task's own bottom by attention.

  z = sum over u in {p, q} of w_u h1(u),  w = softmax over u of h2(u)·h3(u) / sqrt(H), with
  p = g(z_previous) and q the task's own bottom.

  Attributes:
    activation: activation of g, which is one layer.
  """

  activation: str = "relu"

  @nn.compact
  def __call__(self, previous_BxH: Array, own_BxH: Array, train: bool) -> Array:
    """Returns z_BxH."""
    units = own_BxH.shape[1]
    information = Mlp((units,), activation=self.activation, name="information")
    u_2xBxH = jnp.stack([information(previous_BxH, train), own_BxH])
    value, query, key = (nn.Dense(units, name=n)(u_2xBxH) for n in ("value", "query", "key"))
    weights_2xB = nn.softmax((query * key).sum(-1) / math.sqrt(units), axis=0)
    return jnp.einsum("ub,ubh->bh", weights_2xB, value)


class AITM(BottomModel):
  """Chain of tasks, each of which receives information from the one before.

  z_1 = q_1,  z_k = attention of (g(z_{k-1}), q_k),  y_k = h^k(z_k), with q_k the bottom of task k
  on shared embeddings. Where each label implies the one before, a calibrator asks the same of the
  predictions: calibrator_strength · mean over rows of sum over k of max(p_k − p_{k-1}, 0).

  Attributes:
    calibrator_strength: strength of the calibrator, alpha in the paper, 0.6 there; 0 for none.
  """

  calibrator_strength: float = 0.0

  def check(self, kinds: Sequence[str]) -> None:
    """Validates that a calibrator has probabilities to compare."""
    super().check(kinds)
    if is_enabled(self.calibrator_strength):
      self.require_binary(kinds, "config.model.calibrator_strength")

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` enables dropout, batch statistics and the calibrator."""
    x_BxD = FeatureEmbedding(**self.embedding, name="embedding")(features, train)
    bottoms_TxBxH = ensemble(Mlp, self.tasks)(**self.bottom, name="bottoms")(x_BxD, train)
    z = [bottoms_TxBxH[0]]
    for k in range(1, self.tasks):
      transfer = AttentionTransfer(self.bottom_activation, name=f"transfer_{k}")
      z.append(transfer(z[-1], bottoms_TxBxH[k], train))
    logits_BxO = towers(self.outputs, self.tower, jnp.stack(z), train)
    if train and is_enabled(self.calibrator_strength):
      p_BxT = nn.sigmoid(logits_BxO)
      excess_B = nn.relu(p_BxT[:, 1:] - p_BxT[:, :-1]).sum(1)
      self.sow("losses", "calibrator", self.calibrator_strength * excess_B)
    return logits_BxO
