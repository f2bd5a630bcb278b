"""What the gates of a run do: python -m mmoe_jax.gate_report --workdir DIR --out DIR.

Leaves gates.json, gates.md and plots, gates_*.png: how each task weighs the experts, over all rows
of a split, by the values of columns, and by epoch. mmoe_jax/gates.py says what is measured.
"""

import functools
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from mmoe_jax import cache, data, errors, evaluate, gates, logs, stream, workdirs
from mmoe_jax.errors import UserError, require, require_known
from mmoe_jax.predict import Predictor
from mmoe_jax.table import write_atomically

COLUMNS = ("age", "sex", "education")  # Looked at unless told otherwise, where the data has them.
_EDGES = {"age": (16, 25, 35, 45, 55, 65)}  # Where the ranges of a column begin, from the second.
_DISTINCT = 10  # Up to so many numbers stand alone; more make ranges.
_SHOWN = 25  # Rows of a plot at most.


def measure(
  workdir: str,
  data_dir: str = "",
  split: str = "validation",
  by: Sequence[str] | None = None,
  member: int | None = None,
) -> dict[str, Any]:
  """Measures the gates of a run's best variables; each row counts once.

  Args:
    workdir: the run.
    data_dir: prepared data; empty for where the run has it from.
    split: one of data.SPLITS.
    by: columns of the prepared data to group rows by, be they features of the run or not; None
      for those of COLUMNS that there are.
    member: which one, where the run is a population.

  Returns:
    What gates.json holds. `all`: the measures by the names of `gates.scalars`; `by`: column -> a
    list with `value`, `rows` and the measures for each value or range that occurs; `by_epoch`: the
    same measures as training logged them, with `epoch`; `warnings`; and what was measured.

  Raises:
    UserError: for a model without gates, an unknown split or column, data other than the run's.
  """
  require_known(split, data.SPLITS, "--split")
  predictor = Predictor(workdir, member)
  config = ConfigDict(workdirs.read_config(workdir))
  directory = data_dir or config.data_dir
  path = os.path.join(directory, "schema.json")
  require(os.path.exists(path), f"{directory}: no prepared data here; name its folder with --data")
  groups = _groups(directory, split, data.Schema.restore(path), by)
  budget = math.inf if split == "train" else stream.budget(config)
  schema, splits = data.load(directory, **config.data, budget=budget)
  for what in ("id_features", "numeric"):
    require(
      getattr(schema, what) == getattr(predictor.schema, what),
      f"{directory}: prepared otherwise than the data of the run in {workdir}; "
      "name the folder that it was trained on with --data",
    )
  rows = len(splits[split])
  predict = evaluate.make_predict_with_gates(predictor.model)
  _, gates_TxNxE = predict(predictor.variables, evaluate.chunked(splits[split].features))
  if gates_TxNxE is None:
    raise UserError(
      f"{workdir}: the model '{config.model.name}' has no gates; there is nothing to report"
    )
  gates_TxNxE = gates_TxNxE[:, :rows]
  tasks = [task.name for task in predictor.schema.tasks]
  whole = jax.device_get(jax.jit(gates.statistics)(gates_TxNxE, np.ones(rows, np.float32)))
  return {
    "workdir": workdir,
    "member": member,
    "data": directory,
    "split": split,
    "rows": rows,
    "model": config.model.name,
    "tasks": tasks,
    "experts": gates_TxNxE.shape[2],
    "thresholds": {
      "in_use": gates.IN_USE / gates_TxNxE.shape[2],
      "collapsed": gates.COLLAPSED,
      "same": gates.SAME,
    },
    "warnings": gates.collapsed(whole, tasks),
    "all": gates.scalars(whole, tasks),
    "by": {column: _measure_groups(gates_TxNxE, own, tasks) for column, own in groups.items()},
    "by_epoch": _logged(workdir, tasks, gates_TxNxE.shape[2], member),
  }


