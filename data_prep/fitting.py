"""Fitting of a schema from statistics of train rows: vocabularies, bins, means, tasks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.column_counts import (
  DistinctCounts,
  NumberCounts,
  TextCounts,
  count_values,
  merge_texts,
)
from data_prep.spec import Column, Spec, to_tasks
from mmoe_jax import data
from mmoe_jax.data import locations
from mmoe_jax.data.columns import MISSING, SPACES
from mmoe_jax.data.schema import TIME_PARTS
from mmoe_jax.data.vocabularies import Vocabulary, to_values
from mmoe_jax.errors import require

MAX_LENGTH = 32  # Values of a list that are kept, unless the spec says otherwise.
_MAX_VALUES = 1 << 28  # Of a vocabulary; larger ones are to be hashed.
_MAX_CLASSES = 10_000
_MAX_LISTED = 100  # Values of a binary task's column that are listed.
_QUANTILES = 256
Values = tuple[str, ...] | Vocabulary


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Statistics of the train rows.

  Attributes:
    texts: column -> counts of its texts; of a list, of its values.
    numbers: column -> counts of its numbers.
    lengths: column of lists -> largest number of values.
    labels: task -> counts of its labels: texts, or numbers of a regression.
    distinct: hashed column -> number of its distinct values.
  """

  texts: Mapping[str, TextCounts]
  numbers: Mapping[str, NumberCounts]
  lengths: Mapping[str, int]
  labels: Mapping[str, TextCounts | NumberCounts]
  distinct: Mapping[str, DistinctCounts]


def fit(spec: Spec, statistics: Statistics, **fields: Any) -> data.Schema:
  """Fits a schema on train rows.

  Args:
    spec: the spec of the table.
    statistics: statistics of the train rows.
    **fields: the other fields of Schema.

  Raises:
    UserError: if a column or task cannot be fitted, such as a task without positive rows.
  """
  features: list[data.IdFeature] = []
  numeric: list[data.NumericFeature] = []
  vocabularies: dict[tuple[str, ...], Values] = {}

  def vocabulary_of(name: str) -> Values:
    columns = spec.tables.get(spec.columns[name].table, (name,))
    if columns not in vocabularies:
      vocabularies[columns] = _fit_vocabulary(columns, spec.columns[name], spec, statistics.texts)
    return vocabularies[columns]

  for name, column in spec.columns.items():
    if column.role == "category":
      values = vocabulary_of(name)
      features.append(data.IdFeature(name, "category", (name,), values, table=column.table))
    elif column.role == "hash":
      buckets = column.buckets
      features.append(data.IdFeature(name, "hash", (name,), buckets=buckets, table=column.table))
    elif column.role == "list":
      values = () if column.buckets else vocabulary_of(name)
      features.append(_fit_list(name, column, values, statistics.lengths[name]))
    elif column.role == "time":
      features += [
        data.IdFeature(f"{name}_{part}", part, (name,), tuple(TIME_PARTS[part]))
        for part in column.parts
      ]
  for name in spec.of_role("number"):
    number, ids = fit_number(name, spec.columns[name], statistics.numbers[name])
    numeric.append(number)
    features += ids
  _require_distinct([f.name for f in features])
  return data.Schema(
    id_features=tuple(features),
    numeric=tuple(numeric),
    tasks=tuple(fit_task(task, statistics.labels[task.name]) for task in to_tasks(spec)),
    weight_column=spec.weight,
    slices=tuple(data.Slice(name, text) for name, text in spec.slices.items()),
    protocols=spec.protocols or {"all": ()},
    crosses=spec.crosses,
    keep=spec.of_role("keep"),
    missing={name: c.missing for name, c in spec.columns.items() if c.missing},
    separator=spec.separator,
    **fields,
  )


def fit_number(
  name: str, column: Column, counts: NumberCounts
) -> tuple[data.NumericFeature, list[data.IdFeature]]:
  """Fits a column of numbers: standardised, as quantile bins, and as log_int if requested.

  Raises:
    UserError: if it has no numbers, or negative ones where logarithms are taken.
  """
  require(len(counts.values) > 0, f"column '{name}': no train row has a number; ignore it")
  values = counts.values
  if column.transform == "log1p" or column.log_int:
    require(
      counts.least >= 0,
      f"column '{name}': has the value {counts.least:g}; logarithms need numbers of at least 0; "
      "use another transform",
    )
  points: tuple[float, ...] = ()
  transformed = values
  if column.transform == "log1p":
    transformed = np.log1p(values)
  elif column.transform == "quantile":
    points = tuple(counts.quantiles(_QUANTILES).tolist())
    transformed = data.quantiles(values, points)
  mean, std = counts.moments(transformed)
  has_missing = counts.missing > 0
  number = data.NumericFeature(name, mean, std or 1.0, column.transform, has_missing, points)
  edges = bin_edges(counts, column.bins)
  bins = data.IdFeature(
    f"{name}_bins", "bins", (name,), tuple(edges.tolist()), has_missing=has_missing
  )
  if not column.log_int:
    return number, [bins]
  log_int = np.unique(np.floor(np.log1p(values)))
  return number, [
    bins,
    data.IdFeature(f"{name}_log_int", "log_int", (name,), tuple(log_int.tolist())),
  ]


