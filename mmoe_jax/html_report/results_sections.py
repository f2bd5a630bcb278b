"""Sections of the page on results: key figures, metrics, learning curves, ROC, calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmoe_jax import data
from mmoe_jax.config import flatten
from mmoe_jax.evaluation import held_out_statistics as statistics
from mmoe_jax.evaluation.tables import DASH
from mmoe_jax.html_report import charts, numbers, scales
from mmoe_jax.html_report.charts import Series
from mmoe_jax.html_report.facts import HeldOut, RunFacts, main_metric
from mmoe_jax.html_report.markup import (
  Html,
  details,
  element,
  figure,
  join,
  legend,
  paragraph,
  section,
  table,
)
from mmoe_jax.workdir import contract

_LOSS = {"binary": "log_loss", "multiclass": "log_loss", "regression": "mse"}
_ROC_DRAWS = 200
_EXTREME = 0.05  # Probabilities closer to 0 or 1 are drawn by their log-odds.
_MOST_CLASSES = 4  # Classes with a ROC curve each.


def key_figures(facts: RunFacts) -> Html:
  """Returns the most important numbers of a run, large."""
  tiles = []
  for task in facts.tasks:
    metric = main_metric(task)
    value = facts.results.get("test", {}).get(f"{task.name}/{metric}")
    found = facts.intervals.get(task.name, {}).get(metric)
    note = f"95 % interval {numbers.interval(found.low, found.high)}" if found else "test rows"
    tiles.append((f"{task.name}: test {numbers.metric_name(metric)}", numbers.text(value), note))
  if facts.is_mean:
    count, last = len(facts.predictor.members), len(facts.whole[contract.MEMBERS])
    tiles.append(("members", str(count), f"of {last} trained; their scores are averaged"))
  else:
    ((best, epochs),) = facts.best_epochs
    tiles.append(("best epoch", str(best), f"of {epochs} trained, by validation rows"))
  train_rows = facts.results.get("train_rows", facts.whole["train_rows"])
  tiles.append(("parameters", f"{facts.results['parameters']:,}", f"{train_rows:,} train rows"))
  return tiles_of(tiles)


def tiles_of(tiles: Sequence[tuple[str, str, str]]) -> Html:
  """Returns large numbers, each with a name above and a note below."""
  items = [
    element("div", element("dt", name), element("dd", element("b", value), element("span", note)))
    for name, value, note in tiles
  ]
  return element("dl", *items, class_="tiles")


def results_section(facts: RunFacts) -> Html:
  """Returns the metrics of all splits, with intervals on test rows."""
  parts: list[Any] = []
  # The mean is not evaluated on train rows.
  splits = [split for split in data.SPLITS if split != "train" or not facts.is_mean]
  for task in facts.tasks:
    rows = []
    for metric in _shown_metrics(facts.results.get("test", {}), task):
      values = [
        numbers.text(facts.results.get(split, {}).get(f"{task.name}/{metric}")) for split in splits
      ]
      found = facts.intervals.get(task.name, {}).get(metric)
      ends = numbers.interval(found.low, found.high) if found else DASH
      rows.append([numbers.metric_name(metric), *values, ends])
    header = ["metric", *splits, "95 % interval, test"]
    parts.append(table(header, rows, caption=f"{task.name} ({task.kind})"))
  parts.append(_reading(facts))
  for name, note in facts.results.get("notes", {}).items():
    parts.append(paragraph(f"{name}: {note}.", class_="small"))
  return section("results", "Results", *parts)


def _reading(facts: RunFacts) -> Html:
  epoch = "each member's epoch" if facts.is_mean else "the epoch"
  lines = [f"The validation rows selected {epoch}, so that the test column is the one to report."]
  if facts.held_out is not None:
    rows = len(facts.held_out.split)
    part = "" if rows == facts.held_out.all_rows else f" a random sample of {rows:,} of"
    lines.append(
      f"Intervals are over{part} {facts.held_out.all_rows:,} test rows: of an AUC by DeLong's "
      "variance, of the others by a bootstrap of "
      f"{len(facts.held_out.counts)} draws. They do not cover other seeds."
    )
  if any(task.kind == "regression" for task in facts.tasks):
    lines.append("Errors of a regression are in standard deviations of its label.")
  return paragraph(" ".join(lines), class_="small")


def _shown_metrics(metrics: Mapping[str, Any], task: data.Task) -> list[str]:
  """Returns a task's metrics: all on equally weighted rows, the main one also on slices."""
  names = [n.split("/", 1)[1] for n in metrics if n.startswith(f"{task.name}/")]
  main = main_metric(task)
  base = ("auc", "log_loss", "pcoc", "accuracy", "mse", "mae", "r2")
  shown = [n for n in names if n in base]
  others = [n for n in names if n not in base and n.startswith(f"{main}_")]
  return shown + [n for n in others if "weighted_" not in n]