def markdown(report: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
  """Lays out what `measure` gave, for reading.

  Args:
    report: what `measure` gave.
    plots: file names of plots to show at the end.
  """
  tasks, experts, whole = report["tasks"], range(report["experts"]), report["all"]
  member = "" if report.get("member") is None else f", member {report['member']}"
  lines = [
    f"# What the gates do: {report['workdir']}{member}",
    "",
    f"Model `{report['model']}`, its best variables, {report['rows']:,} {report['split']} rows.",
    "",
    *([f"**Warning:** {line}." for line in report["warnings"]] or ["No gate has collapsed."]),
    "",
    *_table(
      ["task", "entropy of a row's gate", "of the mean gate", "effective experts", "in use"],
      [
        [
          task,
          f"{m['entropy']:.3f}",
          f"{m['mean_entropy']:.3f}",
          f"{m['effective_experts']:.2f} of {len(experts)}",
          f"{m['used_experts']:.0f}",
        ]
        for task in tasks
        for m in [_of_task(whole, task)]
      ],
    ),
    "",
    "Entropy is in nats. Effective experts: so many, evenly weighted, would have the entropy of",
    f"the mean gate. In use: experts of a mean weight above {report['thresholds']['in_use']:.4g}.",
    "",
    "## Mean gate weights",
    "",
    *_table(
      ["expert", *map(str, experts)],
      [[task, *(f"{w:.3f}" for w in _mean_gate(whole, task, experts))] for task in tasks],
    ),
  ]
  if len(tasks) > 1:
    lines += [
      "",
      "## How alike two tasks' gates are",
      "",
      "One minus the total variation distance of the two gates, averaged over rows.",
      "",
      *_table(
        ["task", *tasks], [[a, *(f"{_similarity(whole, a, b):.3f}" for b in tasks)] for a in tasks]
      ),
    ]
  for column, groups in report["by"].items():
    lines += ["", f"## By {column}", "", *_table(*_rows_by_value(column, groups, tasks, experts))]
  lines += ["", "## By epoch, on validation rows", ""]
  if report["by_epoch"]:
    lines += _table(*_rows_by_value("epoch", report["by_epoch"], tasks, experts))
  else:
    lines += ["metrics.jsonl of this run holds no gates."]
  lines += ["", "## Plots", "", *(f"![{name}]({name})" for name in plots)] if plots else []
  return "\n".join(lines) + "\n"


def figures(report: Mapping[str, Any]) -> dict[str, Figure]:
  """Plots of what `measure` gave, by name: `experts`, `similarity`, `by_epoch`, `by_COLUMN`."""
  tasks, whole = report["tasks"], report["all"]
  drawn = {"experts": _experts_figure(report)}
  if len(tasks) > 1:
    values = np.array([[_similarity(whole, a, b) for b in tasks] for a in tasks])
    size = 2.4 + 0.7 * len(tasks)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axis = figure.subplots()
    image = _heat(axis, values, tasks, tasks, 1.0, annotate=len(tasks) <= 8)
    axis.tick_params(axis="x", rotation=30)
    axis.set_title("how alike the gates are")
    figure.colorbar(image, ax=axis, label="1 - total variation distance")
    drawn["similarity"] = figure
  if report["by_epoch"]:
    records = report["by_epoch"]
    step = math.ceil(len(records) / _SHOWN)
    records = records[::-1][::step][::-1]  # The last epoch is always there.
    labels = [str(record["epoch"]) for record in records]
    drawn["by_epoch"] = _groups_figure(report, "epoch (validation rows)", records, labels)
  for column, groups in report["by"].items():
    shown = groups[:_SHOWN]
    labels = [f"{_short(g['value'])}  ({g['rows']:,})" for g in shown]
    more = f", {len(shown)} of {len(groups)} values" if len(shown) < len(groups) else ""
    title = f"{column} (rows{more})"
    drawn[f"by_{column}"] = _groups_figure(report, title, shown, labels)
  return drawn


# ---- Groups of rows --------------------------------------------------------------------


def _groups(
  directory: str, split: str, schema: data.Schema, by: Sequence[str] | None
) -> dict[str, list[tuple[str, np.ndarray]]]:
  """column -> (value or range, (N,) bool), from the prepared arrays of all columns."""
  categories = [feature.name for feature in schema.id_features if feature.kind == "category"]
  numbers = [feature.name for feature in schema.numeric]
  known = [*categories, *numbers]
  by = [column for column in COLUMNS if column in known] if by is None else by
  for column in by:
    require_known(column, known, "a column in --by")

  def read(field: str, names: Sequence[str], name: str) -> np.ndarray:
    path = os.path.join(directory, split, f"{field}.npy")
    return np.array(np.load(path, mmap_mode="r")[:, list(names).index(name)])

  groups = {}
  for column in by:
    if column in numbers:
      groups[column] = number_groups(read("numbers", numbers, column), _EDGES.get(column))
    else:
      ids_N = read("ids", [feature.name for feature in schema.id_features], column)
      values = ("(unknown)", *schema.id_feature(column).values)
      groups[column] = category_groups(ids_N, values)
  return groups


def category_groups(ids_N: np.ndarray, values: Sequence[str]) -> list[tuple[str, np.ndarray]]:
  """Rows by category, the most frequent first; only those that occur.

  Args:
    ids_N: the id of each row's category.
    values: what each id stands for.
  """
  ids, counts = np.unique(ids_N, return_counts=True)
  return [(str(values[i]), ids_N == i) for i in ids[np.argsort(-counts, kind="stable")]]


def number_groups(
  numbers_N: np.ndarray, edges: Sequence[float] | None = None
) -> list[tuple[str, np.ndarray]]:
  """Rows by ranges of a number, in their order; each range is named by its ends that occur.

  Args:
    numbers_N: the numbers.
    edges: where ranges begin, but for the first. None for each number alone when there are at
      most _DISTINCT; else about five ranges of as many rows, 0 being one of its own where it is
      the least number and stands for over a tenth of the rows.
  """
  distinct = np.unique(numbers_N)
  if edges is None and len(distinct) <= _DISTINCT:
    edges = distinct[1:]
  elif edges is None and distinct[0] == 0 and (numbers_N == 0).mean() > 0.1:
    quartiles = np.quantile(numbers_N[numbers_N > 0], [0.25, 0.5, 0.75], method="higher")
    edges = np.unique([distinct[1], *quartiles])
  elif edges is None:
    edges = np.unique(np.quantile(numbers_N, [0.2, 0.4, 0.6, 0.8], method="higher"))
  ranges_N = np.searchsorted(np.asarray(edges), numbers_N, side="right")
  masks = [ranges_N == i for i in np.unique(ranges_N)]
  return [(_range(numbers_N[mask]), mask) for mask in masks]


def _range(numbers: np.ndarray) -> str:
  low, high = numbers.min(), numbers.max()
  if low == high:
    return f"{low:,.4g}" if low % 1 else f"{low:,.0f}"
  if low % 1 or high % 1 or low < 0:
    return f"{low:,.3g} to {high:,.3g}"
  return f"{low:,.0f}-{high:,.0f}"


@jax.jit
def _statistics_of_groups(gates_TxNxE: jax.Array, weights_GxN: jax.Array) -> dict[str, jax.Array]:
  # One group after the other: a column may have dozens, and each needs arrays as large as gates.
  return jax.lax.map(functools.partial(gates.statistics, gates_TxNxE), weights_GxN)


def _measure_groups(
  gates_TxNxE: jax.Array, groups: Sequence[tuple[str, np.ndarray]], tasks: Sequence[str]
) -> list[dict[str, Any]]:
  weights_GxN = np.stack([mask for _, mask in groups]).astype(np.float32)
  found = jax.device_get(_statistics_of_groups(gates_TxNxE, weights_GxN))
  return [
    {"value": value, "rows": int(mask.sum())}
    | gates.scalars({name: array[g] for name, array in found.items()}, tasks)
    for g, (value, mask) in enumerate(groups)
  ]


def _logged(
  workdir: str, tasks: Sequence[str], experts: int, member: int | None
) -> list[dict[str, Any]]:
  """The epochs of metrics.jsonl that have the gates of all tasks."""
  needed = {f"{gates.PREFIX}{t}/effective_experts" for t in tasks}
  needed |= {f"{gates.PREFIX}{t}/expert_{e}" for t in tasks for e in range(experts)}
  needed |= {gates.similarity_name(a, b) for a, b in itertools.combinations(tasks, 2)}
  records = logs.read_metrics(workdir)
  if member is not None:
    records = [{"epoch": r["epoch"], **logs.of_member(r, member)} for r in records]
  return [
    {name: x for name, x in record.items() if name == "epoch" or name.startswith(gates.PREFIX)}
    for record in records
    # A member that had stopped has nothing there.
    if all(record.get(name) is not None for name in needed)
  ]


# ---- Reading measures by name ----------------------------------------------------------


def _of_task(measures: Mapping[str, Any], task: str) -> dict[str, float]:
  prefix = f"{gates.PREFIX}{task}/"
  return {k.removeprefix(prefix): v for k, v in measures.items() if k.startswith(prefix)}


def _mean_gate(measures: Mapping[str, Any], task: str, experts: Sequence[int]) -> np.ndarray:
  return np.array([measures[f"{gates.PREFIX}{task}/expert_{e}"] for e in experts])


def _similarity(measures: Mapping[str, Any], a: str, b: str) -> float:
  names = (gates.similarity_name(a, b), gates.similarity_name(b, a))
  return 1.0 if a == b else next(measures[name] for name in names if name in measures)


def _mean_similarity(measures: Mapping[str, Any], tasks: Sequence[str]) -> float:
  return float(np.mean([_similarity(measures, a, b) for a, b in itertools.combinations(tasks, 2)]))


# ---- Tables and plots ------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"

  return [line(head), "|---" * len(head) + "|", *map(line, rows)]


def _rows_by_value(
  column: str, groups: Sequence[Mapping[str, Any]], tasks: Sequence[str], experts: Sequence[int]
) -> tuple[list[str], list[list[str]]]:
  """Head and rows of a table: one row a value of the column, or an epoch, which counts no rows."""
  head = [column, "rows"] if "rows" in groups[0] else [column]
  for task in tasks:
    head += [f"{task}: effective experts", "most weight"]
  head += ["how alike"] if len(tasks) > 1 else []
  rows = []
  for group in groups:
    cells = [group["value"], f"{group['rows']:,}"] if "rows" in group else [str(group["epoch"])]
    for task in tasks:
      mean_E = _mean_gate(group, task, experts)
      most = mean_E.argmax()
      effective = group[f"{gates.PREFIX}{task}/effective_experts"]
      cells += [f"{effective:.2f}", f"expert {most} ({mean_E[most]:.2f})"]
    cells += [f"{_mean_similarity(group, tasks):.3f}"] if len(tasks) > 1 else []
    rows.append(cells)
  return head, rows


def _short(text: str, length: int = 34) -> str:
  return text if len(text) <= length else text[: length - 1] + "…"


def _heat(
  axis: Any,
  values: np.ndarray,
  rows: Sequence[str],
  columns: Sequence[str],
  top: float,
  annotate: bool,
) -> Any:
  """Draws values from 0 to `top` as a heat map, with their numbers if `annotate`."""
  image = axis.imshow(values, vmin=0.0, vmax=top, cmap="Blues", aspect="auto")
  # Where there are many columns, not every one is named.
  step = math.ceil(len(columns) / 16)
  axis.set_xticks(range(0, len(columns), step), columns[::step])
  axis.set_yticks(range(len(rows)), rows)
  axis.tick_params(length=0)
  if annotate:
    for r, c in np.ndindex(*values.shape):
      colour = "white" if values[r, c] > 0.6 * top else "black"
      text = f"{values[r, c]:.2f}"
      axis.text(c, r, text, ha="center", va="center", fontsize=8, color=colour)
  return image


def _experts_figure(report: Mapping[str, Any]) -> Figure:
  tasks, experts = report["tasks"], range(report["experts"])
  values = np.stack([_mean_gate(report["all"], task, experts) for task in tasks])
  width = 3.2 + min(max(0.5 * len(experts), 2.0), 12.0)
  figure = Figure(figsize=(width, 1.4 + 0.5 * len(tasks)), layout="constrained")
  axis = figure.subplots()
  image = _heat(axis, values, tasks, list(map(str, experts)), values.max(), len(experts) <= 16)
  axis.set(xlabel="expert", title=f"mean gate weight, {report['rows']:,} {report['split']} rows")
  figure.colorbar(image, ax=axis)
  return figure


def _groups_figure(
  report: Mapping[str, Any], ylabel: str, groups: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> Figure:
  """A heat map a task, groups by experts; effective experts and similarity beside them."""
  tasks, experts = report["tasks"], range(report["experts"])
  values_TxGxE = np.array([[_mean_gate(g, t, experts) for g in groups] for t in tasks])
  wide = min(max(0.4 * len(experts), 2.0), 8.0)
  widths = [*[wide] * len(tasks), 2.2, *[2.0] * (len(tasks) > 1)]
  size = (sum(widths) + 1.2 + 0.075 * max(map(len, labels)), 1.5 + 0.27 * max(len(groups), 3))
  figure = Figure(figsize=size, layout="constrained")
  axes = figure.subplots(1, len(widths), sharey=True, width_ratios=widths, squeeze=False)[0]
  top = values_TxGxE.max()
  annotate = len(experts) <= 8
  for axis, task, values_GxE in zip(axes, tasks, values_TxGxE, strict=False):
    image = _heat(axis, values_GxE, labels, list(map(str, experts)), top, annotate)
    axis.set(title=f"{task}\nmean gate weight", xlabel="expert")
  axes[0].set_ylabel(ylabel)
  figure.colorbar(image, ax=axes[len(tasks) - 1])
  at = range(len(groups))
  effective = axes[len(tasks)]
  for task, marker in zip(tasks, itertools.cycle("osD^v"), strict=False):
    counts = [g[f"{gates.PREFIX}{task}/effective_experts"] for g in groups]
    effective.plot(counts, at, marker=marker, linestyle="", label=task)
  effective.set(title="effective experts", xlim=(0.5, len(experts) + 0.5))
  effective.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.4 / size[1]))
  if len(tasks) > 1:
    axes[-1].plot([_mean_similarity(g, tasks) for g in groups], at, "o", color="black")
    pairs = "the gates are" if len(tasks) == 2 else "two gates are"
    axes[-1].set(title=f"how alike\n{pairs}", xlim=(-0.03, 1.03))
  for axis in axes[len(tasks) :]:
    axis.grid(alpha=0.3)
    axis.tick_params(axis="y", left=False)
  return figure


