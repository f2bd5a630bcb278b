"""Measurements of a run's gates: over a split, by the values of columns, and by epoch."""

import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mmoe_jax import data, parallel
from mmoe_jax.errors import UserError, require_known
from mmoe_jax.evaluation import evaluate, gate_statistics
from mmoe_jax.evaluation.gate_statistics import PREFIX, similarity_name
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.prediction.splits import data_folder, load_split
from mmoe_jax.workdir import contract, logs

COLUMNS = ("age", "sex", "education")  # Default columns, where the data has them.
_EDGES = {"age": (16, 25, 35, 45, 55, 65)}  # Lower ends of a column's ranges, from the second.
_FEW_VALUES = 20  # Of a column that rows are grouped by, where the data has none of COLUMNS.
_MAX_SINGLE_NUMBERS = 10  # More distinct numbers are grouped into ranges.


def measure_gates(
  workdir: str,
  data_dir: str = "",
  split: str = "validation",
  by: Sequence[str] | None = None,
  member: int | None = None,
) -> dict[str, Any]:
  """Measures the gates of a run's best variables; all rows have equal weight.

  Args:
    workdir: work directory of the run.
    data_dir: prepared data; empty for that of the run.
    split: one of data.SPLITS.
    by: columns of the prepared data by which rows are grouped, also such that are no features of
      the run; None for those of COLUMNS that exist, or the first ones of few values.
    member: member, if the run is a population.

  Returns:
    Content of gates.json. `all`: measures by the names of gate_statistics.scalars; `by`: column ->
    a list with `value`, `rows` and the measures for each value or range that occurs; `by_epoch`:
    the measures logged in training, with `epoch`; `warnings`; and the settings of the measurement.

  Raises:
    UserError: for a model without gates, an unknown split or column, or data of another run.
  """
  require_known(split, data.SPLITS, "--split")
  predictor = Predictor(workdir, member)
  directory = data_folder(predictor.workdir, data_dir)
  data.verify(directory)
  full = data.restore_schema(os.path.join(directory, data.SCHEMA_FILE))
  groups = _group_rows(directory, split, full, by)
  features = load_split(directory, split, predictor).features
  return _measure(predictor, directory, split, features, groups) | {"workdir": workdir}


def measure_gates_of_rows(
  predictor: Predictor,
  directory: str,
  split: str,
  features: Mapping[str, np.ndarray],
  rows_N: np.ndarray,
) -> dict[str, Any]:
  """Measures the gates on rows of a split that are loaded already.

  Args:
    predictor: the run, or a member of a population.
    directory: folder of the prepared data.
    split: one of data.SPLITS.
    features: features of the rows, see data.Split.
    rows_N: their numbers in the split.

  Returns:
    As `measure_gates`, by its default columns.

  Raises:
    UserError: for a model without gates.
  """
  full = data.restore_schema(os.path.join(directory, data.SCHEMA_FILE))
  found = _group_rows(directory, split, full, None)
  groups = {
    column: [(value, mask[rows_N]) for value, mask in of_column if mask[rows_N].any()]
    for column, of_column in found.items()
  }
  return _measure(predictor, directory, split, features, groups)


