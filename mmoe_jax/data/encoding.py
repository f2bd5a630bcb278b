"""Encoding of raw rows: the one path from a table to arrays, for preparation and prediction.

Shape letters: N rows, F columns of ids, D numeric features, T tasks, S slices, M values of a list.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mmoe_jax.data.columns import MISSING, SINGLE, Factor, Table, to_table
from mmoe_jax.data.conditions import evaluate, parse_condition
from mmoe_jax.data.schema import TIME_PARTS, UNKNOWN, EncodedRows, IdFeature, Schema, Task
from mmoe_jax.data.times import times_of
from mmoe_jax.data.vocabularies import Vocabulary

_FEW = 4096  # Distinct values up to which a dict of the vocabulary is faster than Arrow.


class Encoder:
  """Encoder of a schema; it holds the vocabularies in the form that lookups need."""

  def __init__(self, schema: Schema):
    """Prepares nothing yet: a vocabulary is indexed when it is first used."""
    self.schema = schema
    self._lookups = {
      f.name: _Lookup(f) for f in schema.id_features if f.kind in ("category", "hash", "list")
    }
    self._needed = {labels: needed_columns(schema, labels) for labels in (False, True)}
    self._columns = schema.id_columns
    self._dtype = id_dtype(schema)
    # Least allowed number of each numeric column, and whether it may be missing.
    self._numbers = {
      column: (_least_of(schema, column), _allows_missing(schema, column))
      for column in dict.fromkeys(
        [n.name for n in schema.numeric]
        + [f.sources[0] for f in schema.id_features if f.kind in ("bins", "log_int")]
      )
    }

  def __call__(self, rows: Any, *, labels: bool = False, where: str = "the table") -> EncodedRows:
    """Encodes raw rows.

    Args:
      rows: raw rows, of any kind that columns.to_table converts. Columns may be in any order;
        columns that the schema does not use are ignored.
      labels: whether to encode labels, sample weights and slices, too.
      where: name of the table in errors, such as its file name.

    Raises:
      UserError: naming the column that is missing, or line and column of a value that is not a
        number (or negative, where logarithms are taken), or not a value of a task.
    """
    table = to_table(rows, where)
    schema = self.schema
    table.missing = schema.missing
    table.require(self._needed[labels])
    unknown: dict[str, tuple[int, str]] = {}
    dropped: dict[str, int] = {}
    numbers = {
      column: required_numbers(table, column, *rules) for column, rules in self._numbers.items()
    }
    ids: dict[str, np.ndarray] = {}
    out = np.zeros((len(table), schema.id_count), self._dtype)
    for feature in schema.id_features:
      found = self._ids(feature, table, ids, numbers, unknown, dropped)
      ids[feature.name] = found
      at = self._columns[feature.name]
      out[:, at if found.ndim > 1 else at.start] = found
    encoded = {
      "ids": out,
      "numbers": stack([numbers[n.name] for n in schema.numeric], len(table), np.float64),
      "unknown": unknown,
      "dropped": dropped,
    }
    if labels:
      encoded |= self._targets(table)
    return EncodedRows(**encoded)

  def _targets(self, table: Table) -> dict[str, np.ndarray]:
    schema, rows = self.schema, len(table)
    slices = [evaluate(parse_condition(s.condition), table) == 1 for s in schema.slices]
    weights = np.ones(rows, np.float32)
    if schema.weight_column:
      weights = required_numbers(table, schema.weight_column, 0.0).astype(np.float32)
    return {
      "labels": stack([labels_of(task, table) for task in schema.tasks], rows, np.float32),
      "weights": weights,
      "slices": stack(slices, rows, bool),
    }

  def _ids(
    self,
    feature: IdFeature,
    table: Table,
    ids: Mapping[str, np.ndarray],
    numbers: Mapping[str, np.ndarray],
    unknown: dict[str, tuple[int, str]],
    dropped: dict[str, int],
  ) -> np.ndarray:
    """Returns the ids (N,) of a feature, (N, length) of a list."""
    column = feature.sources[0]
    if feature.kind == "cross":
      return cross_ids(self.schema, feature, ids)
    if feature.kind in TIME_PARTS:
      return _ids_of_times(feature, times_of(table, column))
    if feature.kind == "list":
      return self._ids_of_lists(feature, table, unknown, dropped)
    if feature.name in self._lookups:
      factor = table.factor(column)
      if factor.codes is SINGLE and feature.kind == "category":
        found = self._lookups[feature.name].single(factor.texts()[0])
        if not found[0]:
          _count_unknown(found, factor, column, unknown)
        return found
      of_value = self._lookups[feature.name].ids(factor)
      if feature.kind == "category" and not of_value.all():
        _count_unknown(of_value[factor.codes], factor, column, unknown)
      return of_value[factor.codes]
    return _ids_of_numbers(feature, numbers[column])

  def _ids_of_lists(
    self,
    feature: IdFeature,
    table: Table,
    unknown: dict[str, tuple[int, str]],
    dropped: dict[str, int],
  ) -> np.ndarray:
    column = feature.sources[0]
    rows, factor = table.lists(column, feature.separator)
    of_value = self._lookups[feature.name].ids(factor)
    found = of_value[factor.codes]
    if not feature.buckets:
      _count_unknown(found, factor, column, unknown)
    # Unknown values leave no gap: the first `length` known ones are kept.
    rows, found = rows[found != UNKNOWN], found[found != UNKNOWN]
    lengths = np.bincount(rows, minlength=len(table))
    positions = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    fits = positions < feature.length
    if not fits.all():
      dropped[column] = int((~fits).sum())
    out = np.zeros((len(table), feature.length), np.int64)
    out[rows[fits], positions[fits]] = found[fits]
    return out[:, 0] if feature.length == 1 else out


class _Lookup:
  """Lookup of a feature's values: by a dict for few, Arrow for many, a Vocabulary for very many."""

  def __init__(self, feature: IdFeature):
    self._feature = feature

  @functools.cached_property
  def _index(self) -> dict[str, int]:
    return {value: i for i, value in enumerate(self._feature.values, 1)}

  @functools.cached_property
  def _array(self) -> pa.Array:
    return pa.array(self._feature.values, pa.string())

  def single(self, value: str) -> np.ndarray:
    """Returns the id (1,) of one value, without work that only pays for many."""
    if isinstance(self._feature.values, Vocabulary):
      return self._feature.values.ids([value])
    return np.array((self._index.get(value, UNKNOWN),), np.int64)

  def ids(self, factor: Factor) -> np.ndarray:
    """Returns the id of each distinct value."""
    if self._feature.buckets:
      return hash_ids(factor.texts(), self._feature.buckets)
    if isinstance(self._feature.values, Vocabulary):
      return self._feature.values.ids(factor.values)
    if len(factor.values) <= _FEW:
      return np.array([self._index.get(v, UNKNOWN) for v in factor.texts()], np.int64)
    found = pc.index_in(pa.array(factor.values, pa.string()), value_set=self._array)
    return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) + 1


