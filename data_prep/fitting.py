"""Fitting a schema on train rows, and storing splits, for all data preparations."""

import contextlib
import dataclasses
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mmoe_jax import data, errors
from mmoe_jax.data.tables import parse_numbers

_STORED = ("ids", "numbers", "labels", "weights", "rows")  # Arrays of a split.


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
  """Fits a schema on train rows: vocabularies, bins, means and standard deviations.

  Args:
    frame: the train rows, raw strings.
    categories: nominal columns; ids follow the sorted order of their values.
    numbers: continuous columns; each becomes standardised, quantile bins and log_int.
    tasks: tasks. All values of a binary task that are not positive are negative. The classes of a
      multiclass task are the values of its column.
    max_bins: maximum number of bins of a continuous column, see bin_edges.
    max_bins_of: column -> a lower maximum.
    **fields: the other fields of Schema.

  Raises:
    UserError: if a task's positive or negative values do not occur in train rows, or all rows have
      the same value.
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
  """Returns the task with classes, or mean and standard deviation, from train rows; see `fit`."""
  labelled = frame.loc[frame[task.column] != "", [task.column]]
  values = tuple(sorted(labelled[task.column].unique()))
  absent = [v for v in task.positive if v not in values]
  errors.require(
    not absent,
    f"task {task.name}: no train row has {task.column} {', '.join(map(repr, absent))}",
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
  """Returns lower edges of bins with about equally many rows; equal values stay together.

  A value that would fill a bin gets a separate bin, and quantiles are taken over the other values:
  most people have no capital gains, and plain quantiles would put all others into one or two bins.
  If there are no more distinct values than bins, each has its own bin.

  Args:
    x: (N,) values.
    max_bins: maximum number of bins.

  Returns:
    Ascending edges; the first is the smallest value.
  """
  values, counts = np.unique(x, return_counts=True)
  if len(values) <= max_bins:
    return values
  # Each heavy value takes one bin and may split another in two.
  heavy = counts * max_bins > len(x)
  max_heavy = (max_bins - 1) // 2
  heavy[np.argsort(-counts, kind="stable")[max_heavy:]] = False
  budget = max(1, max_bins - 2 * int(heavy.sum()))
  light = np.cumsum(np.where(heavy, 0, counts)) / counts[~heavy].sum()
  bin_of = np.minimum((light - 1e-9) * budget, budget - 1).astype(int)
  starts = np.ones(len(values), bool)
  starts[1:] = heavy[1:] | heavy[:-1] | (bin_of[1:] != bin_of[:-1])
  return values[starts]


@contextlib.contextmanager
def replace_folder(out: str) -> Iterator[str]:
  """Yields a temporary folder that replaces `out` if the context ends without an error.

  Args:
    out: output folder; an earlier preparation in it is replaced only when the new one is complete.

  Raises:
    UserError: if `out` contains anything but prepared data.
    OSError: if it cannot be written.
  """
  errors.require(bool(out), "--out is empty: must be a folder")
  out = os.path.abspath(out)
  parent, name = os.path.split(out)
  if os.path.lexists(out):
    _require_replaceable(out)
  os.makedirs(parent, exist_ok=True)
  _clean_up(parent, name)
  tmp_path = tempfile.mkdtemp(dir=parent, prefix=f".{name}-", suffix=".new")
  try:
    with _in_use(tmp_path):
      yield tmp_path
    os.chmod(tmp_path, 0o777 & ~_umask())  # mkdtemp makes it readable for its owner only.
    if os.path.lexists(out):
      _require_replaceable(out)  # Files may have been added during the preparation.
      # A folder that only this process uses; after a kill, `_clean_up` moves the data back.
      before = tempfile.mkdtemp(dir=parent, prefix=f".{name}-", suffix=".before")
      with _in_use(before):
        os.rename(out, os.path.join(before, name))
        os.rename(tmp_path, out)
        shutil.rmtree(before)
    else:
      os.rename(tmp_path, out)
  finally:
    shutil.rmtree(tmp_path, ignore_errors=True)


@contextlib.contextmanager
def _in_use(folder: str) -> Iterator[None]:
  """Marks a temporary folder as used by this process; the system removes the mark at its end."""
  number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
  try:
    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
  finally:
    os.close(number)


def _clean_up(parent: str, name: str) -> None:
  """Removes temporary folders of killed preparations of `name`; earlier data in them returns."""
  pattern = re.compile(rf"\.{re.escape(name)}-[a-z0-9_]{{8}}\.(new|before)")
  for entry in filter(pattern.fullmatch, os.listdir(parent)):
    path = os.path.join(parent, entry)
    with contextlib.suppress(OSError), _in_use(path):  # In use by another process, or not ours.
      earlier = os.path.join(path, name)
      if os.path.isdir(earlier) and not os.path.lexists(os.path.join(parent, name)):
        os.rename(earlier, os.path.join(parent, name))
      shutil.rmtree(path)


def _require_replaceable(out: str) -> None:
  """Raises UserError unless a folder contains prepared data and nothing else."""
  files = {f"{split}/{field}.npy" for split in data.SPLITS for field in _STORED}
  known = {*files, *data.SPLITS, data.SCHEMA_FILE, data.MANIFEST}
  found = []
  if os.path.isdir(out) and not os.path.islink(out):
    for folder, folders, names in os.walk(out):
      found += [os.path.relpath(os.path.join(folder, n), out) for n in [*folders, *names]]
  is_prepared = data.SCHEMA_FILE in found or not found
  others = sorted(set(found) - known)
  errors.require(
    os.path.isdir(out) and not os.path.islink(out) and is_prepared and not others,
    f"{out}: exists and is not a folder of prepared data alone"
    + (f" (it contains {others[0]})" if others else "")
    + "; use another --out",
  )


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask


def store(encoded: data.EncodedRows, rows: np.ndarray, directory: str) -> int:
  """Saves a split as memory-mappable .npy files, each in the smallest sufficient integer type.

  Args:
    encoded: the encoded split, with labels and weights.
    rows: (N,) zero-based line numbers of the rows in their raw file.
    directory: output folder, created if absent.

  Returns:
    Bytes written.
  """
  os.makedirs(directory, exist_ok=True)
  numbers = encoded.numbers
  if np.all((numbers >= 0) & (numbers == np.floor(numbers))):
    numbers = numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))
  rows = rows.astype(np.min_scalar_type(int(rows.max(initial=0))))
  arrays = (encoded.ids, numbers, encoded.labels, encoded.weights, rows)
  paths = [os.path.join(directory, f"{field}.npy") for field in _STORED]
  for path, array in zip(paths, arrays, strict=True):
    np.save(path, array)
  return sum(map(os.path.getsize, paths))


def store_splits(
  schema: data.Schema, frames: Mapping[str, pd.DataFrame], directory: str
) -> data.Schema:
  """Encodes and stores every split, then the schema with their counts.

  Args:
    schema: schema that was fitted on train rows.
    frames: split name -> raw rows, indexed by their line in the raw file.
    directory: output folder.

  Returns:
    The schema with `counts`, see `count`.
  """
  counts = {}
  for split, frame in frames.items():
    errors.require(len(frame) > 0, f"the {split} split is empty: the raw file has too few rows")
    encoded = data.encode(schema, frame, labels=True, where=f"the {split} rows")
    size = store(encoded, frame.index.to_numpy() - 1, os.path.join(directory, split))
    counts[split] = {**count(schema, encoded.labels), "bytes": size}
  schema = dataclasses.replace(schema, counts=counts)
  data.save_schema(schema, os.path.join(directory, data.SCHEMA_FILE))
  data.write_manifest(directory)
  return schema


def count(schema: data.Schema, labels: np.ndarray) -> dict[str, Any]:
  """Counts the rows and labels of a split, for schema.json.

  Args:
    schema: the schema.
    labels: (N, T) as encoded.

  Returns:
    `rows`; and by task `labelled` rows, `positives` (binary), rows of each class in `classes`
    (multiclass), and the label's `means` and `stds` in the column's own units (regression).
  """
  counts: dict[str, Any] = {"rows": len(labels), "labelled": {}}
  counts |= {kind: {} for kind in ("positives", "classes", "means", "stds")}
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
