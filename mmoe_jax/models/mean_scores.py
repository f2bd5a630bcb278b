"""Mean scores of several models: probabilities and estimates are averaged, not logits.

Probabilities are added as logarithms: those near 0 and 1 stay distinct, and none becomes infinite.

Shape letters: N rows, O outputs of all tasks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmoe_jax.data import Task

Array = jax.Array
Sums = tuple[Array, ...]  # For each task, what `add_scores` adds up: (N, 2), (N, classes), (N, 1).


def add_scores(tasks: Sequence[Task], sums: Sums, logits_NxO: Array) -> Sums:
  """Adds the scores of a model to the sums of others; () for none so far."""
  parts, start = [], 0
  for task in tasks:
    z_NxC = logits_NxO[:, start : start + task.outputs]
    start += task.outputs
    if task.kind == "binary":
      z_NxC = jax.nn.log_sigmoid(jnp.concatenate([z_NxC, -z_NxC], axis=1))
    elif task.kind == "multiclass":
      z_NxC = jax.nn.log_softmax(z_NxC, axis=1)
    parts.append(z_NxC)
  if not sums:
    return tuple(parts)
  return tuple(
    total + part if task.kind == "regression" else jnp.logaddexp(total, part)
    for task, total, part in zip(tasks, sums, parts, strict=True)
  )


def over_members(
  predict: Callable[[Any, Any], Array], tasks: Sequence[Task]
) -> Callable[[Any, Any], Array]:
  """Returns `predict` of several models: logits (N, O) of their mean scores.

  Args:
    predict: predict(variables, features) -> logits (N, O) of one model.
    tasks: tasks, in the order of their outputs.

  Returns:
    predict(variables, features), whose variables have a leading axis of models; they are scored one
    after another.
  """

  def predict_mean(variables_M: Any, features: Any) -> Array:
    logits_MxNxO = jax.lax.map(lambda variables: predict(variables, features), variables_M)
    sums: Sums = ()
    for m in range(len(logits_MxNxO)):
      sums = add_scores(tasks, sums, logits_MxNxO[m])
    return to_logits(tasks, sums, len(logits_MxNxO))

  return predict_mean


def to_logits(tasks: Sequence[Task], sums: Sums, count: int) -> Array:
  """Returns logits (N, O) whose scores are the means of those of `count` models."""
  parts = []
  for task, total in zip(tasks, sums, strict=True):
    if task.kind == "binary":
      parts.append(total[:, :1] - total[:, 1:])
    elif task.kind == "multiclass":
      parts.append(total)  # A softmax does not depend on a constant.
    else:
      parts.append(total / count)
  return jnp.concatenate(parts, axis=1)
