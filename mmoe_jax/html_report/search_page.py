"""Parts of the page on a search: its trials, their settings, what to try next."""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmoe_jax.errors import UserError, require
from mmoe_jax.html_report import charts, numbers, scales
from mmoe_jax.html_report.advice import Advice
from mmoe_jax.html_report.charts import Series
from mmoe_jax.html_report.markup import (
  Html,
  element,
  figure,
  legend,
  paragraph,
  section,
  table,
)
from mmoe_jax.html_report.results_sections import tiles_of
from mmoe_jax.workdir import contract

TRIALS = "trials.csv"
_MOST_ROWS = 200  # Trials in the table.
_NEAR_END = 0.1  # Part of a range that is near its end.


class Search(NamedTuple):
  """Search in a work directory.

  Attributes:
    config: content of config.json.
    keys: settings that vary.
    trials: for each finished trial `number`, `value` (None if it failed), `settings` (texts),
      `best_epoch`, `epochs`, `seconds` and `note`, the best first.
  """

  config: dict[str, Any]
  keys: list[str]
  trials: list[dict[str, Any]]

  @property
  def finished(self) -> list[dict[str, Any]]:
    """Trials that did not fail."""
    return [trial for trial in self.trials if trial["value"] is not None]


def read_search(workdir: str) -> Search:
  """Reads a search.

  Raises:
    UserError: if trials.csv is broken, or no trial has finished.
  """
  path = os.path.join(workdir, TRIALS)
  with open(path, encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
  trials = []
  try:
    columns = list(rows[0]) if rows else []
    ends = [i for i, c in enumerate(columns) if c.startswith("validation/") or c == "best_epoch"]
    keys = columns[2 : ends[0]]
    for row in rows:
      entry = {"number": int(row["trial"]), "value": float(row["value"]) if row["value"] else None}
      entry |= {name: row[name] for name in ("best_epoch", "epochs", "seconds", "note")}
      trials.append(entry | {"settings": {key: row[key] for key in keys}})
  except (KeyError, IndexError, TypeError, ValueError) as error:
    raise UserError(f"{path}: broken ({error!r}); run the search's command again") from error
  search = Search(contract.read_config(workdir), keys, trials)
  require(bool(search.finished), f"{path}: no trial has finished successfully")
  return search


def sections(search: Search) -> list[tuple[str, str, Html]]:
  """Returns (key, title, section) of the page's parts."""
  return [
    ("trials", "Trials", _trials_section(search)),
    ("settings-tried", "Settings that were tried", _settings_section(search)),
    ("best", "The best trial", _best_section(search)),
  ]


def key_figures(search: Search) -> Html:
  """Returns the most important numbers of a search, large."""
  best = search.finished[0]
  failed = len(search.trials) - len(search.finished)
  seconds = sum(float(t["seconds"]) for t in search.trials if t["seconds"])
  tiles = [
    (
      "best validation value",
      numbers.text(best["value"], 5),
      f"trial {best['number']}, {_metric(search)}",
    ),
    ("trials", str(len(search.trials)), f"{failed} failed"),
    ("training time", f"{seconds / 60:.1f} min", "of all trials together"),
  ]
  return tiles_of(tiles)


def advise(search: Search) -> list[Advice]:
  """Returns advice on what to search next."""
  found = []
  best = search.finished[0]
  for key, low, high, is_log in _ranges(search):
    value = _float(best["settings"].get(key, ""))
    if math.isnan(value):
      continue
    place = _place(value, low, high, is_log)
    # A rate cannot be below 0.
    if (place < _NEAR_END and low != 0) or place > 1 - _NEAR_END:
      side = "lowest" if place < _NEAR_END else "highest"
      found.append(
        Advice(
          f"Extend the range of {key}",
          f"The best trial has {value:.4g}, near the {side} value of the range from {low:g} to "
          f"{high:g}; better values may lie beyond.",
          "The best trial lies in the first or last tenth of a range.",
        )
      )
  numbers_of = sorted(t["number"] for t in search.trials)
  late = numbers_of[len(numbers_of) * 3 // 4]
  if best["number"] >= late and len(numbers_of) >= 8:
    found.append(
      Advice(
        "Search further",
        f"The best trial, {best['number']}, is among the last quarter of {len(numbers_of)}: the "
        "search still improves. The same command with more `--trials` continues it.",
        "At least 8 trials, and the best one in the last quarter.",
      )
    )
  failed = len(search.trials) - len(search.finished)
  if failed > 0.1 * len(search.trials):
    note = next(t["note"] for t in search.trials if t["value"] is None)
    found.append(
      Advice(
        "Many trials failed",
        f"{failed} of {len(search.trials)}, such as: {note}",
        "More than a tenth of the trials failed.",
      )
    )
  if best["best_epoch"] == best["epochs"]:
    found.append(
      Advice(
        "Train the best trial longer",
        f"Its best epoch is its last one, {best['epochs']}: more `--config.train.epochs` may help, "
        "also to the other trials.",
        "The best epoch of the best trial is its last epoch.",
      )
    )
  found.append(
    Advice(
      "Train the best settings with other seeds",
      "The best of many trials is partly the luckiest one, and validation rows chose it. Train it "
      "with several seeds (`python -m mmoe_jax.population --seeds 8`) and look at test rows once.",
      "Always, after a search.",
    )
  )
  return found


def _metric(search: Search) -> str:
  select = search.config["select"]
  tasks = numbers.sentence(select["tasks"] or search.config["data"]["tasks"])
  sign = "minus " if select["metric"] in ("log_loss", "mse", "mae") else ""
  return f"{sign}{numbers.metric_name(select['metric'])}, mean of {tasks}"


def _trials_section(search: Search) -> Html:
  by_number = sorted(search.finished, key=lambda trial: trial["number"])
  x, y = [t["number"] for t in by_number], [t["value"] for t in by_number]
  best = [max(y[: i + 1]) for i in range(len(y))]
  ends = [*x[1:], x[-1]]  # The best so far stays until the next trial.
  step_x = [place for pair in zip(x, ends, strict=True) for place in pair]
  step_y = [value for value in best for _ in range(2)]
  title = "Validation value by trial"
  description = (
    f"From {numbers.text(min(y), 5)} to {numbers.text(max(y), 5)}; the best is trial "
    f"{search.finished[0]['number']}."
  )
  last = max(x[-1], 1)
  ticks = list(range(0, last + 1, max(1, -(-last // 8))))
  chart = charts.line_chart(
    title,
    description,
    [Series(step_x, step_y, 1, faint=True), Series(x, y, 0, line=False)],
    scales.fixed(0, last, ticks, list(map(str, ticks))),
    scales.linear(min(y), max(y)),
    ("trial", ""),
  )
  note = f"{description} The thin line is the best so far."
  header = ["trial", "value", *search.keys, "best epoch", "epochs", "note"]
  rows = []
  for trial in search.trials[:_MOST_ROWS]:
    cells = [str(trial["number"]), numbers.text(trial["value"], 5)]
    cells += [_short(trial["settings"][key]) for key in search.keys]
    rows.append([*cells, trial["best_epoch"], trial["epochs"], trial["note"]])
  text = f"Value: {_metric(search)}, on validation rows; higher is better. Test rows were not used."
  return section(
    "trials",
    "Trials",
    paragraph(text),
    element("div", figure(title, note, chart), class_="grid"),
    table(header, rows, "Trials, the best first"),
  )


def _settings_section(search: Search) -> Html:
  """Returns a chart for each number that varies, and a table for each other setting."""
  figures: list[Html] = []
  values = [trial["value"] for trial in search.finished]
  ranges = {key: (low, high, is_log) for key, low, high, is_log in _ranges(search)}
  y = scales.linear(min(values), max(values))
  drawn: list[list[float]] = []
  for key in search.keys:
    found = _values_of(search, key)
    if any(math.isnan(v) for v in found):
      figures.append(_choices(search, key))
      continue
    if found in drawn:  # A key that always has the value of another one.
      continue
    drawn.append(found)
    same = [k for k in search.keys if k != key and _values_of(search, k) == found]
    low, high, is_log = ranges.get(key, (min(found), max(found), False))
    low, high = min(low, *found), max(high, *found)
    x = scales.log(low, high) if is_log and low > 0 else scales.linear(low, high)
    title = f"Value by {key}"
    description = (
      f"The best trial has {found[0]:.4g}; tried from {min(found):.4g} to {max(found):.4g}."
    )
    description += f" The same values: {numbers.sentence(same)}." if same else ""
    series = [
      Series(found, values, 0, line=False),
      Series(found[:1], values[:1], 1, line=False),
    ]
    chart = charts.line_chart(title, description, series, x, y, (key, ""))
    figures.append(figure(title, description, chart, legend(["trials", "the best"], kind="dot")))
  return section(
    "settings-tried", "Settings that were tried", element("div", *figures, class_="grid")
  )


def _values_of(search: Search, key: str) -> list[float]:
  return [_float(trial["settings"][key]) for trial in search.finished]


def _choices(search: Search, key: str) -> Html:
  groups: dict[str, list[float]] = {}
  for trial in search.finished:
    groups.setdefault(trial["settings"][key], []).append(trial["value"])
  rows = [
    [name, str(len(found)), numbers.text(max(found), 5), numbers.text(sum(found) / len(found), 5)]
    for name, found in sorted(groups.items(), key=lambda item: -max(item[1]))
  ]
  return table([key, "trials", "best value", "mean value"], rows, f"Value by {key}")


def _best_section(search: Search) -> Html:
  best = search.finished[0]
  flags = [f"--config.{key}={value}" for key, value in best["settings"].items()]
  return section(
    "best",
    "The best trial",
    paragraph(
      "Train it with the config of the search and these flags. best.json in the work directory "
      "holds the same settings."
    ),
    element(
      "pre",
      element(
        "code", "python -m mmoe_jax.main --config … --workdir … \\\n  " + " \\\n  ".join(flags)
      ),
    ),
  )


def _ranges(search: Search) -> list[tuple[str, float, float, bool]]:
  """Returns (key, low, high, whether it is logarithmic) of the ranges of a search."""
  found = []
  space: Mapping[str, Sequence[Any]] = search.config["search"]["space"]
  for keys, domain in space.items():
    for key in keys.split("+"):
      if domain[0] in ("log", "uniform", "int"):
        found.append((key, float(domain[1]), float(domain[2]), domain[0] == "log"))
  return found


def _place(value: float, low: float, high: float, is_log: bool) -> float:
  if is_log:
    value, low, high = math.log(value), math.log(low), math.log(high)
  return (value - low) / (high - low) if high > low else 0.5


def _float(text: str) -> float:
  try:
    return float(text)
  except ValueError:
    return math.nan


def _short(text: str) -> str:
  value = _float(text)
  return text if math.isnan(value) else f"{value:.4g}"
