"""Loading prepared data for one run. NumPy, pandas and Arrow only.

The schema's names are here too, so that `data.Task` and the like are all that callers need.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmoe_jax.errors import UserError, require
from mmoe_jax.schema import (
  FORMAT_VERSION,
  KINDS,
  NUMERIC_FORMS,
  TRANSFORMS,
  UNKNOWN,
  Arrays,
  IdFeature,
  NumericFeature,
  Schema,
  Slice,
  Split,
  Task,
  stack,
)

__all__ = [
  "FORMAT_VERSION",
  "KINDS",
  "NUMERIC_FORMS",
  "SPLITS",
  "TRANSFORMS",
  "UNKNOWN",
  "Arrays",
  "IdFeature",
  "NumericFeature",
  "Schema",
  "Slice",
  "Split",
  "StoredSplit",
  "Task",
  "load",
]
SPLITS = ("train", "validation", "test")
_FIELDS = ("ids", "numbers", "labels", "weights")
_PIECE = 1 << 16  # Rows that are looked at together, where there may be more than memory holds.


class StoredSplit:
  """A split that stays on disk; any of its rows are read and made into features when asked for.

  Attributes:
    row_bytes: what a row takes as it is trained on.
  """

  def __init__(self, directory: str, full: Schema, schema: Schema):
    """The split of a directory, prepared by the schema `full`, for a run's schema."""
    self._directory, self._full, self._schema = directory, full, schema
    self._rows = len(_open(directory, "weights"))
    self._ids = _open(directory, "ids").dtype
    width = len(schema.numeric) + len(schema.tasks) + 1
    self.row_bytes = len(schema.id_features) * self._ids.itemsize + width * 4

  def __len__(self) -> int:
    return self._rows

  def read(self, ranges: Sequence[tuple[int, int]]) -> Split:
    """The rows from each start up to its end, one range after the other."""
    rows = sum(end - start for start, end in ranges)
    schema = self._schema
    features = {
      "ids": np.empty((rows, len(schema.id_features)), self._ids),
      "numeric": np.empty((rows, len(schema.numeric)), np.float32),
    }
    labels = np.empty((rows, len(schema.tasks)), np.float32)
    weights = np.empty(rows, np.float32)
    slices = {s.name: np.empty(rows, bool) for s in schema.slices}
    numbers = [n.name for n in self._full.numeric]
    at = 0
    for piece in _pieces(ranges):
      taken = {field: _read_rows(self._directory, field, piece) for field in _FIELDS}
      arrays = _take(Arrays(**taken), self._full, schema)
      here = slice(at, at + len(arrays.weights))
      for name, values in schema.features(arrays).items():
        features[name][here] = values
      for s in schema.slices:
        slices[s.name][here] = taken["numbers"][:, numbers.index(s.column)] >= s.at_least
      labels[here], weights[here] = arrays.labels, arrays.weights
      at = here.stop
    return Split(features, labels, weights, slices)