def main(argv: list[str]) -> None:
  """The command line: measures, warns, and leaves the files."""
  del argv
  cache.keep_programs()
  report = measure(_WORKDIR.value, _DATA.value, _SPLIT.value, _BY.value, _MEMBER.value)
  for line in report["warnings"]:
    print(f"warning: {line}", file=sys.stderr)
  os.makedirs(_OUT.value, exist_ok=True)
  plots = []
  for name, figure in figures(report).items():
    plots.append(f"gates_{re.sub(r'[^A-Za-z0-9_-]', '_', name)}.png")
    figure.savefig(os.path.join(_OUT.value, plots[-1]), dpi=120)
  write_atomically(os.path.join(_OUT.value, "gates.json"), json.dumps(report, indent=1))
  write_atomically(os.path.join(_OUT.value, "gates.md"), markdown(report, plots))
  for task in report["tasks"]:
    effective = report["all"][f"{gates.PREFIX}{task}/effective_experts"]
    print(f"{task}: {effective:.2f} of {report['experts']} experts in effect")
  print(f"everything is in {_OUT.value}: gates.md, gates.json, {', '.join(plots)}")


if __name__ == "__main__":
  _WORKDIR = flags.DEFINE_string("workdir", None, "Of a training run.", required=True)
  _MEMBER = flags.DEFINE_integer("member", None, "Which member, where WORKDIR is a population's.")
  _DATA = flags.DEFINE_string("data", "", "Prepared data; where the run has it from, if empty.")
  _SPLIT = flags.DEFINE_string("split", "validation", f"One of {', '.join(data.SPLITS)}.")
  _BY = flags.DEFINE_list("by", None, f"Columns; {','.join(COLUMNS)} where they exist.")
  _OUT = flags.DEFINE_string("out", None, "The folder to write, made if absent.", required=True)
  errors.run(main)
