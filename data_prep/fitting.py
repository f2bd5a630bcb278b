"""What data preparations share: fitting a schema on train rows, and storing splits."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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
  tasks: Sequence[data.Task],
  max_bins: int = 128,
  max_bins_of: Mapping[str, int] | None = None,
  **fields: Any,
) -> data.Schema:
  """Fits a schema on train rows: vocabularies, bins, means and deviations, from them alone.

  Args:
    frame: the train rows, raw strings.
    categories: nominal columns; ids follow the sorted order of their values.
    numbers: continuous columns, each offered standardised, as quantile bins and as log_int.
    tasks: what is learnt. Of a binary task the positive values: every other value is negative.
      A multiclass task has the column's values as classes; a regression its mean and deviation.
    max_bins: bins of a continuous column at most; see bin_edges.
    max_bins_of: column -> a lower limit of its own.
    **fields: the other fields of Schema.

  Raises:
    UserError: when a task's positive or negative values do not occur in the train rows, or
      they are all alike.
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
  return data.Schema(
    id_features=tuple(features),
    numeric=tuple(numeric),
    tasks=tuple(fit_task(task, frame) for task in tasks),
    **fields,
  )


def fit_task(task: data.Task, frame: pd.DataFrame) -> data.Task:
  """The task with what it takes from the train rows; see `fit`."""
  labelled = frame.loc[frame[task.column] != "", [task.column]]
  values = tuple(sorted(labelled[task.column].unique()))
  unseen = [v for v in task.positive if v not in values]
  errors.require(
    not unseen,
    f"task {task.name}: no train row has {task.column} {', '.join(map(repr, unseen))}",
  )
  negative = tuple(v for v in values if v not in task.positive)
  if task.kind == "binary":
    errors.require(bool(negative), f"task {task.name}: every train row is positive")
    return dataclasses.replace(task, negative=negative)
  errors.require(len(values) > 1, f"task {task.name}: all train rows have the same {task.column}")
  if task.kind == "multiclass":
    return dataclasses.replace(task, classes=values)
  x = parse_numbers(labelled, task.column, "the train rows", -np.inf)
  return dataclasses.replace(task, mean=float(x.mean()), std=float(x.std()))


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


@contextlib.contextmanager
def whole_folder(out: str) -> Iterator[str]:
  """A folder to fill, which takes the place of `out` once the context ends without an error.

  Args:
    out: the folder that appears whole or not at all; an earlier preparation in it is replaced
      only then.

  Raises:
    UserError: when `out` holds something that is not prepared data.
    OSError: when it cannot be written.
  """
  errors.require(bool(out), "--out is empty; name a folder")
  out = os.path.abspath(out)
  old = f"{out}.old"
  if os.path.exists(old) and not os.path.exists(out):
    os.rename(old, out)  # An earlier preparation was killed between its last two renames.
  if os.path.exists(out):
    # A folder that is not ours must not be lost to a mistyped --out.
    ours = os.path.isdir(out) and set(os.listdir(out)) <= {"schema.json", *data.SPLITS}
    errors.require(ours, f"{out}: exists and is not prepared data; name another --out")
  os.makedirs(os.path.dirname(out), exist_ok=True)
  beside = tempfile.mkdtemp(dir=os.path.dirname(out), prefix=f".{os.path.basename(out)}-")
  try:
    yield beside
    os.chmod(beside, 0o777 & ~_umask())  # mkdtemp's folder is for its owner alone.
    if os.path.exists(out):
      shutil.rmtree(old, ignore_errors=True)
      os.rename(out, old)
      os.rename(beside, out)
      shutil.rmtree(old)
    else:
      os.rename(beside, out)
  finally:
    shutil.rmtree(beside, ignore_errors=True)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask


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
  if np.all((numbers >= 0) & (numbers == np.floor(numbers))):
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
    The schema with `counts`, see `count`.
  """
  counts = {}
  for split, frame in frames.items():
    errors.require(len(frame) > 0, f"the {split} split is empty: too few rows in the raw file")
    arrays = schema.encode(frame, labels=True, where=f"the {split} rows")
    size = store(arrays, frame.index.to_numpy() - 1, os.path.join(directory, split))
    counts[split] = {**count(schema, arrays.labels), "bytes": size}
  schema = dataclasses.replace(schema, counts=counts)
  schema.save(os.path.join(directory, "schema.json"))
  return schema


def count(schema: data.Schema, labels: np.ndarray) -> dict[str, Any]:
  """What a split holds, for schema.json.

  Args:
    schema: whose tasks the labels are of.
    labels: (N, T) as encoded.

  Returns:
    `rows`; and by task `labelled` rows, `positives` (binary), rows of each class in `classes`
    (multiclass), and the label's `means` and `stds` in the column's own units (regression).
  """
  counts: dict[str, Any] = {"rows": len(labels), "labelled": {}}
  counts |= {what: {} for what in ("positives", "classes", "means", "stds")}
  for t, task in enumerate(schema.tasks):
    known = labels[~np.isnan(labels[:, t]), t].astype(np.float64)
    counts["labelled"][task.name] = len(known)
    if task.kind == "binary":
      counts["positives"][task.name] = int(known.sum())
    elif task.kind == "multiclass":
      by_class = np.bincount(known.astype(int), minlength=len(task.classes))
      counts["classes"][task.name] = by_class.tolist()
    elif len(known):
      counts["means"][task.name] = float(known.mean() * task.std + task.mean)
      counts["stds"][task.name] = float(known.std() * task.std)
  return counts