def _pieces(ranges: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
  """The ranges in groups of at least _PIECE rows, as far as they go; long ones are cut."""
  piece, rows = [], 0
  for first, last in ranges:
    for start in range(first, last, _PIECE):
      end = min(last, start + _PIECE)
      piece.append((start, end))
      rows += end - start
      if rows >= _PIECE:
        yield piece
        piece, rows = [], 0
  if piece:
    yield piece


def load(
  directory: str,
  tasks: Sequence[str],
  protocol: str,
  numeric: str = "standardize",
  exclude: Sequence[str] = (),
  crosses: Sequence[str] = (),
  budget: float = math.inf,
) -> tuple[Schema, dict[str, Split | StoredSplit]]:
  """Loads prepared data for one run.

  Args:
    directory: where data preparation wrote.
    tasks, protocol, numeric, exclude: see `Schema.select`.
    crosses: crossed features to add, see `Schema.with_crosses`.
    budget: bytes that train rows may take in memory; where they take more, they stay on disk.

  Returns:
    The schema of the run and its splits, by the names in SPLITS.

  Raises:
    UserError: when there is no prepared data, a file is broken, a split is empty, or crosses are
      to be made for rows that stay on disk.
  """
  path = os.path.join(directory, "schema.json")
  require(
    os.path.exists(path),
    f"{directory}: no prepared data here; run: python -m data_prep.census_income --out {directory} "
    "(or data_prep.synthetic, for that data)",
  )
  full = Schema.restore(path)
  stored = {name: _load_arrays(directory, name, full) for name in SPLITS}
  schema = full.select(tasks, protocol, numeric, exclude)
  train = StoredSplit(os.path.join(directory, "train"), full, schema)
  if streamed := len(train) * train.row_bytes > budget:
    require(not crosses, "config.data.crosses: train rows are streamed, and get no crosses")
    del stored["train"]
  stored = {name: _take(arrays, full, schema) for name, arrays in stored.items()}
  if crosses:
    plain = schema
    schema = plain.with_crosses(crosses, stored["train"].ids)
    stored = {name: _append_crosses(arrays, plain, schema) for name, arrays in stored.items()}
  require(
    bool(schema.id_features) or bool(schema.numeric), "config.data leaves no feature to learn from"
  )
  splits: dict[str, Split | StoredSplit] = {"train": train} if streamed else {}
  for name, arrays in stored.items():
    source = _load_numbers(directory, name, full, [s.column for s in schema.slices])
    slices = {s.name: column >= s.at_least for s, column in zip(schema.slices, source, strict=True)}
    splits[name] = Split(schema.features(arrays), arrays.labels, arrays.weights, slices)
  return schema, splits


def _load_arrays(directory: str, split: str, schema: Schema) -> Arrays:
  folder = os.path.join(directory, split)
  loaded = {field: _open(folder, field) for field in _FIELDS}
  kinds = {"ids": ("u", 2), "numbers": ("uif", 2), "labels": ("f", 2), "weights": ("f", 1)}
  for field, (kind, ndim) in kinds.items():
    require(
      loaded[field].dtype.kind in kind and loaded[field].ndim == ndim,
      f"{directory}/{split}/{field}.npy: not an array of that kind; prepare the data again",
    )
  rows = {len(array) for array in loaded.values()}
  require(
    len(rows) == 1, f"{directory}/{split}: arrays of different lengths; prepare the data again"
  )
  require(rows != {0}, f"{directory}/{split}: the split is empty; prepare the data again")
  sizes = np.array([f.size for f in schema.id_features])
  widths = {"ids": len(sizes), "numbers": len(schema.numeric), "labels": len(schema.tasks)}
  fits = all(loaded[k].shape[1] == n for k, n in widths.items())
  for start in range(0, len(loaded["ids"]) if fits else 0, _PIECE):
    # Opened anew, so that pages which were read do not count as ours for good.
    piece = {k: _open(folder, k)[start : start + _PIECE] for k in ("ids", "labels", "weights")}
    fits = fits and all(_fit(piece["labels"][:, t], task) for t, task in enumerate(schema.tasks))
    fits = fits and bool(np.isfinite(piece["weights"]).all())
    # Models do not check ids again, so an id that its table lacks must not get past here.
    fits = fits and bool((piece["ids"].max(0) < sizes).all())
  require(fits, f"{directory}/{split}: arrays that do not fit schema.json; prepare the data again")
  return Arrays(**loaded)


def _open(directory: str, field: str) -> np.ndarray:
  path = os.path.join(directory, f"{field}.npy")
  try:
    return np.load(path, mmap_mode="r")
  except (ValueError, EOFError) as error:
    raise UserError(f"{path}: broken array ({error}); prepare the data again") from error


def _read_rows(directory: str, field: str, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
  """The rows of a stored array from each start up to its end, one range after the other.

  Read, not mapped: the system maps much around every page that is looked at, and all of it counts
  as memory of this process. At random places it would soon be the whole file.
  """
  stored = _open(directory, field)
  require(
    stored.flags.c_contiguous,
    f"{directory}/{field}.npy: not stored row by row; prepare the data again",
  )
  rows = np.empty((sum(end - start for start, end in ranges), *stored.shape[1:]), stored.dtype)
  row_bytes = stored.itemsize * math.prod(stored.shape[1:])
  at = 0
  with open(os.path.join(directory, f"{field}.npy"), "rb", buffering=0) as file:
    for start, end in ranges:
      file.seek(stored.offset + start * row_bytes)
      here = rows[at : at + end - start]
      require(
        file.readinto(here) == here.nbytes,
        f"{directory}/{field}.npy: ends early; prepare the data again",
      )
      at += end - start
  return rows


def _fit(labels: np.ndarray, task: Task) -> bool:
  """Whether labels are what their task can have."""
  known = labels[~np.isnan(labels)]
  if task.kind == "regression":
    return bool(np.isfinite(known).all())
  classes = 2 if task.kind == "binary" else len(task.classes)
  return bool(((known >= 0) & (known < classes) & (known == np.floor(known))).all())


def _load_numbers(
  directory: str, split: str, schema: Schema, columns: Sequence[str]
) -> list[np.ndarray]:
  numbers = np.load(os.path.join(directory, split, "numbers.npy"), mmap_mode="r")
  names = [n.name for n in schema.numeric]
  return [numbers[:, names.index(column)] for column in columns]


def _take(arrays: Arrays, full: Schema, schema: Schema) -> Arrays:
  def columns(array: np.ndarray, have: Sequence[Any], want: Sequence[Any]) -> np.ndarray:
    names = [item.name for item in have]
    return np.ascontiguousarray(array[:, [names.index(item.name) for item in want]])

  return Arrays(
    ids=columns(arrays.ids, full.id_features, schema.id_features),
    numbers=columns(arrays.numbers, full.numeric, schema.numeric),
    labels=columns(arrays.labels, full.tasks, schema.tasks),
    weights=np.asarray(arrays.weights),
  )


def _append_crosses(arrays: Arrays, plain: Schema, schema: Schema) -> Arrays:
  by_name = {f.name: arrays.ids[:, i] for i, f in enumerate(plain.id_features)}
  columns = list(by_name.values())
  columns += [schema.cross(f, by_name) for f in schema.id_features[len(columns) :]]
  dtype = np.min_scalar_type(max(f.size for f in schema.id_features) - 1)
  return dataclasses.replace(arrays, ids=stack(columns, len(arrays.ids), dtype))
