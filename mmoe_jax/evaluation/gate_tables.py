"""Markdown report on the gates of a run, from measurements of prediction/gate_measurements.py."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmoe_jax.evaluation.gate_statistics import PREFIX, similarity_name
from mmoe_jax.evaluation.tables import markdown


def format_gates(report: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
  """Formats the measurements of a run's gates.

  Args:
    report: result of gate_measurements.measure_gates.
    plots: file names of plots to embed at the end.
  """
  tasks, experts, whole = report["tasks"], range(report["experts"]), report["all"]
  member = "" if report.get("member") is None else f", member {report['member']}"
  sections = [
    f"# Gates of {report['workdir']}{member}",
    f"Model `{report['model']}`, best variables, {report['rows']:,} {report['split']} rows.",
    "\n".join([f"**Warning:** {line}." for line in report["warnings"]]) or "No gate has collapsed.",
    _entropy_table(report),
    "Entropy is in nats. Effective experts: the number of equally weighted experts with the\n"
    "entropy of the mean gate. In use: experts of a mean weight above "
    f"{report['thresholds']['in_use']:.4g}.",
    "## Mean gate weights",
    markdown(
      ["expert", *map(str, experts)],
      [[task, *(f"{w:.3f}" for w in mean_gate(whole, task, experts))] for task in tasks],
    ),
  ]
  if len(tasks) > 1:
    sections += [
      "## Similarity of two tasks' gates",
      "One minus the total variation distance of the two gates, averaged over rows.",
      markdown(
        ["task", *tasks], [[a, *(f"{similarity(whole, a, b):.3f}" for b in tasks)] for a in tasks]
      ),
    ]
  for column, groups in report["by"].items():
    sections += [f"## By {column}", _groups_table(column, groups, tasks, experts)]
  sections += ["## By epoch, on validation rows"]
  if report["by_epoch"]:
    sections += [_groups_table("epoch", report["by_epoch"], tasks, experts)]
  else:
    sections += ["metrics.jsonl of this run contains no gates."]
  if plots:
    sections += ["## Plots", "\n".join(f"![{name}]({name})" for name in plots)]
  return "\n\n".join(sections) + "\n"


def mean_gate(measures: Mapping[str, Any], task: str, experts: Sequence[int]) -> np.ndarray:
  """Returns the mean gate weights of a task (E,), from measures by name."""
  return np.array([measures[f"{PREFIX}{task}/expert_{e}"] for e in experts])


def similarity(measures: Mapping[str, Any], a: str, b: str) -> float:
  """Returns the similarity of two tasks' gates, from measures by name."""
  names = (similarity_name(a, b), similarity_name(b, a))
  return 1.0 if a == b else next(measures[name] for name in names if name in measures)


def mean_similarity(measures: Mapping[str, Any], tasks: Sequence[str]) -> float:
  """Returns the mean similarity over all pairs of tasks, from measures by name."""
  return float(np.mean([similarity(measures, a, b) for a, b in itertools.combinations(tasks, 2)]))


def _entropy_table(report: Mapping[str, Any]) -> str:
  rows = []
  for task in report["tasks"]:
    entropy, mean_entropy, effective, used = (
      report["all"][f"{PREFIX}{task}/{name}"]
      for name in ("entropy", "mean_entropy", "effective_experts", "used_experts")
    )
    of_all = f"{effective:.2f} of {report['experts']}"
    rows.append([task, f"{entropy:.3f}", f"{mean_entropy:.3f}", of_all, f"{used:.0f}"])
  header = ["task", "entropy of a row's gate", "of the mean gate", "effective experts", "in use"]
  return markdown(header, rows)


def _groups_table(
  column: str, groups: Sequence[Mapping[str, Any]], tasks: Sequence[str], experts: Sequence[int]
) -> str:
  """Formats one row per value of a column, or per epoch, which has no row count."""
  has_rows = "rows" in groups[0]
  header = [column, "rows"] if has_rows else [column]
  for task in tasks:
    header += [f"{task}: effective experts", "largest weight"]
  header += ["similarity"] if len(tasks) > 1 else []
  rows = []
  for group in groups:
    cells = [group["value"], f"{group['rows']:,}"] if has_rows else [str(group["epoch"])]
    for task in tasks:
      mean_E = mean_gate(group, task, experts)
      largest = mean_E.argmax()
      effective = group[f"{PREFIX}{task}/effective_experts"]
      cells += [f"{effective:.2f}", f"expert {largest} ({mean_E[largest]:.2f})"]
    cells += [f"{mean_similarity(group, tasks):.3f}"] if len(tasks) > 1 else []
    rows.append(cells)
  return markdown(header, rows)