def fit_task(task: data.Task, labels: TextCounts | NumberCounts) -> data.Task:
  """Returns the task with values, classes, or mean and standard deviation.

  Args:
    task: a task of a spec.
    labels: counts of its labels in train rows: texts of its column, "1" and "0" for a condition,
      numbers of a regression.

  Raises:
    UserError: if positive or negative rows do not occur, or all rows have the same value.
  """
  where = f"task {task.name}"
  if isinstance(labels, NumberCounts):
    require(
      len(labels.values) > 1,
      f"{where}: all train rows have the same {task.column}, or none has any",
    )
    mean, std = labels.moments(labels.values)
    return dataclasses.replace(task, mean=mean, std=std)
  values = [v for v in labels.sorted()[0] if v != MISSING]
  if task.condition and not task.column:
    for value, word in (("1", "positive"), ("0", "negative")):
      require(value in values, f"{where}: no train row is {word} ({task.condition})")
    return task
  absent = [v for v in task.positive if v not in values]
  require(
    not absent,
    f"{where}: no train row has {task.column} {', '.join(map(repr, absent))}; it has "
    f"{', '.join(map(repr, values[:5]))}{', …' if len(values) > 5 else ''}",
  )
  if task.kind == "binary":
    negative = tuple(v for v in values if v not in task.positive)
    require(bool(negative), f"{where}: every train row is positive")
    if len(values) > _MAX_LISTED:
      return dataclasses.replace(task, column="", positive=())
    # With all values listed, one that train rows do not have is an error, not a negative.
    return dataclasses.replace(task, negative=negative, condition="")
  require(
    len(values) <= _MAX_CLASSES,
    f"{where}: {task.column} has {len(values):,} values, must have at most {_MAX_CLASSES:,}",
  )
  require(len(values) > 1, f"{where}: all train rows have the same {task.column}")
  return dataclasses.replace(task, classes=tuple(values))


def bin_edges(counts: NumberCounts, max_bins: int) -> np.ndarray:
  """Returns lower edges of bins with about equally many rows; equal values stay together.

  A value that would fill a bin gets a separate bin, and quantiles are taken over the other values:
  most people have no capital gains, and plain quantiles would put all others into one or two bins.
  If there are no more distinct values than bins, each has its own bin.

  Args:
    counts: counts of the numbers.
    max_bins: maximum number of bins.

  Returns:
    Ascending edges; the first is the smallest value.
  """
  values = counts.values.copy()
  # A bucket of negative numbers is counted at its upper end.
  values[0] = counts.least
  if len(values) <= max_bins:
    return values
  # Each heavy value takes one bin and may split another in two.
  total = int(counts.counts.sum())
  heavy = counts.counts * max_bins > total
  max_heavy = (max_bins - 1) // 2
  heavy[np.argsort(-counts.counts, kind="stable")[max_heavy:]] = False
  budget = max(1, max_bins - 2 * int(heavy.sum()))
  light = np.cumsum(np.where(heavy, 0, counts.counts)) / counts.counts[~heavy].sum()
  bin_of = np.minimum((light - 1e-9) * budget, budget - 1).astype(int)
  starts = np.ones(len(values), bool)
  starts[1:] = heavy[1:] | heavy[:-1] | (bin_of[1:] != bin_of[:-1])
  return values[starts]


def _fit_vocabulary(
  names: Sequence[str], column: Column, spec: Spec, counts: Mapping[str, TextCounts]
) -> Values:
  """Returns the values that get an id, in ascending order.

  Args:
    names: the columns that share the vocabulary.
    column: settings of one of them.
    spec: the spec.
    counts: column -> counts of its texts.
  """
  if column.vocabulary:
    lines = pa.array(locations.read_text(column.vocabulary).splitlines(), pa.string())
    found = count_values(pc.utf8_trim(lines, SPACES)).sorted_array()[0]
    found = found.filter(pc.not_equal(found, MISSING))
  else:
    found, numbers = merge_texts([counts[name] for name in names]).sorted_array()
    is_known = numbers >= column.min_count
    if all(spec.columns[name].role == "list" for name in names):
      is_known &= np.asarray(pc.not_equal(found, MISSING))
    found = found.filter(pa.array(is_known))
  where = f"column '{names[0]}'"
  require(
    len(found) > 0,
    f"{where}: no value "
    + ("in its vocabulary" if column.vocabulary else f"in at least {column.min_count} train rows"),
  )
  require(
    len(found) <= _MAX_VALUES,
    f"{where}: has {len(found):,} values; hash it: role = 'hash' and a number of buckets",
  )
  return to_values(found)


def _fit_list(name: str, column: Column, values: Values, longest: int) -> data.IdFeature:
  return data.IdFeature(
    name,
    "list",
    (name,),
    values,
    buckets=column.buckets,
    length=column.length or min(MAX_LENGTH, max(1, longest)),
    pooling=column.pooling,
    separator=column.separator,
    table=column.table,
  )


def _require_distinct(names: list[str]) -> None:
  repeated = [name for i, name in enumerate(names) if name in names[:i]]
  require(
    not repeated,
    f"two features have the name '{repeated[0] if repeated else ''}'; rename a column, since "
    "features of numbers and times end in _bins, _hour and the like",
  )
