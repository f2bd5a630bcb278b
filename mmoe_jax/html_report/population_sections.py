"""Sections of the page on the members of a population, and on their gates."""

from typing import Any

import numpy as np

from mmoe_jax.evaluation.gate_statistics import PREFIX
from mmoe_jax.evaluation.gate_tables import mean_gate, mean_similarity
from mmoe_jax.html_report import charts, numbers, scales
from mmoe_jax.html_report.charts import Series
from mmoe_jax.html_report.facts import RunFacts, main_metric
from mmoe_jax.html_report.markup import (
  Html,
  element,
  figure,
  legend,
  paragraph,
  section,
  table,
)


def members_section(facts: RunFacts) -> Html:
  """Returns the members' settings and metrics."""
  members = facts.whole["members"]
  keys = list(members[0]["member"])
  names = [f"{task.name}/{main_metric(task)}" for task in facts.tasks]
  splits = [s for s in ("validation", "test") if any(s in member for member in members)]
  header = ["member", *keys, "best / epochs", *(f"{s} {n}" for s in splits for n in names)]
  rows = []
  for m, member in enumerate(members):
    cells = [f"{m}, shown here" if m == facts.member else str(m)]
    cells += [numbers.setting(member["member"][key]) for key in keys]
    cells.append(f"{member['best_epoch']} / {member['epochs']}")
    if "error" in member:
      cells += ["diverged"] * (len(splits) * len(names))
    else:
      cells += [numbers.text(member.get(s, {}).get(n)) for s in splits for n in names]
    rows.append(cells)
  if mean := facts.whole.get("mean"):
    values = [numbers.text(mean.get(s, {}).get(n)) for s in splits for n in names]
    name = "mean of scores" + (", shown here" if facts.is_mean else "")
    rows.append([name, *[""] * len(keys), "", *values])
  converged = [member for member in members if "error" not in member]
  figures = [_spread(facts, name, splits, converged) for name in names]
  text = f"{len(converged)} of {len(members)} members converged. This page describes "
  if facts.is_mean:
    text += (
      "the mean of their scores: of probabilities and estimates, not of logits. --member=N chooses "
      "a member."
    )
  else:
    text += (
      f"member {facts.member}; --member=N chooses another one, --member=mean the mean of their "
      "scores. By default it is the best on validation rows."
    )
  return section(
    "members",
    "Members",
    paragraph(text),
    element("div", *[f for f in figures if f], class_="grid"),
    table(header, rows, "Settings and metrics of the members"),
  )


def _spread(facts: RunFacts, name: str, splits: list[str], converged: list[Any]) -> Html:
  """Returns a chart of one metric of all members."""
  values = {s: [m[s].get(name) for m in converged if s in m] for s in splits}
  values = {s: [np.nan if v is None else v for v in found] for s, found in values.items()}
  known = [v for found in values.values() for v in found if np.isfinite(v)]
  if not known:
    return Html("")
  count = max(map(len, values.values()))
  series = [
    Series(list(range(len(found))), found, i, line=False) for i, found in enumerate(values.values())
  ]
  ticks = list(range(0, count, max(1, -(-count // 8))))
  x = scales.fixed(-0.5, count - 0.5, ticks, list(map(str, ticks)))
  description = "; ".join(
    f"{s}: {numbers.text(min(found))} to {numbers.text(max(found))}, mean "
    f"{numbers.text(float(np.mean(found)))}"
    for s, found in values.items()
  )
  mean = facts.whole.get("mean", {})
  means = {s: value for s in values if (value := mean.get(s, {}).get(name)) is not None}
  if means:
    found = [f"{s} {numbers.text(value)}" for s, value in means.items()]
    description += f"; of the mean of scores, the lines: {', '.join(found)}"
    series += [
      Series([-0.5, count - 0.5], [value, value], list(values).index(s), faint=True)
      for s, value in means.items()
    ]
    known += means.values()
  y = scales.linear(min(known), max(known))
  task, metric = name.split("/")
  title = f"{task}: {numbers.metric_name(metric)} of the members"
  chart = charts.line_chart(title, description, series, x, y, ("member", ""))
  return figure(title, f"{description}.", chart, legend(list(values), kind="dot"))


def gates_of_members_section(facts: RunFacts) -> Html:
  """Returns the gates of each member that the mean is of."""
  of_members = facts.gates_of_members
  experts = range(of_members[0]["experts"])
  tasks = [task.name for task in facts.tasks]
  names = [f"member {found['member']}" for found in of_members]
  figures = []
  for t, task in enumerate(tasks):
    values = np.stack([mean_gate(found["all"], task, experts) for found in of_members])
    title = f"{task}: mean gate weight in each member"
    description = "; ".join(
      f"{name}: most weight on expert {row.argmax()} ({row.max():.2f})"
      for name, row in zip(names, values, strict=True)
    )
    chart = charts.heat_map(
      title, description, names, list(map(str, experts)), values, "expert of the member", t % 6
    )
    figures.append(figure(title, "Each row sums to 1.", chart))
  rows = []
  for name, found in zip(names, of_members, strict=True):
    cells = [f"{found['all'][f'{PREFIX}{task}/effective_experts']:.2f}" for task in tasks]
    cells += [f"{mean_similarity(found['all'], tasks):.3f}"] if len(tasks) > 1 else []
    rows.append([name, *cells])
  columns = np.array([[float(cell) for cell in row[1:]] for row in rows]).mean(0)
  rows.append(["mean of the members", *(f"{value:.3g}" for value in columns)])
  header = ["", *(f"{task}: effective experts of {len(experts)}" for task in tasks)]
  header += ["mean overlap of gates"] if len(tasks) > 1 else []
  assert facts.held_out is not None
  intro = (
    "A mean of scores has no gates: these are those of each member, measured on "
    f"{len(facts.held_out.split):,} test rows. Experts of the same number have nothing in common "
    "in two members, so that only measures that do not depend on their order are averaged. "
    "--member=N shows the gates of a member by the values of columns and by epoch."
  )
  warnings = [
    paragraph(element("strong", "Warning: "), f"{name}: {line}.")
    for name, found in zip(names, of_members, strict=True)
    for line in found["warnings"]
  ]
  return section(
    "gates",
    "Gates",
    paragraph(intro),
    *warnings,
    element("div", *figures, class_="grid"),
    table(header, rows, "How many experts each task uses, and how alike gates are"),
  )
