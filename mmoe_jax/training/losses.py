"""Losses: elementwise per task, with explicit weights.

A missing label is NaN. Its loss is 0, without gradient, and has weight 0 in means.

Shape letters: B rows, T tasks, O outputs of all tasks side by side, C classes of a task.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmoe_jax.data import Task

Array = jax.Array


def binary_cross_entropy(logits: Array, labels: Array) -> Array:
  """Computes −y log σ(z) − (1 − y) log(1 − σ(z)) elementwise, from logits without overflow.

  Args:
    logits: the logits z, of any shape.
    labels: y in {0, 1}, or NaN, of that shape.

  Returns:
    Nats, float32, of that shape.
  """
  y = (labels == 1).astype(jnp.float32)
  return _where_known(labels, optax.sigmoid_binary_cross_entropy(logits, y))


def softmax_cross_entropy(logits_BxC: Array, labels_B: Array) -> Array:
  """Computes −log softmax(z)_y of each row, from logits without overflow.

  Args:
    logits_BxC: the logits z.
    labels_B: y, the class number, or NaN.

  Returns:
    Nats, (B,) float32.
  """
  y_B = jnp.nan_to_num(labels_B).astype(jnp.int32)
  loss_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxC, y_B)
  return _where_known(labels_B, loss_B)


def squared_error(predictions: Array, labels: Array) -> Array:
  """Computes (ŷ − y)² elementwise, in squared units of the label.

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
  """Returns loss(logits_BxO, labels_BxT) -> loss_BxT, each task's by its kind.

  Args:
    tasks: tasks, in the order of their outputs.
  """
  for kind, loss in _OF_ONE_OUTPUT.items():
    if all(task.kind == kind for task in tasks):
      return loss  # One operation for all tasks.

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


def mean_of_members(loss: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
  """Returns the loss of members' logits (M, B, O), see batch_ensemble: the mean of their losses."""
  of_each = jax.vmap(loss, (0, None))
  return lambda logits_MxBxO, labels_BxT: of_each(logits_MxBxO, labels_BxT).mean(0)


_OF_ONE_OUTPUT = {"binary": binary_cross_entropy, "regression": squared_error}


def label_weights(labels_BxT: Array, weights_B: Array) -> Array:
  """Returns weights (B, T): the row's weight where the task has a label, 0 where it is NaN."""
  return weights_B[:, None] * ~jnp.isnan(labels_BxT)


def penalty(sown: Any, weights_B: Array, axis_name: str | None = None) -> Array:
  """Computes the sum of a model's penalties.

  Args:
    sown: tree of penalties: scalars, or (B,) with one value per row, whose weighted mean counts.
    weights_B: row weights; filler rows have weight 0.
    axis_name: device axis that rows are sharded over, if any.

  Returns:
    A scalar, whose mean over devices is the total, as in `weighted_mean`.
  """
  total = jnp.float32(0)
  for value in jax.tree.leaves(sown):
    if value.ndim:
      value = weighted_mean(value[:, None], weights_B[:, None], axis_name)[0]
    total = total + value
  return total


def weighted_mean(values_BxT: Array, weights_BxT: Array, axis_name: str | None = None) -> Array:
  """Computes the weighted mean over rows for each task.

  Under a device axis the result is this device's share, scaled so that the mean over devices is the
  mean over all rows, also if total weights differ between devices.

  Args:
    values_BxT: values.
    weights_BxT: weights, at least 0; the mean of a task without weight is 0.
    axis_name: device axis that rows are sharded over, if any.

  Returns:
    (T,) float32.
  """
  total_T = weights_BxT.sum(0)
  if axis_name is not None:
    total_T = jax.lax.pmean(total_T, axis_name)
  # Values that are not finite make the mean NaN, also in rows of weight 0.
  return (values_BxT * weights_BxT).sum(0) / jnp.where(total_T > 0, total_T, 1.0)
