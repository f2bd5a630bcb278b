"""Losses: elementwise per task, with explicit weights. Pure functions that know no config.

Shape letters: B rows, T tasks.
"""

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def binary_cross_entropy(logits_BxT: Array, labels_BxT: Array) -> Array:
  """Elementwise −y log σ(z) − (1 − y) log(1 − σ(z)), computed from logits without overflow.

  Args:
    logits_BxT: the logits z.
    labels_BxT: y in {0, 1}; anything else (a missing label) gives a finite value that the caller
      weighs with zero.

  Returns:
    Nats, (B, T) float32.
  """
  return optax.sigmoid_binary_cross_entropy(logits_BxT, (labels_BxT == 1).astype(jnp.float32))


def label_weights(labels_BxT: Array, weights_B: Array) -> Array:
  """Weights (B, T): the row's weight where the task has a label, 0 where it is missing (< 0)."""
  return weights_B[:, None] * (labels_BxT >= 0)


def weighted_mean(values_BxT: Array, weights_BxT: Array, axis_name: str | None = None) -> Array:
  """Weighted mean over rows for each task.

  Under a device axis it returns this device's share, scaled so that the mean over devices is the
  mean over all rows, also when devices hold different total weights.

  Args:
    values_BxT: what to average.
    weights_BxT: weights of at least 0; a task whose weights are all 0 gives 0.
    axis_name: the device axis that rows are spread over, if any.

  Returns:
    (T,) float32.
  """
  total_T = weights_BxT.sum(0)
  if axis_name is not None:
    total_T = jax.lax.pmean(total_T, axis_name)
  # A non-finite value must stay visible, also in a row of weight 0 (0 · inf is NaN).
  return (values_BxT * weights_BxT).sum(0) / jnp.where(total_T > 0, total_T, 1.0)
