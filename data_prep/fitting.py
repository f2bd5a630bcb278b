"""What every data preparation shares: fitting a schema on train rows, storing splits."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mmoe_jax import data, errors
from mmoe_jax.table import parse_numbers


def fit(
  frame: pd.DataFrame,
  *,
  categories: Sequence[str],
  numbers: Sequence[str],
  tasks: Sequence[tuple[str, str, Sequence[str]]],
  max_bins: int = 128,
  max_bins_of: Mapping[str, int] | None = None,
  **fields: Any,
) -> data.Schema:
  """Fits a schema on train rows: vocabularies, bins, means and deviations, from them alone.

  Args:
    frame: the train rows, raw strings.
    categories: nominal columns; ids follow the sorted order of their values.
    numbers: continuous columns, each offered standardised, as quantile bins and as log_int.
    tasks: (name, column, positive values) of each; every other value is negative.
    max_bins: bins of a continuous column at most; see bin_edges.
    max_bins_of: column -> a lower limit of its own.
    **fields: the other fields of Schema.

  Raises:
    UserError: when a task's positive or negative values do not occur in the train rows.
  """
  features = []
  numeric = []
  for column in categories:
    values = sorted(frame[column].unique())
    features.append(data.IdFeature(column, "category", (column,), tuple(values)))
  for column in numbers:
    x = parse_numbers(frame, column, "the train rows")
    edges = bin_edges(x, min(max_bins, (max_bins_of or {}).get(column, max_bins)))
    log_int = np.unique(np.floor(np.log1p(x)))
    features.append(data.IdFeature(f"{column}_bins", "bins", (column,), tuple(edges.tolist())))
    features.append(
      data.IdFeature(f"{column}_log_int", "log_int", (column,), tuple(log_int.tolist()))
    )
    log = np.log1p(x)
    numeric.append(data.NumericFeature(column, float(log.mean()), float(log.std()) or 1.0))
  fitted = []
  for name, column, positive in tasks:
    values = sorted(frame[column].unique())
    negative = [v for v in values if v not in positive]
    unseen = [v for v in positive if v not in values]
    errors.require(
      not unseen, f"task {name}: no train row has {column} {', '.join(map(repr, unseen))}"
    )
    errors.require(bool(negative), f"task {name}: every train row is positive")
    fitted.append(data.Task(name, column, tuple(positive), tuple(negative)))
  return data.Schema(
    id_features=tuple(features), numeric=tuple(numeric), tasks=tuple(fitted), **fields
  )


def bin_edges(x: np.ndarray, max_bins: int) -> np.ndarray:
  """Lower edges of bins with about as many rows each; equal values are never split.

  A value that alone would fill a bin gets one of its own, and the quantiles are taken over the
  others: most people have no capital gains, and plain quantiles would put all who have into one
  or two bins. Where there are no more distinct values than bins, each has its own.

  Args:
    x: (N,) values.
    max_bins: how many bins at most.

  Returns:
    Ascending edges, the first being the smallest value.
  """
  values, counts = np.unique(x, return_counts=True)
  if len(values) <= max_bins:
    return values
  # Each heavy value costs its own bin and may cut the others' bin in two.
  heavy = counts * max_bins > len(x)
  most = (max_bins - 1) // 2
  heavy[np.argsort(-counts, kind="stable")[most:]] = False
  budget = max(1, max_bins - 2 * int(heavy.sum()))
  light = np.cumsum(np.where(heavy, 0, counts)) / counts[~heavy].sum()
  bin_of = np.minimum((light - 1e-9) * budget, budget - 1).astype(int)
  starts = np.ones(len(values), bool)
  starts[1:] = heavy[1:] | heavy[:-1] | (bin_of[1:] != bin_of[:-1])
  return values[starts]


def store(arrays: data.Arrays, rows: np.ndarray, directory: str) -> int:
  """Saves a split as memory-mappable .npy files in the smallest integer type that fits.

  Args:
    arrays: the encoded split, with labels and weights.
    rows: (N,) zero-based line numbers of the rows in their raw file.
    directory: where to; made if absent.

  Returns:
    The bytes written.
  """
  os.makedirs(directory, exist_ok=True)
  numbers = arrays.numbers
  if np.all(numbers == np.floor(numbers)):
    numbers = numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))
  fields = {
    "ids": arrays.ids,
    "numbers": numbers,
    "labels": arrays.labels,
    "weights": arrays.weights,
    "rows": rows.astype(np.min_scalar_type(int(rows.max(initial=0)))),
  }
  for name, array in fields.items():
    np.save(os.path.join(directory, f"{name}.npy"), array)
  return sum(os.path.getsize(os.path.join(directory, f"{name}.npy")) for name in fields)


def store_splits(
  schema: data.Schema, frames: Mapping[str, pd.DataFrame], directory: str
) -> data.Schema:
  """Encodes and stores every split, then the schema with the counts of each.

  Args:
    schema: fitted on the train rows.
    frames: split name -> raw rows, indexed by their line in the raw file.
    directory: where to.

  Returns:
    The schema with `counts`: split -> rows, positives and labelled rows per task, bytes.
  """
  counts = {}
  for split, frame in frames.items():
    errors.require(len(frame) > 0, f"the {split} split is empty: too few rows in the raw file")
    arrays = schema.encode(frame, labels=True, where=f"the {split} rows")
    size = store(arrays, frame.index.to_numpy() - 1, os.path.join(directory, split))
    names = [t.name for t in schema.tasks]
    positives = (arrays.labels == 1).sum(0).tolist()
    labelled = (arrays.labels != data.MISSING_LABEL).sum(0).tolist()
    counts[split] = {
      "rows": len(frame),
      "positives": dict(zip(names, positives, strict=True)),
      "labelled": dict(zip(names, labelled, strict=True)),
      "bytes": size,
    }
  schema = dataclasses.replace(schema, counts=counts)
  schema.save(os.path.join(directory, "schema.json"))
  return schema