def measure_gates_of_members(
  predictor: Predictor, features: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
  """Measures the gates of each member of a population on the same rows.

  Experts of different members have nothing to do with each other, so that gates are not averaged.

  Args:
    predictor: the mean of the members.
    features: features of the rows, see data.Split.

  Returns:
    For each of predictor.members: `member`, `experts`, `all` and `warnings` as in `measure_gates`.

  Raises:
    UserError: for a model without gates.
  """
  rows, tasks = len(features["ids"]), [task.name for task in predictor.schema.tasks]
  chunks = evaluate.to_chunks(features)
  predict = parallel.jit(evaluate.make_predict_with_gates(predictor.model))
  statistics = jax.jit(gate_statistics.statistics)
  found = []
  for member, variables in zip(predictor.members, predictor.each_variables(), strict=True):
    _, gates_TxNxE = predict(variables, chunks)
    if gates_TxNxE is None:
      raise UserError(f"{predictor.workdir}: the model has no gates to report on")
    whole = jax.device_get(statistics(gates_TxNxE[:, :rows], np.ones(rows, np.float32)))
    found.append(
      {
        "member": member,
        "experts": gates_TxNxE.shape[2],
        "all": gate_statistics.scalars(whole, tasks),
        "warnings": gate_statistics.collapsed(whole, tasks),
      }
    )
  return found


def _measure(
  predictor: Predictor,
  directory: str,
  split: str,
  features: Mapping[str, np.ndarray],
  groups: Mapping[str, Sequence[tuple[str, np.ndarray]]],
) -> dict[str, Any]:
  workdir, member, rows = predictor.workdir, predictor.member, len(features["ids"])
  config = ConfigDict(contract.read_config(workdir))
  predict = parallel.jit(evaluate.make_predict_with_gates(predictor.model))
  _, gates_TxNxE = predict(predictor.variables, evaluate.to_chunks(features))
  if gates_TxNxE is None:
    raise UserError(f"{workdir}: the model '{config.model.name}' has no gates to report on")
  gates_TxNxE = gates_TxNxE[:, :rows]
  tasks, experts = [task.name for task in predictor.schema.tasks], gates_TxNxE.shape[2]
  statistics = jax.jit(gate_statistics.statistics)
  whole = jax.device_get(statistics(gates_TxNxE, np.ones(rows, np.float32)))
  return {
    "workdir": workdir,
    "member": member,
    "data": directory,
    "split": split,
    "rows": rows,
    "model": config.model.name,
    "tasks": tasks,
    "experts": experts,
    "thresholds": {
      "in_use": gate_statistics.IN_USE / experts,
      "collapsed": gate_statistics.COLLAPSED,
      "same": gate_statistics.SAME,
    },
    "warnings": gate_statistics.collapsed(whole, tasks),
    "all": gate_statistics.scalars(whole, tasks),
    "by": {column: _measure_groups(gates_TxNxE, masks, tasks) for column, masks in groups.items()},
    "by_epoch": _read_epochs(workdir, tasks, experts, predictor, member),
  }


def category_groups(ids_N: np.ndarray, values: Sequence[str]) -> list[tuple[str, np.ndarray]]:
  """Groups rows by category, the most frequent first; only categories that occur.

  Args:
    ids_N: id of each row's category.
    values: value of each id.

  Returns:
    (value, (N,) bool) of each group.
  """
  ids, counts = np.unique(ids_N, return_counts=True)
  return [(str(values[i]), ids_N == i) for i in ids[np.argsort(-counts, kind="stable")]]


def number_groups(
  numbers_N: np.ndarray, edges: Sequence[float] | None = None
) -> list[tuple[str, np.ndarray]]:
  """Groups rows by ascending ranges of a number, named by the ends that occur.

  Args:
    numbers_N: the numbers.
    edges: lower ends of the ranges, from the second. None for single numbers if there are at most
      _MAX_SINGLE_NUMBERS; else about five ranges of equally many rows, with a separate range for 0
      if it is the least number and in over a tenth of the rows.

  Returns:
    (range, (N,) bool) of each group.
  """
  distinct = np.unique(numbers_N)
  if edges is None and len(distinct) <= _MAX_SINGLE_NUMBERS:
    edges = distinct[1:]
  elif edges is None and distinct[0] == 0 and (numbers_N == 0).mean() > 0.1:
    quartiles = np.quantile(numbers_N[numbers_N > 0], [0.25, 0.5, 0.75], method="higher")
    edges = np.unique([distinct[1], *quartiles])
  elif edges is None:
    edges = np.unique(np.quantile(numbers_N, [0.2, 0.4, 0.6, 0.8], method="higher"))
  ranges_N = np.searchsorted(np.asarray(edges), numbers_N, side="right")
  masks = [ranges_N == i for i in np.unique(ranges_N)]
  return [(_format_range(numbers_N[mask]), mask) for mask in masks]


def _format_range(numbers: np.ndarray) -> str:
  low, high = numbers.min(), numbers.max()
  if low == high:
    return f"{low:,.4g}" if low % 1 else f"{low:,.0f}"
  if low % 1 or high % 1 or low < 0:
    return f"{low:,.3g} to {high:,.3g}"
  return f"{low:,.0f}-{high:,.0f}"


def _group_rows(
  directory: str, split: str, schema: data.Schema, by: Sequence[str] | None
) -> dict[str, list[tuple[str, np.ndarray]]]:
  """Returns column -> (value or range, (N,) bool), from the prepared arrays of all columns."""
  categories = [feature.name for feature in schema.id_features if feature.kind == "category"]
  numbers = [feature.name for feature in schema.numeric]
  known = [*categories, *numbers]
  if by is None:
    few = [f.name for f in schema.id_features if f.name in categories and f.size <= _FEW_VALUES]
    by = [column for column in COLUMNS if column in known] or few[: len(COLUMNS)]
  for column in by:
    require_known(column, known, "a column in --by")

  stored = data.Shards(directory, split, schema)
  groups = {}
  for column in by:
    if column in numbers:
      numbers_N = np.array(stored.whole("numbers")[:, numbers.index(column)])
      groups[column] = _groups_with_missing(numbers_N, _EDGES.get(column))
    else:
      ids_N = np.array(stored.whole("ids")[:, schema.id_columns[column].start])
      values = ("(unknown)", *schema.id_feature(column).values)
      groups[column] = category_groups(ids_N, values)
  return groups


def _groups_with_missing(
  numbers_N: np.ndarray, edges: Sequence[float] | None
) -> list[tuple[str, np.ndarray]]:
  """Groups rows by number_groups, with a group of the missing numbers if there are any."""
  is_missing = np.isnan(numbers_N)
  if not is_missing.any():
    return number_groups(numbers_N, edges)
  groups = [("(missing)", is_missing)]
  for value, mask in number_groups(numbers_N[~is_missing], edges) if not is_missing.all() else ():
    rows = np.zeros(len(numbers_N), bool)
    rows[~is_missing] = mask
    groups.append((value, rows))
  return groups


@jax.jit
def _statistics_of_groups(gates_TxNxE: jax.Array, weights_GxN: jax.Array) -> dict[str, jax.Array]:
  # One group at a time: each needs temporary arrays as large as the gates.
  return jax.lax.map(functools.partial(gate_statistics.statistics, gates_TxNxE), weights_GxN)


def _measure_groups(
  gates_TxNxE: jax.Array, groups: Sequence[tuple[str, np.ndarray]], tasks: Sequence[str]
) -> list[dict[str, Any]]:
  weights_GxN = np.stack([mask for _, mask in groups]).astype(np.float32)
  measured = jax.device_get(_statistics_of_groups(gates_TxNxE, weights_GxN))
  return [
    {"value": value, "rows": int(mask.sum())}
    | gate_statistics.scalars({name: array[g] for name, array in measured.items()}, tasks)
    for g, (value, mask) in enumerate(groups)
  ]


def _read_epochs(
  workdir: str, tasks: Sequence[str], experts: int, predictor: Predictor, member: int | None
) -> list[dict[str, Any]]:
  """Returns the epochs of metrics.jsonl that have the gates of all tasks."""
  needed = {f"{PREFIX}{t}/effective_experts" for t in tasks}
  needed |= {f"{PREFIX}{t}/expert_{e}" for t in tasks for e in range(experts)}
  needed |= {similarity_name(a, b) for a, b in itertools.combinations(tasks, 2)}
  logs.verify_metrics(workdir, logs.read_metrics(workdir, predictor.epoch), predictor.log)
  records = logs.read_metrics(workdir)
  if member is not None:
    records = [{"epoch": r["epoch"], **logs.of_member(r, member)} for r in records]
  return [
    {k: x for k, x in record.items() if k == "epoch" or k.startswith(PREFIX)}
    for record in records
    # A member that has stopped has no values.
    if all(isinstance(record.get(name), int | float) for name in needed)
  ]
