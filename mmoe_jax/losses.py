"""Losses: elementwise per task, with explicit weights. Pure functions that know no config.

A missing label is NaN. It gives a loss of 0 with no gradient, and weighs nothing in a mean.

Shape letters: B rows, T tasks, O outputs of all tasks side by side, C classes of a task.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from mmoe_jax.data import Task

Array = jax.Array


def binary_cross_entropy(logits: Array, labels: Array) -> Array:
  """Elementwise −y log σ(z) − (1 − y) log(1 − σ(z)), computed from logits without overflow.

  Args:
    logits: the logits z, of any shape.
    labels: y in {0, 1}, or NaN, of that shape.

  Returns:
    Nats, float32, of that shape.
  """
  y = (labels == 1).astype(jnp.float32)
  return _where_known(labels, optax.sigmoid_binary_cross_entropy(logits, y))


def softmax_cross_entropy(logits_BxC: Array, labels_B: Array) -> Array:
  """−log softmax(z)_y of each row, computed from logits without overflow.

  Args:
    logits_BxC: the logits z.
    labels_B: y, the number of the class, or NaN.

  Returns:
    Nats, (B,) float32.
  """
  y_B = jnp.nan_to_num(labels_B).astype(jnp.int32)
  loss_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxC, y_B)
  return _where_known(labels_B, loss_B)


def squared_error(predictions: Array, labels: Array) -> Array:
  """Elementwise (ŷ − y)², in the square of the label's units.

  Args:
    predictions: ŷ, of any shape.
    labels: y, or NaN, of that shape.

  Returns:
    float32, of that shape.
  """
  return _where_known(labels, jnp.square(predictions - jnp.nan_to_num(labels)))


def _where_known(labels: Array, loss: Array) -> Array:
  return jnp.where(jnp.isnan(labels), 0.0, loss)


def elementwise(tasks: Sequence[Task]) -> Callable[[Array, Array], Array]:
  """The loss of every row and task, each by its task's kind.

  Args:
    tasks: whose kinds and outputs say how the logits are laid out, side by side in this order.

  Returns:
    A pure function: (logits_BxO, labels_BxT) -> loss_BxT.
  """
  for kind, loss in _OF_ONE_OUTPUT.items():
    if all(task.kind == kind for task in tasks):
      return loss  # All tasks in one operation.

  def loss_of(logits_BxO: Array, labels_BxT: Array) -> Array:
    columns, start = [], 0
    for t, task in enumerate(tasks):
      z_BxC, y_B = logits_BxO[:, start : start + task.outputs], labels_BxT[:, t]
      start += task.outputs
      if task.kind == "multiclass":
        columns.append(softmax_cross_entropy(z_BxC, y_B))
      else:
        columns.append(_OF_ONE_OUTPUT[task.kind](z_BxC[:, 0], y_B))
    return jnp.stack(columns, axis=1)

  return loss_of


_OF_ONE_OUTPUT = {"binary": binary_cross_entropy, "regression": squared_error}


def label_weights(labels_BxT: Array, weights_B: Array) -> Array:
  """Weights (B, T): the row's weight where the task has a label, 0 where it is missing (NaN)."""
  return weights_B[:, None] * ~jnp.isnan(labels_BxT)


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