def encode(
  schema: Schema, rows: Any, *, labels: bool = False, where: str = "the table"
) -> EncodedRows:
  """Encodes raw rows once; see Encoder for many tables."""
  return Encoder(schema)(rows, labels=labels, where=where)


def needed_columns(schema: Schema, labels: bool = False) -> list[str]:
  """Returns the columns that encoding reads, each once."""
  needed = [c for f in schema.id_features if f.kind != "cross" for c in f.sources]
  needed += [n.name for n in schema.numeric]
  if labels:
    needed += [column for task in schema.tasks for column in task.columns]
    needed += [c for s in schema.slices for c in parse_condition(s.condition).columns]
    needed += [schema.weight_column] if schema.weight_column else []
  return list(dict.fromkeys(needed))


def hash_ids(texts: Sequence[str], buckets: int) -> np.ndarray:
  """Returns an id from 1 to `buckets` for each text, UNKNOWN for missing ones.

  The hash (SipHash with pandas' key) is the same on every machine.
  """
  values = np.array(texts, object)
  hashed = pd.util.hash_array(values, categorize=False) % np.uint64(buckets)
  return np.where(values == MISSING, UNKNOWN, hashed.astype(np.int64) + 1)


def required_numbers(
  table: Table, column: str, least: float = -math.inf, has_missing: bool = False
) -> np.ndarray:
  """Parses a column of numbers; NaN for missing ones, which must be allowed.

  Raises:
    UserError: naming the line of a missing or wrong number.
  """
  x_N = table.numbers(column, least)
  is_missing = np.isnan(x_N)
  if not has_missing and is_missing.any():
    bound = f" >= {least:g}" if math.isfinite(least) else ""
    table.refuse(
      column,
      is_missing,
      lambda row: f"'' is not a number{bound}; train rows have no missing value here",
    )
    x_N = np.where(is_missing, max(least, 0.0), x_N)
  return x_N


