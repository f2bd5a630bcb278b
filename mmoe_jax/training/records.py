"""Records of training: one per epoch for metrics.jsonl, and the gates for results.json."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmoe_jax.errors import UserError, require
from mmoe_jax.evaluation import evaluate, gate_statistics
from mmoe_jax.training.learner import Assessment, task_weights
from mmoe_jax.training.step import TaskLosses

_REMEDY = "lower config.optimizer.*.learning_rate or set config.optimizer.clip_norm"


class DivergedError(UserError):
  """Training whose loss, parameters or outputs are not finite."""


def describe_epoch(
  epoch: int,
  losses: TaskLosses,
  assessment: Assessment,
  config: Any,
  tasks: Sequence[str],
) -> dict[str, Any]:
  """Returns the record of an epoch of one run: losses, task weights, metrics, gates.

  Args:
    epoch: number of the epoch.
    losses: losses of its steps, (S, T), on the host.
    assessment: measurements after the epoch, on the host.
    config: settings of the run.
    tasks: names of the tasks.

  Raises:
    DivergedError: for a loss, an output or a state that is not finite.
    UserError: for an undefined selection metric.
  """
  losses_T = mean_losses(losses, epoch, tasks)
  values, reasons = evaluate.explain_undefined(assessment.metrics)
  _require_selectable(reasons, config.select, tasks, epoch)
  if not assessment.is_finite:
    raise DivergedError(
      f"parameters or the optimizer's state are not finite after epoch {epoch}; {_REMEDY}"
    )
  weights_T = task_weights(config.loss.task_weights, len(tasks))
  record: dict[str, Any] = {"loss": float(losses_T @ weights_T)}
  for task, loss, weight in zip(tasks, losses_T, assessment.task_weights_T, strict=True):
    record[f"train/{task}/loss"] = float(loss)
    record[f"train/{task}/weight"] = float(weight)
  record |= {f"validation/{name}": value for name, value in values.items()}
  record |= {f"embedding/{k}/zero_rows": int(n) for k, n in assessment.zero_rows.items()}
  if assessment.gates is not None:
    record |= gate_statistics.scalars(assessment.gates, tasks)
    if warnings := gate_statistics.collapsed(assessment.gates, tasks):
      record["warnings"] = {"gates": warnings}
  return record


def mean_losses(
  losses: TaskLosses, epoch: int, tasks: Sequence[str], first: int = 0, steps: int = 0
) -> np.ndarray:
  """Returns the mean loss of each task over an epoch, (T,): its labelled rows by their weights.

  A task without a labelled row in the epoch has loss 0.

  Args:
    losses: losses of steps of the epoch.
    epoch: number of the epoch.
    tasks: names of the tasks.
    first: number of steps before these.
    steps: number of steps of the epoch; 0 if these are all.

  Raises:
    DivergedError: naming the first step and task whose loss is not finite.
  """
  not_finite = np.argwhere(~np.isfinite(losses.losses))
  if len(not_finite):
    step, task = not_finite[0]
    raise DivergedError(
      f"the loss of task '{tasks[task]}' is not finite in epoch {epoch}, step "
      f"{first + step + 1} of {steps or len(losses.losses)}; {_REMEDY}"
    )
  weights_SxT = np.asarray(losses.weights, np.float64)
  totals_T = weights_SxT.sum(0)
  return (losses.losses * weights_SxT).sum(0) / np.where(totals_T > 0, totals_T, 1.0)


def describe_gates(record: Mapping[str, Any], verbose: bool) -> dict[str, Any]:
  """Returns the entries of results.json about gates, from the record of the best epoch.

  Args:
    record: the record.
    verbose: whether to print the warnings, too.
  """
  warnings = record.get("warnings", {}).get("gates", [])
  if verbose:
    for line in warnings:
      print(f"warning: {line}", file=sys.stderr)
  measured = {k: v for k, v in record.items() if k.startswith(gate_statistics.PREFIX)}
  return {"gates": measured, "warnings": warnings}


def find_record(records: Sequence[Mapping[str, Any]], epoch: int) -> Mapping[str, Any]:
  """Returns the record of an epoch by its number; an empty one if there is none.

  metrics.jsonl may be shorter than the checkpoints, if it was cut or removed.
  """
  return next((record for record in records if record["epoch"] == epoch), {})


def is_out_of_patience(best_epoch: int, epoch: int, patience: int) -> bool:
  """Returns whether training stops early: `patience` epochs without a better one.

  A patience of 0 disables early stopping.
  """
  return bool(patience) and epoch - best_epoch >= patience


def _require_selectable(
  reasons: Mapping[str, str], select: Any, tasks: Sequence[str], epoch: int
) -> None:
  """Raises UserError for output that is not finite, or an undefined selection metric.

  The last step's update may be the one that diverges, which no loss shows.
  """
  for name, reason in reasons.items():
    task = name.split("/")[0]
    if reason == evaluate.NOT_FINITE:
      raise DivergedError(
        f"the output for task '{task}' is not finite after epoch {epoch}; {_REMEDY}"
      )
  for task in select.tasks or tasks:
    name = f"{task}/{select.metric}"
    require(name not in reasons, f"validation {name} is undefined: {reasons.get(name)}")
