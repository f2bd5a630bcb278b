"""Focal loss of binary tasks; docs/adding_a_loss.md has what it must do, and where it goes."""

import jax
import jax.numpy as jnp

from mmoe_jax.training.losses import binary_cross_entropy

GAMMA = 2.0


def focal_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Computes −(1 − p_y)^γ log p_y elementwise, p_y the probability of the label.

  Args:
    logits: the logits, of any shape.
    labels: 0, 1 or NaN, of that shape; NaN has loss 0 and no gradient.

  References:
    Lin, Goyal, Girshick, He, Dollár: Focal Loss for Dense Object Detection. ICCV 2017.
    https://arxiv.org/abs/1708.02002
  """
  loss = binary_cross_entropy(logits, labels)  # −log p_y.
  return (-jnp.expm1(-loss)) ** GAMMA * loss