def cross_ids(schema: Schema, feature: IdFeature, ids: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns the ids (N,) of a crossed feature.

  Args:
    schema: the schema.
    feature: the crossed feature.
    ids: name -> ids (N,) of the two features that it is made of.
  """
  return _find(np.asarray(feature.values, np.int64), pair_numbers(schema, feature.sources, ids))


def pair_numbers(
  schema: Schema, sources: Sequence[str], ids: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Returns an integer per row for a pair of id features, first_id * size_of_second + second_id."""
  first, second = sources
  return ids[first].astype(np.int64) * schema.id_feature(second).size + ids[second]


def id_dtype(schema: Schema) -> np.dtype:
  """Returns the smallest unsigned type that holds all ids of a schema."""
  return np.min_scalar_type(max((f.size for f in schema.id_features), default=1) - 1)


def stack(columns: Sequence[np.ndarray], rows: int, dtype: Any) -> np.ndarray:
  """Stacks columns (N,) to (N, number of columns), which may be 0."""
  out = np.empty((rows, len(columns)), dtype)
  for i, column in enumerate(columns):
    out[:, i] = column
  return out


def labels_of(task: Task, table: Table) -> np.ndarray:
  """Returns the labels (N,) of a task, NaN where missing.

  Raises:
    UserError: naming the line of a value that is not a number, or not a value of the task.
  """
  labels = _labels(task, table)
  if task.labelled:
    labels = np.where(evaluate(parse_condition(task.labelled), table) == 1, labels, np.nan)
  return labels


def _labels(task: Task, table: Table) -> np.ndarray:
  if task.kind == "regression":
    return (table.numbers(task.column) - task.mean) / task.std
  if task.condition:
    return evaluate(parse_condition(task.condition), table)
  factor = table.factor(task.column)
  known: dict[str, float] = {MISSING: math.nan}
  if task.kind == "binary":
    known |= dict.fromkeys(task.negative, 0) | dict.fromkeys(task.positive, 1)
  else:
    known |= {value: number for number, value in enumerate(task.classes)}
  texts = factor.texts()
  is_known = np.array([text in known for text in texts], bool)[factor.codes]
  if not is_known.all():
    table.refuse(
      task.column,
      ~is_known,
      lambda row: (
        f"'{texts[factor.codes[row]]:.80}' is not a value of the task '{task.name}'; leave it "
        "empty if the label is missing"
      ),
    )
  return np.array([known.get(text, math.nan) for text in texts], np.float32)[factor.codes]


def _count_unknown(
  ids: np.ndarray, factor: Factor, column: str, unknown: dict[str, tuple[int, str]]
) -> None:
  is_unknown = ids == UNKNOWN
  if count := int(is_unknown.sum()):
    first = factor.codes[int(np.argmax(is_unknown))]
    unknown[column] = (count, str(factor.values[first]))


def _allows_missing(schema: Schema, column: str) -> bool:
  return any(n.has_missing for n in schema.numeric if n.name == column) or any(
    f.has_missing for f in schema.id_features if f.sources == (column,)
  )


def _least_of(schema: Schema, column: str) -> float:
  """Returns the smallest number that a column may have, by the features made from it."""
  is_log = any(f.kind == "log_int" for f in schema.id_features if f.sources == (column,))
  return max([n.least for n in schema.numeric if n.name == column] + [0.0 if is_log else -math.inf])


def _ids_of_numbers(feature: IdFeature, x: np.ndarray) -> np.ndarray:
  values = np.asarray(feature.values)
  if feature.kind == "bins":
    # Numbers below the first edge, the least of the train rows, get id 0: unknown.
    found = np.searchsorted(values, x, side="right")
    return np.where(np.isnan(x), len(values) + 1 if feature.has_missing else UNKNOWN, found)
  return _find(values, np.floor(np.log1p(x)))


def _ids_of_times(feature: IdFeature, times: np.ndarray) -> np.ndarray:
  is_known = ~np.isnat(times)
  part = _part_of(np.where(is_known, times, np.datetime64(0, "s")), feature.kind)
  return np.where(is_known, _find(np.asarray(feature.values), part), UNKNOWN)


def _part_of(times: np.ndarray, name: str) -> np.ndarray:
  """Returns a part of timestamps, see TIME_PARTS."""
  seconds = times.astype("datetime64[s]").astype(np.int64)
  if name == "minute":
    return seconds // 60 % 60
  if name == "hour":
    return seconds // 3600 % 24
  if name == "weekday":
    return (seconds // 86_400 + 3) % 7  # 1970 began on a Thursday.
  months = times.astype("datetime64[M]")
  if name == "month":
    return months.astype(np.int64) % 12 + 1
  return (times.astype("datetime64[D]") - months).astype(np.int64) + 1


def _find(values: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Returns the ids of numbers among sorted values, UNKNOWN for others."""
  if not len(values):
    return np.full(len(x), UNKNOWN)
  at = np.minimum(np.searchsorted(values, x), len(values) - 1)
  return np.where(values[at] == x, at + 1, UNKNOWN)
