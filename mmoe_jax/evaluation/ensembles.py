"""Mean scores of several models: probabilities and estimates are averaged, not logits.

Shape letters: N rows, O outputs of all tasks.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mmoe_jax.data import Task

Array = jax.Array


def to_scores(tasks: Sequence[Task], logits_NxO: Array) -> Array:
  """Returns scores (N, O): probabilities of label 1 or of classes, estimates of regressions."""
  parts = []
  for task, z_NxC in _by_task(tasks, logits_NxO):
    activation = {"binary": jax.nn.sigmoid, "multiclass": jax.nn.softmax}.get(task.kind)
    parts.append(activation(z_NxC) if activation else z_NxC)
  return jnp.concatenate(parts, axis=1)


def to_logits(tasks: Sequence[Task], scores_NxO: Array) -> Array:
  """Returns logits (N, O) whose scores are these: the inverse of `to_scores`."""
  parts = []
  for task, p_NxC in _by_task(tasks, scores_NxO):
    if task.kind == "binary":
      p_NxC = jnp.log(p_NxC) - jnp.log1p(-p_NxC)
    elif task.kind == "multiclass":
      p_NxC = jnp.log(p_NxC)
    parts.append(p_NxC)
  return jnp.concatenate(parts, axis=1)


def _by_task(tasks: Sequence[Task], outputs_NxO: Array) -> list[tuple[Task, Array]]:
  found, start = [], 0
  for task in tasks:
    found.append((task, outputs_NxO[:, start : start + task.outputs]))
    start += task.outputs
  return found
