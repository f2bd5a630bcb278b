"""Tables of task weightings: differences to equal static weights, and times per epoch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.records import Record
from mmoe_jax.evaluation import statistics
from mmoe_jax.evaluation.tables import markdown
from studies import paired

BASELINE = "static_equal"
_MINUS = "\N{MINUS SIGN}"


def compare(
  measured: Mapping[str, tuple[Sequence[Mapping[str, Any]], Mapping[str, Any]]],
) -> list[dict[str, Any]]:
  """Computes the mean test AUC of each weighting and task, and its difference to BASELINE.

  Args:
    measured: group -> its runs, and figure -> covariances over rows, as in a result file.

  Returns:
    A row per group, task and weighting: `auc` and `difference` are statistics.Estimate; `p` is
    adjusted for all differences by Holm's method. Both are None for BASELINE.
  """
  found: list[dict[str, Any]] = []
  for group, (runs, rows) in measured.items():
    for figure, covariances in rows.items():
      for method in covariances["methods"]:
        row = {"group": group, "task": figure.split("/")[1], "method": method}
        row["auc"] = paired.estimate(runs, figure, covariances, method)
        row["seeds"] = sum(r["method"] == method and r.get(figure) is not None for r in runs)
        row["difference"] = row["p"] = None
        if method != BASELINE:
          row["difference"] = paired.estimate(runs, figure, covariances, method, BASELINE)
        found.append(row)
  compared = [row for row in found if row["difference"] is not None]
  adjusted = statistics.holm([row["difference"].p for row in compared]) if compared else ()
  for row, p in zip(compared, adjusted, strict=True):
    row["p"] = float(p)
  return found


def format_comparison(
  measured: Mapping[str, tuple[Sequence[Mapping[str, Any]], Mapping[str, Any]]],
) -> str:
  """Formats a table per group; differences that are significant after Holm's method are bold."""
  rows, parts = compare(measured), []
  for group in measured:
    own = [row for row in rows if row["group"] == group]
    tasks = list(dict.fromkeys(row["task"] for row in own))
    methods = list(dict.fromkeys(row["method"] for row in own))
    by = {(row["task"], row["method"]): row for row in own}
    header = [group.replace("group", "group ")]
    for task in tasks:
      header += [task, f"{_MINUS} static_equal"]
    lines = []
    for method in methods:
      cells = [method]
      for task in tasks:
        row = by[task, method]
        cells += [f"{row['auc'].value:.4f}", format_difference(row["difference"], row["p"])]
      lines.append(cells)
    parts.append(markdown(header, lines))
  return "\n\n".join(parts)


def format_difference(difference: statistics.Estimate | None, p: float | None) -> str:
  """Formats a difference with its interval, bold at an adjusted p-value below 0.05."""
  if difference is None:
    return ""
  half = "" if difference.half is None else f" ± {difference.half:.5f}"
  text = f"{difference.value:+.5f}".replace("-", _MINUS) + half
  return f"**{text}**" if p is not None and p < 0.05 else text


def format_times(runs: Sequence[Mapping[str, Any]]) -> str:
  """Formats the median time per epoch of each weighting, relative to BASELINE in the same round."""
  found: dict[tuple[str, str], list[tuple[float, float]]] = {}
  for run in runs:
    times = (run["seconds"], run["cpu_seconds"])
    found.setdefault((run["group"], run["method"]), []).append(times)
  lines = []
  for (group, method), times in found.items():
    ratios_Rx2 = np.divide(times, found[group, BASELINE])
    cells = [group, method, f"{np.median(times, axis=0)[0]:.2f}"]
    for own_R in ratios_Rx2.T:
      cells.append(f"{np.median(own_R):.2f} ({own_R.min():.2f} to {own_R.max():.2f})")
    lines.append(cells)
  header = ["group", "weighting", "s per epoch", "relative to static", "processor time, relative"]
  return markdown(header, lines)


def format_records(*found: Record) -> str:
  """Formats the result files task_weightings/GROUP as `format_comparison` does."""
  return format_comparison({r.settings["group"]: (r.runs, r.rows) for r in found})