def curves_section(facts: RunFacts, others: Sequence[Sequence[Mapping[str, Any]]] = ()) -> Html:
  """Returns learning curves.

  Args:
    facts: facts about the run.
    others: records of other members of a population, of the mean those of all its members, drawn
      as context.
  """
  records = facts.records
  if not records:
    text = "metrics.jsonl holds no epoch of this run, so that there is no curve to draw."
    return section("curves", "Learning curves", paragraph(text))
  best = None if facts.is_mean else facts.results["best_epoch"]
  figures = []
  for task in facts.tasks:
    loss, metric = _LOSS[task.kind], main_metric(task)
    lines = {"train loss": f"train/{task.name}/loss"}
    lines[f"validation {numbers.metric_name(loss)}"] = f"validation/{task.name}/{loss}"
    note = "Losses in training include dropout, if there is any."
    figures.append(_curve(f"{task.name}: loss", note, records, lines, best, 0, ()))
    name = f"validation {numbers.metric_name(metric)}"
    key = f"validation/{task.name}/{metric}"
    title = f"{task.name}: {name}"
    note = (
      f"Thin lines are {'the' if facts.is_mean else 'other'} members."
      if others
      else "Higher is better."
      if metric != "log_loss"
      else ""
    )
    figures.append(_curve(title, note, records, {name: key}, best, 1, others))
  weights = [f"train/{task.name}/weight" for task in facts.tasks]
  if any(len({r.get(name) for r in records}) > 1 for name in weights):
    lines = dict(zip([task.name for task in facts.tasks], weights, strict=True))
    figures.append(_curve("Task weights", "", records, lines, best, 0, ()))
  intro = (
    f"The line marks epoch {best}, the best one by the validation metric of config.select; its "
    "parameters are those that this page describes."
  )
  if facts.is_mean:
    epochs = [epoch for epoch, _ in facts.best_epochs]
    intro = (
      "Means over the members, of each epoch that all of them trained; they are not metrics of the "
      "mean of scores. Each member scores with the parameters of its best epoch, from "
      f"{min(epochs)} to {max(epochs)}."
    )
  grid = element("div", *figures, class_="grid")
  return section("curves", "Learning curves", paragraph(intro), grid)


def _curve(
  title: str,
  note: str,
  records: Sequence[Mapping[str, Any]],
  lines: Mapping[str, str],
  best: int | None,
  style: int,
  others: Sequence[Sequence[Mapping[str, Any]]],
) -> Html:
  """Returns a chart of measurements by epoch."""
  values = lambda found, key: [_number(r.get(key)) for r in found]
  series = [
    Series([r["epoch"] for r in other], values(other, key), style, faint=True)
    for other in others
    for key in lines.values()
  ]
  epochs = [r["epoch"] for r in records]
  series += [
    Series(epochs, values(records, key), style + i) for i, key in enumerate(lines.values())
  ]
  known = np.concatenate([np.asarray(s.y, float) for s in series])
  known = known[np.isfinite(known)]
  if not len(known):
    return figure(title, "No finite value was logged.", Html(""))
  last = max(max(s.x) for s in series)
  description = "; ".join(
    f"{name}: {numbers.short(found[0])} in the first epoch, {numbers.short(found[-1])} in the last"
    for name, key in lines.items()
    if (found := [v for v in values(records, key) if np.isfinite(v)])
  )
  chart = charts.line_chart(
    title,
    description,
    series,
    charts.epochs_scale(last),
    scales.linear(float(known.min()), float(known.max())),
    ("epoch", ""),
    None if best is None else (best, f"best epoch {best}"),
  )
  rows = [
    [str(e), *(numbers.text(values([r], k)[0], 5) for k in lines.values())]
    for e, r in zip(epochs, records, strict=True)
  ]
  keys = legend(list(lines), style) if len(lines) > 1 else ""
  return figure(title, note, chart, keys, table(["epoch", *lines], rows, title))


