"""Tables of the Census study."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmoe_jax.evaluation import statistics, tables
from studies import published

BASELINE = "mmoe"


def format_tables(rows: Sequence[Mapping[str, Any]], untuned: Sequence[str] = ()) -> str:
  """Formats an overview of both tasks for each group, and details of each task, as Markdown.

  Args:
    rows: result of paper_census.summarise, of one or more groups.
    untuned: methods that were trained with the config's settings.
  """
  rows = _with_significance(rows)
  parts = []
  for group in dict.fromkeys(r["group"] for r in rows):
    of_group = [r for r in rows if r["group"] == group]
    tasks = list(dict.fromkeys(r["task"] for r in of_group))
    parts += [f"### {group}: {' and '.join(tasks)}", _overview(of_group, tasks)]
    for task in tasks:
      parts += [f"#### {group}, {task}", _detail([r for r in of_group if r["task"] == task])]
  parts.append(_explanation(rows, untuned))
  return "\n\n".join(parts) + "\n"


def _with_significance(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Adds `significant`: the difference has an adjusted p-value below 0.05."""
  significant = is_significant([r["difference_p"] for r in rows])
  return [{**r, "significant": s} for r, s in zip(rows, significant, strict=True)]


def _overview(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> str:
  header = ["method"]
  for task in tasks:
    header += [task, f"{tables.MINUS} {BASELINE}", "paper"]
  lines = []
  for method in dict.fromkeys(r["method"] for r in rows):
    line = [method]
    for r in (r for r in rows if r["method"] == method):
      line += [_mean(r), _gap(r), tables.number(r["paper_mean"])]
    lines.append(line)
  return tables.markdown(header, lines)


def _detail(rows: Sequence[Mapping[str, Any]]) -> str:
  header = ["method", "parameters", "mean", "seeds only", "std", "at best validation", "best"]
  header += [f"{tables.MINUS} {BASELINE}", "seeds only", "paper's mean", "paper's best", "seconds"]
  lines = [
    [
      r["method"] + (f" ({r['diverged']} diverged)" if r["diverged"] else ""),
      f"{r['parameters']:,}",
      _mean(r),
      tables.half(r["half_seeds"]),
      tables.number(r["std"], 5),
      tables.number(r["at_best_validation"]),
      tables.number(r["best"]),
      _gap(r),
      tables.half(r["difference_half_seeds"]),
      tables.number(r["paper_mean"]),
      tables.number(r["paper_best"]),
      f"{r['seconds']:,.0f}",
    ]
    for r in rows
  ]
  return tables.markdown(header, lines)


def _mean(row: Mapping[str, Any]) -> str:
  return tables.number(row["mean"]) + tables.plus_minus(row["half"])


def _gap(row: Mapping[str, Any]) -> str:
  if row["difference"] is None:
    return tables.DASH
  return _signed_cell(row["difference"], row["difference_half"], row["significant"])


def difference_cell(gap: statistics.Estimate, significant: bool) -> str:
  """Formats a difference with its interval over seeds and rows, bold if it is significant."""
  return _signed_cell(gap.value, gap.half, significant)


def _signed_cell(value: float, half: float | None, significant: bool) -> str:
  text = tables.signed(value, 5) + tables.plus_minus(half, 5)
  return f"**{text}**" if significant else text


def is_significant(p_values: Sequence[float]) -> list[bool]:
  """Returns which of several comparisons differ at the level 0.05 over all, by Holm's correction.

  A comparison without a p-value does not count.
  """
  adjusted = iter(statistics.holm([p for p in p_values if p is not None]))
  alpha = 1 - statistics.LEVEL
  return [p is not None and bool(next(adjusted) < alpha) for p in p_values]


def _explanation(rows: Sequence[Mapping[str, Any]], untuned: Sequence[str]) -> str:
  seeds = sorted({r["seeds"] + r["diverged"] for r in rows})
  comparisons = sum(r["difference_p"] is not None for r in rows)
  text = (
    f"Test AUC of {' or '.join(map(str, seeds))} seeds per method: the mean over seeds, and the "
    "half width of its 95 % interval over seeds and test rows (DeLong's variance over rows); "
    "`seeds only` is the interval for fixed rows. "
    f"`{tables.MINUS} {BASELINE}` is the difference to {BASELINE}, paired by seed and by row, "
    "with the same two intervals; it is bold if it differs from zero at the level 0.05 over all "
    f"{comparisons} differences (Holm's correction; seeds and rows). `at best validation` "
    "is the seed with the best validation metric, `best` the best of all. The paper's columns: "
    f"{published.MA_2018}, on another split, 400 trainings."
  )
  if untuned:
    text += (
      f" Trained with the settings of configs/census.py, without search: {', '.join(untuned)}."
    )
  return text
