"""Mean scores of several models: probabilities and estimates are averaged, not logits.

Probabilities are added as logarithms: those near 0 and 1 stay distinct, and none becomes infinite.

Shape letters: N rows, O outputs of all tasks.
"""

from collections.abc import Sequence

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
