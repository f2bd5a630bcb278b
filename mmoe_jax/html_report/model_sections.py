"""Sections of the page on the model: effects of columns, gates, the what-if."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmoe_jax.evaluation.gate_statistics import PREFIX
from mmoe_jax.evaluation.gate_tables import mean_gate, mean_similarity, similarity
from mmoe_jax.html_report import charts, numbers, scales
from mmoe_jax.html_report.charts import Bar, Series
from mmoe_jax.html_report.facts import ColumnEffects, RunFacts, main_metric
from mmoe_jax.html_report.markup import (
  Html,
  details,
  element,
  figure,
  join,
  legend,
  paragraph,
  script_data,
  section,
  table,
)
from mmoe_jax.html_report.what_if import WhatIf

_MOST_BARS = 15
_MOST_VALUES = 14  # Of a column, in a chart.


def columns_section(facts: RunFacts) -> Html:
  """Returns permutation importance and the cost of unknown values."""
  effects = facts.effects
  assert effects is not None
  figures = []
  shown = _with_effects(effects)
  for t in shown:
    task = facts.tasks[t]
    metric = numbers.metric_name(main_metric(task))
    worse = "rises" if main_metric(task) == "log_loss" else "falls"
    figures.append(
      _effect_chart(
        f"{task.name}: permuted columns",
        f"How much the {metric} {worse} if a column's values are shuffled between rows. Whiskers: "
        "one standard deviation between shuffles.",
        effects,
        effects.permuted[:, t],
        effects.deviation[:, t],
        t,
      )
    )
    figures.append(
      _effect_chart(
        f"{task.name}: unknown columns",
        f"How much the {metric} {worse} if no row has a known value there.",
        effects,
        effects.unknown[:, t],
        np.zeros(len(effects.names)),
        t,
      )
    )
  intro = (
    f"Measured on {effects.rows:,} test rows, with {effects.permutations} permutations per column; "
    "a column's numbers, bins and crosses change together. An unknown number becomes the missing "
    "value that training had, or the mean where training had none. Columns that "
    "carry the same information share their importance: each looks less important than both are."
  )
  return section(
    "columns",
    "Columns",
    paragraph(intro),
    *[
      paragraph(f"{task.name}: undefined on these rows, which have one class only.")
      for t, task in enumerate(facts.tasks)
      if t not in shown
    ],
    element("div", *figures, class_="grid"),
    details(f"All {len(effects.names)} columns", _effects_table(facts, effects)),
  )


def _with_effects(effects: ColumnEffects) -> list[int]:
  """Returns the numbers of the tasks whose metric is defined on the rows."""
  is_known_T = np.isfinite(effects.permuted).all(0) & np.isfinite(effects.unknown).all(0)
  return np.flatnonzero(is_known_T).tolist()


def _effect_chart(
  title: str,
  note: str,
  effects: ColumnEffects,
  values_C: np.ndarray,
  half_C: np.ndarray,
  style: int,
) -> Html:
  order = np.argsort(-values_C, kind="stable")[:_MOST_BARS]
  bars = [
    Bar(effects.names[c], float(values_C[c]), float(half_C[c]), numbers.change(float(values_C[c])))
    for c in order
  ]
  top = max(float((values_C + half_C)[order].max()), 1e-4)
  x = scales.linear(min(0.0, float(values_C[order].min())), top, 3)
  first = numbers.sentence([f"{bar.name} {bar.text}" for bar in bars[:3]])
  label = "change for the worse"
  more = len(effects.names) - len(bars)
  note += f" The {len(bars)} largest of {len(effects.names)}." if more > 0 else ""
  chart = charts.bar_chart(title, f"Largest: {first}.", bars, x, label, style % 6)
  return figure(title, note, chart)


def _effects_table(facts: RunFacts, effects: ColumnEffects) -> Html:
  header = ["column", "unknown in test rows"]
  shown = _with_effects(effects)
  for t in shown:
    header += [f"{facts.tasks[t].name}: permuted", "± sd", "unknown"]
  rows = []
  largest_C = effects.permuted[:, shown].max(1, initial=-np.inf)
  for c in np.argsort(-largest_C, kind="stable"):
    cells = [effects.names[c], numbers.percent(float(effects.unknown_share[c]), 2)]
    for t in shown:
      cells += [numbers.change(float(effects.permuted[c, t]))]
      cells += [numbers.text(float(effects.deviation[c, t]))]
      cells += [numbers.change(float(effects.unknown[c, t]))]
    rows.append(cells)
  return table(header, rows, "Change of each task's metric for the worse")


def gates_section(facts: RunFacts) -> Html:
  """Returns the gates of all tasks: means, by the values of columns, by epoch."""
  report = facts.gates
  assert report is not None
  tasks, experts = report["tasks"], range(report["experts"])
  whole = report["all"]
  values = np.stack([mean_gate(whole, task, experts) for task in tasks])
  title = "Mean gate weight of each task"
  note = "Each row sums to 1. The stronger the colour, the more weight."
  chart = charts.heat_map(
    title, _heaviest(tasks, values), tasks, list(map(str, experts)), values, "expert"
  )
  parts: list[Any] = [
    paragraph(
      "A gate decides, row by row, how much of each expert its task uses. Tasks with different "
      f"gates learn different things from the same experts. Measured on {report['rows']:,} test "
      "rows."
    ),
    *[paragraph(element("strong", "Warning: "), f"{line}.") for line in report["warnings"]],
    element("div", figure(title, note, chart), _gate_numbers(report), class_="grid"),
  ]
  for column, groups in report["by"].items():
    parts.append(_by_column(column, groups, tasks, experts))
  if len(report["by_epoch"]) > 1:
    parts.append(_by_epoch(report["by_epoch"], tasks, report["experts"]))
  return section("gates", "Gates", *parts)


def _heaviest(names: Sequence[str], values: np.ndarray) -> str:
  return "; ".join(
    f"{name}: most weight on expert {row.argmax()} ({row.max():.2f})"
    for name, row in zip(names, values, strict=True)
  )


def _gate_numbers(report: Mapping[str, Any]) -> Html:
  tasks = report["tasks"]
  rows = []
  for task in tasks:
    effective, used, entropy = (
      report["all"][f"{PREFIX}{task}/{name}"]
      for name in ("effective_experts", "used_experts", "entropy")
    )
    cells = [f"{effective:.2f} of {report['experts']}", f"{used:.0f}", f"{np.exp(entropy):.2f}"]
    rows.append([task, *cells])
  header = ["task", "effective experts", "in use", "effective for one row"]
  parts = [table(header, rows, "How many experts each task uses")]
  parts.append(
    paragraph(
      "Effective experts: the number of equally weighted experts with the entropy of the mean "
      "gate. In use: experts with a mean weight above "
      f"{report['thresholds']['in_use']:.3g}.",
      class_="small",
    )
  )
  if len(tasks) > 1:
    rows = [[a, *(f"{similarity(report['all'], a, b):.3f}" for b in tasks)] for a in tasks]
    parts.append(table(["task", *tasks], rows, "Overlap of two tasks' gates, 1 if they are equal"))
  return element("div", *parts)


def _by_column(
  column: str, groups: Sequence[Mapping[str, Any]], tasks: Sequence[str], experts: Sequence[int]
) -> Html:
  """Returns heat maps of the mean gates by the values of a column, one per task."""
  drawn = groups[:_MOST_VALUES]
  names = [group["value"] for group in drawn]
  figures = []
  for t, task in enumerate(tasks):
    values = np.stack([mean_gate(group, task, experts) for group in drawn])
    title = f"{task}: gate by {column}"
    chart = charts.heat_map(
      title, _heaviest(names, values), names, list(map(str, experts)), values, "expert", t % 6
    )
    figures.append(figure(title, "", chart))
  header = [column, "rows", *(f"{t}: effective experts" for t in tasks)]
  header += ["mean overlap of gates"] if len(tasks) > 1 else []
  rows = []
  for group in groups:
    cells = [group["value"], f"{group['rows']:,}"]
    cells += [f"{group[f'{PREFIX}{task}/effective_experts']:.2f}" for task in tasks]
    cells += [f"{mean_similarity(group, tasks):.3f}"] if len(tasks) > 1 else []
    rows.append(cells)
  more = (
    f", the {len(drawn)} most frequent of {len(groups)} values" if len(drawn) < len(groups) else ""
  )
  return join(
    [
      element("h3", f"By {column}{more}"),
      element("div", *figures, class_="grid"),
      details(f"Numbers by {column}", table(header, rows, f"Gates by {column}")),
    ]
  )


def _by_epoch(records: Sequence[Mapping[str, Any]], tasks: Sequence[str], experts: int) -> Html:
  epochs = [record["epoch"] for record in records]
  lines = [[r[f"{PREFIX}{task}/effective_experts"] for r in records] for task in tasks]
  title = "Effective experts by epoch, on validation rows"
  description = "; ".join(
    f"{task}: {line[0]:.2f} in the first epoch, {line[-1]:.2f} in the last"
    for task, line in zip(tasks, lines, strict=True)
  )
  chart = charts.line_chart(
    title,
    description,
    [Series(epochs, line, t) for t, line in enumerate(lines)],
    charts.epochs_scale(epochs[-1]),
    scales.linear(1, experts),
    ("epoch", "effective experts"),
  )
  rows = [[str(e), *(f"{line[i]:.2f}" for line in lines)] for i, e in enumerate(epochs)]
  chart = figure(title, "", chart, legend(tasks), table(["epoch", *tasks], rows, title))
  return join([element("h3", "By epoch"), element("div", chart, class_="grid")])


def what_if_section(what_if: WhatIf | None, reason: str) -> Html:
  """Returns the what-if: its form and data, or a sentence on why there is none."""
  title = "What if"
  if what_if is None:
    return section("what-if", title, paragraph(reason))
  part = lambda name, tag="div", *content, **more: element(tag, *content, data_part=name, **more)
  form = element(
    "div",
    element("p", "Start from: ", part("examples", "span", class_="buttons"), class_="start"),
    part("labels", "p", class_="small"),
    element(
      "div",
      element(
        "form",
        element("h3", "The row"),
        part("columns", class_="fields"),
        part(
          "more",
          "details",
          element("summary", "The other ", part("more-count", "span"), " columns"),
          part("more-columns", class_="fields"),
        ),
        part("reset", "button", "Back to the start", type="button"),
        autocomplete="off",
        onsubmit="return false",
        aria_label="Columns of the row",
      ),
      element(
        "div",
        element("h3", "What the model makes of it"),
        part("problem", "p", class_="problem", role="alert", hidden=True),
        part("results", aria_live="polite"),
        class_="outcome",
      ),
      class_="what-if",
    ),
    id="what-if-form",
    hidden=True,
  )
  intro = (
    "The model is part of this page and runs in the browser; nothing is sent anywhere. Change a "
    "column to see scores and gates move. The most important columns come first; a mark on each "
    "bar shows the row at the start. The model describes what goes together in the data, not what "
    "would happen if somebody changed."
  )
  return section(
    "what-if",
    title,
    paragraph(intro),
    *[paragraph(note, class_="small") for note in what_if.notes],
    element("noscript", paragraph("This part needs JavaScript, which is switched off.")),
    form,
    script_data("what-if-data", what_if.payload),
  )
