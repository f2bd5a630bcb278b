"""Text tables of results.json, for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmoe_jax.data import SPLITS

_MAIN = ("auc", "accuracy", "r2")  # Metrics that are also shown on slices.
_METRICS = ("auc", "auc_weighted", "accuracy", "log_loss", "pcoc", "mse", "mae", "r2")
_POPULATION_METRICS = ("auc", "accuracy", "mse")


def format_results(results: Mapping[str, Any], workdir: str) -> str:
  """Formats the results of a run.

  Args:
    results: content of results.json.
    workdir: work directory, for the last line.

  Returns:
    One line per task and metric with a column per split, then the course of training.
  """
  names = list(results["test"])
  tasks = list(dict.fromkeys(name.split("/")[0] for name in names))
  metrics_of = {
    task: _shown([n.split("/", 1)[1] for n in names if n.startswith(f"{task}/")]) for task in tasks
  }
  width = max(18, *(len(m) + 2 for metrics in metrics_of.values() for m in metrics))
  lines = [f"{'':<18}{'':<{width}}" + "".join(f"{split:>12}" for split in SPLITS)]
  for task in tasks:
    for metric in metrics_of[task]:
      values = [results[split][f"{task}/{metric}"] for split in SPLITS]
      cells = "".join(f"{'undefined' if v is None else format(v, '.4f'):>12}" for v in values)
      lines.append(f"{task:<18}{metric:<{width}}{cells}")
  # A note on a split names the rows that it was measured on; others explain undefined metrics.
  for name, note in results["notes"].items():
    lines.append(f"{name}: {note}" if name in SPLITS else f"undefined: {name}: {note}")
  rate, rows = results["rows_per_second"], results["train_rows"]
  speed = f"{rows / rate:.2f} s per epoch, {rate:,.0f} rows/s, " if rate else ""
  lines.append(
    f"best epoch {results['best_epoch']} of {results['epochs']}, {speed}"
    f"{results['wall_seconds']:.1f} s in total, {results['parameters']:,} parameters"
  )
  lines.append(f"work directory: {workdir}")
  return "\n".join(lines)


def _shown(names: Sequence[str]) -> list[str]:
  """Returns the metrics of a task that the table shows, each main one before its slices."""
  found = []
  for metric in _METRICS:
    if metric in names:
      found.append(metric)
    if metric in _MAIN:
      found += [n for n in names if n.startswith(f"{metric}_") and not _is_weighted(n, metric)]
  return found


def _is_weighted(name: str, metric: str) -> bool:
  return name.startswith(f"{metric}_weighted")


def format_population(results: Mapping[str, Any], workdir: str) -> str:
  """Formats the results of a population: one line per member, then mean and standard deviation.

  Args:
    results: content of results.json.
    workdir: work directory, for the last line.
  """
  members = results["members"]
  converged = [member for member in members if "error" not in member]
  splits = [s for s in ("validation", "test") if converged and s in converged[0]]
  metrics = list(converged[0][splits[0]]) if splits else []
  names = [name for name in metrics if name.split("/")[1] in _POPULATION_METRICS]
  keys = list(members[0]["member"])
  short_keys = [".".join(key.split(".")[-2:]) for key in keys]
  width = max([len(key) for key in short_keys] + [12]) + 2
  head = [f"{'':>7}", *(f"{key:>{width}}" for key in short_keys), f"{'best/epochs':>13}"]
  columns = [f"{split} {name}" for split in splits for name in names]
  lines = ["".join([*head, *(f"{c:>{len(c) + 2}}" for c in columns)])]
  for i, member in enumerate(members):
    cells = [f"{i:>7}", *(f"{_format_value(member['member'][k]):>{width}}" for k in keys)]
    cells.append(f"{member['best_epoch']}/{member['epochs']}".rjust(13))
    if "error" in member:
      lines.append("".join(cells) + f"  {member['error']}")
      continue
    values = [member[split][name] for split in splits for name in names]
    lines.append("".join(cells) + _format_metrics(values, columns))
  if len(converged) > 1:
    for label, statistic in (("mean", np.mean), ("std", np.std)):
      values = [
        float(statistic([m[split][name] for m in converged])) for split in splits for name in names
      ]
      indent = " " * (width * len(keys) + 13)
      lines.append(f"{label:>7}{indent}{_format_metrics(values, columns)}")
  if mean := results.get("mean"):
    values = [mean[split][name] for split in splits for name in names]
    lines.append(f"{'of mean scores':<{width * len(keys) + 20}}{_format_metrics(values, columns)}")
  lines.append(
    f"{len(members)} members, {results['rows_per_second']:,.0f} rows/s in total, "
    f"{results['wall_seconds']:.1f} s in total, {members[0]['parameters']:,} parameters each"
  )
  lines.append(f"work directory: {workdir}")
  return "\n".join(lines)


def _format_metrics(values: Sequence[float | None], columns: Sequence[str]) -> str:
  texts = ["undefined" if v is None else f"{v:.4f}" for v in values]
  return "".join(f"{t:>{len(c) + 2}}" for t, c in zip(texts, columns, strict=True))


def _format_value(value: Any) -> str:
  return format(value, ".4g") if isinstance(value, float) else str(value)
