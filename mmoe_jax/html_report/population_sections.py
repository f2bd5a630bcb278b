"""Section of the page on the members of a population."""

from typing import Any

import numpy as np

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
    rows.append(["mean of scores", *[""] * len(keys), "", *values])
  converged = [member for member in members if "error" not in member]
  figures = [_spread(facts, name, splits, converged) for name in names]
  text = (
    f"{len(converged)} of {len(members)} members converged. This page describes member "
    f"{facts.member}; --member=N chooses another one. By default it is the best on validation rows."
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
  y = scales.linear(min(known), max(known))
  task, metric = name.split("/")
  title = f"{task}: {numbers.metric_name(metric)} of the members"
  chart = charts.line_chart(title, description, series, x, y, ("member", ""))
  return figure(title, f"{description}.", chart, legend(list(values), kind="dot"))
