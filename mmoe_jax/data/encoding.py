"""Encoding of raw rows: the one path from a table to arrays, for preparation and prediction.

Shape letters: N rows, F id features, D numeric features, T tasks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mmoe_jax.data.schema import UNKNOWN, EncodedRows, IdFeature, Schema, Task
from mmoe_jax.data.tables import parse_numbers
from mmoe_jax.errors import UserError, require


def encode(
  schema: Schema, frame: pd.DataFrame, *, labels: bool = False, where: str = "the table"
) -> EncodedRows:
  """Encodes raw rows.

  Args:
    schema: the schema.
    frame: raw rows as strings, as tables.read_table gives them. Columns may be in any order;
      columns that the schema does not use are ignored.
    labels: whether to encode the tasks' columns and the sample weights, too.
    where: name of the table in errors, such as its file name.

  Returns:
    EncodedRows of len(frame) rows.

  Raises:
    UserError: naming the column that is missing, or line and column of a value that is not a
      number (or negative, where logarithms are taken), or not a value of a task.
  """
  _require_columns(schema, frame, labels, where)
  numbers: dict[str, np.ndarray] = {}
  signed = {n.name for n in schema.numeric if n.transform == "identity"}

  def number(column: str) -> np.ndarray:
    if column not in numbers:
      least = -math.inf if column in signed else 0.0
      numbers[column] = parse_numbers(frame, column, where, least)
    return numbers[column]

  ids: dict[str, np.ndarray] = {}
  for feature in schema.id_features:
    if feature.kind == "category":
      ids[feature.name] = _lookup(frame[feature.sources[0]], feature.values)
    elif feature.kind == "cross":
      ids[feature.name] = cross_ids(schema, feature, ids)
    else:
      ids[feature.name] = _ids_of_numbers(feature, number(feature.sources[0]))
  rows = len(frame)
  encoded = EncodedRows(
    ids=stack([ids[f.name] for f in schema.id_features], rows, id_dtype(schema)),
    numbers=stack([number(n.name) for n in schema.numeric], rows, np.float64),
  )
  if not labels:
    return encoded
  return EncodedRows(
    ids=encoded.ids,
    numbers=encoded.numbers,
    labels=stack([_labels(frame, task, where) for task in schema.tasks], rows, np.float32),
    weights=number(schema.weight_column).astype(np.float32)
    if schema.weight_column
    else np.ones(rows, np.float32),
  )


def to_features(schema: Schema, rows: EncodedRows) -> dict[str, np.ndarray]:
  """Returns the features of encoded rows: `ids` (N, F), and `numeric` (N, D), standardised."""
  mean = np.array([n.mean for n in schema.numeric])
  std = np.array([n.std for n in schema.numeric])
  is_log = np.array([n.transform == "log1p" for n in schema.numeric], bool)
  x = np.array(rows.numbers, np.float64)
  np.log1p(x, out=x, where=is_log)
  return {"ids": np.asarray(rows.ids), "numeric": ((x - mean) / std).astype(np.float32)}


def count_unknown(schema: Schema, rows: EncodedRows) -> dict[str, int]:
  """Returns column -> number of rows whose value no train row had, for categories with any."""
  return {
    feature.sources[0]: count
    for feature, ids_N in zip(schema.id_features, rows.ids.T, strict=True)
    if feature.kind == "category" and (count := int((ids_N == UNKNOWN).sum()))
  }


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


def _require_columns(schema: Schema, frame: pd.DataFrame, labels: bool, where: str) -> None:
  needed = [c for f in schema.id_features if f.kind != "cross" for c in f.sources]
  needed += [n.name for n in schema.numeric]
  if labels:
    needed += [task.column for task in schema.tasks]
    needed += [schema.weight_column] if schema.weight_column else []
  missing = [c for c in dict.fromkeys(needed) if c not in frame.columns]
  require(not missing, f"{where}: column {', '.join(map(repr, missing))} is missing")


def _lookup(column: pd.Series, values: Sequence[str]) -> np.ndarray:
  """Returns the ids of a column's values, 0 for those not in `values`."""
  codes, distinct = pd.factorize(column)
  index = pd.Index(list(values), dtype=object)
  return (index.get_indexer(distinct.astype(object)) + 1)[codes]


def _ids_of_numbers(feature: IdFeature, x: np.ndarray) -> np.ndarray:
  values = np.asarray(feature.values)
  if feature.kind == "bins":
    # Numbers below the first edge, the least of the train rows, get id 0: unknown.
    return np.searchsorted(values, x, side="right")
  return _find(values, np.floor(np.log1p(x)))


def _find(values: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Returns the ids of numbers among sorted values, UNKNOWN for others."""
  at = np.minimum(np.searchsorted(values, x), len(values) - 1)
  return np.where(values[at] == x, at + 1, UNKNOWN)


def _labels(frame: pd.DataFrame, task: Task, where: str) -> np.ndarray:
  """Returns the labels (N,) of a task, NaN where its column is empty."""
  if task.kind == "regression":
    labels = np.full(len(frame), np.nan)
    is_known = (frame[task.column] != "").to_numpy()
    rows = frame.loc[is_known, [task.column]]
    values = parse_numbers(rows, task.column, where, -math.inf)
    labels[is_known] = (values - task.mean) / task.std
    return labels
  codes, values = pd.factorize(frame[task.column])
  known = {"": math.nan}
  if task.kind == "binary":
    known |= dict.fromkeys(task.negative, 0) | dict.fromkeys(task.positive, 1)
  else:
    known |= {value: number for number, value in enumerate(task.classes)}
  for code, value in enumerate(values):
    if value not in known:
      line = frame.index[int(np.argmax(codes == code))]
      raise UserError(
        f"{where}, line {line}, column '{task.column}': '{value}' is not a value of the task "
        f"'{task.name}'; leave it empty if the label is missing"
      )
  return np.array([known[v] for v in values], np.float32)[codes]