def _number(value: Any) -> float:
  return float(value) if isinstance(value, int | float) else np.nan


def scores_section(facts: RunFacts) -> Html:
  """Returns ROC curves and calibration on test rows."""
  held_out = facts.held_out
  assert held_out is not None
  figures = []
  for t, task in enumerate(facts.tasks):
    labels_N = held_out.split.labels[:, t]
    known_N = ~np.isnan(labels_N)
    if not known_N.any():
      continue
    if task.kind == "regression":
      figures.append(_estimates(task, t, held_out, known_N))
      continue
    if task.kind == "binary":
      binary = [(task.name, held_out.scores[t], labels_N)]
    else:
      binary = _classes(task, held_out.scores[t], labels_N)
    binary = [each for each in binary if len(np.unique(each[2][known_N])) == 2]
    if not binary:
      continue
    figures.append(_roc(task, t, held_out, known_N, binary))
    figures.append(_calibration(task, t, known_N, binary))
  intro = (
    "Left, how well scores rank rows: the share of positive rows found, against the share of "
    "negative rows that are found with them. Right, whether probabilities are true: rows are "
    "grouped by their prediction, and the share of positives is drawn against it. Bands and "
    "whiskers are 95 % intervals."
  )
  return section(
    "scores", "ROC and calibration", paragraph(intro), element("div", *figures, class_="grid")
  )


def _classes(
  task: data.Task, scores_NxC: np.ndarray, labels_N: np.ndarray
) -> list[tuple[str, np.ndarray, np.ndarray]]:
  """Returns each of the most frequent classes as a binary task: this class or another."""
  counts = [int((labels_N == c).sum()) for c in range(len(task.classes))]
  frequent = np.argsort(-np.array(counts), kind="stable")[:_MOST_CLASSES]
  return [
    (
      f"{task.name}={task.classes[c]}",
      scores_NxC[:, c],
      np.where(np.isnan(labels_N), np.nan, (labels_N == c).astype(float)),
    )
    for c in frequent
  ]


