"""First pass over a table: rows per split, and statistics of the train rows."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_prep import arrays, splitting
from data_prep import spec as spec_lib
from data_prep.column_counts import (
  DistinctCounts,
  NumberCounts,
  TextCounts,
  count_distinct,
  count_numbers,
  count_texts,
  merge_distinct,
  merge_numbers,
  merge_texts,
)
from data_prep.fitting import Statistics
from data_prep.parts import PartJob, tables_of
from mmoe_jax import data
from mmoe_jax.data import conditions
from mmoe_jax.data.columns import Table


@dataclasses.dataclass(frozen=True)
class Collected:
  """Result of the first pass over some parts: rows per split, and statistics of train rows."""

  rows: tuple[int, ...]
  statistics: Statistics


def collect(job: PartJob, reader: Callable[..., Any] | None = None) -> Collected:
  """First pass over a part."""
  found = [_collect(job.spec, table, splits) for table, splits in tables_of(job, reader)]
  return merge(found)


def _collect(spec: spec_lib.Spec, table: Table, splits: np.ndarray) -> Collected:
  is_train = splits == splitting.TRAIN
  rows = tuple(np.bincount(splits, minlength=len(data.SPLITS)).tolist())
  texts, numbers, lengths, labels, distinct = {}, {}, {}, {}, {}
  for name, column in spec.columns.items():
    if column.role == "category" and not column.vocabulary:
      texts[name] = count_texts(table.factor(name), is_train)
    elif column.role == "hash":
      distinct[name] = count_distinct(table.factor(name), is_train)
    elif column.role == "number":
      x_N = table.numbers(name)
      numbers[name] = count_numbers(x_N if is_train.all() else x_N[is_train])
    elif column.role == "list":
      values = table.lists(name, column.separator)
      in_train = is_train[values.rows]
      if not column.vocabulary and not column.buckets:
        texts[name] = count_texts(values.values, in_train)
      if column.buckets:
        distinct[name] = count_distinct(values.values, in_train)
      lengths[name] = int(np.bincount(values.rows[in_train], minlength=1).max())
  for task in spec_lib.to_tasks(spec):
    labels[task.name] = _count_labels(task, table, is_train)
  return Collected(rows, Statistics(texts, numbers, lengths, labels, distinct))


def _count_labels(task: data.Task, table: Table, is_train: np.ndarray) -> TextCounts | NumberCounts:
  rows = is_train
  if task.labelled:
    rows = rows & (conditions.evaluate(conditions.parse_condition(task.labelled), table) == 1)
  if task.kind == "regression":
    return count_numbers(table.numbers(task.column)[rows])
  if task.column:
    return count_texts(table.factor(task.column), rows)
  return arrays.count_labels(task, table, rows)


def merge(parts: Sequence[Collected]) -> Collected:
  """Adds the results of parts."""
  statistics = [part.statistics for part in parts]

  def merged(group: str) -> dict[str, Any]:
    of_first = getattr(statistics[0], group)
    return {name: _merge_counts([getattr(s, group)[name] for s in statistics]) for name in of_first}

  return Collected(
    tuple(np.sum([part.rows for part in parts], axis=0).tolist()),
    Statistics(*(merged(field.name) for field in dataclasses.fields(Statistics))),
  )


def _merge_counts(parts: Sequence[Any]) -> Any:
  if isinstance(parts[0], TextCounts):
    return merge_texts(parts)
  if isinstance(parts[0], DistinctCounts):
    return merge_distinct(parts)
  return merge_numbers(parts) if isinstance(parts[0], NumberCounts) else max(parts)