def _roc(
  task: data.Task,
  style: int,
  held_out: HeldOut,
  known_N: np.ndarray,
  binary: Sequence[tuple[str, np.ndarray, np.ndarray]],
) -> Html:
  series, aucs, columns = [], [], []
  for i, (name, scores_N, labels_N) in enumerate(binary):
    scores_N, labels_N = scores_N[known_N], labels_N[known_N]
    curve = statistics.roc(scores_N, labels_N, held_out.counts[:_ROC_DRAWS, known_N])
    number = style + i
    series.append(Series(curve.x, curve.y, number, curve.low, curve.high))
    auc = statistics.auc_interval(scores_N, labels_N)
    aucs.append(f"{name} AUC {numbers.text(auc.value)} ({numbers.interval(auc.low, auc.high)})")
    columns.append(curve)
  axis = scales.fixed(0, 1, [0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
  title = f"{task.name}: ROC curve"
  labels = ("negative rows found (false positive rate)", "positive rows found")
  description = "; ".join(aucs)
  chart = charts.line_chart(
    title, description, series, axis, axis, labels, diagonal=True, height=300
  )
  at = [0.001, 0.01, 0.05, 0.1, 0.2, 0.5]
  rows = [
    [numbers.percent(x), *(numbers.percent(float(np.interp(x, c.x, c.y))) for c in columns)]
    for x in at
  ]
  data_table = table(["negative rows found", *(name for name, _, _ in binary)], rows, title)
  keys = legend([name for name, _, _ in binary], style) if len(binary) > 1 else ""
  return figure(title, f"{description}.", chart, keys, data_table)


def _calibration(
  task: data.Task,
  style: int,
  known_N: np.ndarray,
  binary: Sequence[tuple[str, np.ndarray, np.ndarray]],
) -> Html:
  series, rows, errors = [], [], []
  for i, (name, scores_N, labels_N) in enumerate(binary):
    found = statistics.calibration(scores_N[known_N], labels_N[known_N])
    series.append(Series(found.predicted, found.observed, style + i, found.low, found.high))
    errors.append(f"{name} {numbers.percent(found.error, 2)}")
    for p, o, a, b, n in zip(*found, strict=True):
      cells = [f"{100 * v:.3g} %" for v in (p, o)]
      rows.append([name, *cells, f"{100 * a:.3g} to {100 * b:.3g} %", f"{n:,}"])
  title = f"{task.name}: calibration"
  mean = numbers.sentence(errors)
  note = f"On the diagonal, predictions are true. Mean distance over rows: {mean}."
  predicted = np.concatenate([each.x for each in series])
  if predicted.min() > _EXTREME and predicted.max() < 1 - _EXTREME:
    ends = np.concatenate([predicted, *(each.low for each in series), *(e.high for e in series)])
    axis = scales.linear(float(ends.min()), float(ends.max()), percent=True)
  else:
    axis = scales.log_odds(float(predicted.min()), float(predicted.max()))
    note += (
      " Both axes are log-odds, which spread small probabilities; what lies beyond an axis is "
    )
    note += "drawn at its end."
  chart = charts.line_chart(
    title, note, series, axis, axis, ("predicted", "observed share"), diagonal=True, height=300
  )
  header = ["scores of", "predicted", "observed", "95 % interval", "rows"]
  keys = legend([name for name, _, _ in binary], style) if len(binary) > 1 else ""
  return figure(title, note, chart, keys, table(header, rows, title))


def _estimates(task: data.Task, t: int, held_out: HeldOut, known_N: np.ndarray) -> Html:
  """Returns mean labels against estimates of a regression, in the units of the table."""
  estimates_N = held_out.scores[t][known_N]
  labels_N = held_out.split.labels[known_N, t] * task.std + task.mean
  found = statistics.calibration(estimates_N, labels_N, is_share=False)
  ends = np.concatenate([found.predicted, found.low, found.high])
  axis = scales.linear(float(ends.min()), float(ends.max()))
  title = f"{task.name}: estimates"
  note = "Rows are grouped by the estimate. On the diagonal, estimates are right on average."
  series = [Series(found.predicted, found.observed, t, found.low, found.high)]
  chart = charts.line_chart(
    title, note, series, axis, axis, ("mean estimate", "mean label"), diagonal=True, height=300
  )
  rows = [
    [numbers.short(p), numbers.short(o), f"{numbers.short(a)} to {numbers.short(b)}", f"{n:,}"]
    for p, o, a, b, n in zip(*found, strict=True)
  ]
  header = ["estimate", "mean label", "95 % interval", "rows"]
  return figure(title, note, chart, "", table(header, rows, title))


def settings_section(config: Mapping[str, Any], versions: Sequence[Sequence[str]]) -> Html:
  """Returns all settings of a run by group, and versions."""
  groups: dict[str, list[list[str]]] = {}
  for key, value in flatten(config).items():
    group = key.split(".")[0] if "." in key else "general"
    groups.setdefault(group, []).append([key, numbers.setting(value)])
  blocks = [
    details(f"{group} ({len(rows)})", table(["key", "value"], rows, f"config: {group}", 2))
    for group, rows in groups.items()
  ]
  return section(
    "settings",
    "Settings and versions",
    table(["", ""], versions, "This run and this page", 2),
    paragraph("Every key of the config. Each can be set by --config.KEY=VALUE."),
    join(blocks),
  )
