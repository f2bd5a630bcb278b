"""Loading of prepared data for one run.

Shape letters: N rows, F id features, D numeric features, T tasks.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmoe_jax.data import manifest
from mmoe_jax.data.encoding import cross_ids, id_dtype, stack, to_features
from mmoe_jax.data.schema import EncodedRows, Schema, Split, Task
from mmoe_jax.data.selection import add_crosses, select
from mmoe_jax.data.storage import restore_schema
from mmoe_jax.errors import UserError, require

SPLITS = ("train", "validation", "test")
SCHEMA_FILE = "schema.json"
_FIELDS = ("ids", "numbers", "labels", "weights")
_CHUNK = 1 << 16  # Rows that are in memory at a time, where the split may exceed memory.


class StoredSplit:
  """Split that stays on disk; rows are read and turned into features on request.

  Attributes:
    row_bytes: bytes that a row takes in training.
  """

  def __init__(self, directory: str, full: Schema, schema: Schema):
    """Opens the split in a directory.

    Args:
      directory: folder of the split's arrays.
      full: schema that the arrays were prepared by.
      schema: schema of the run.
    """
    self._directory, self._full, self._schema = directory, full, schema
    self._rows = len(_open(directory, "weights"))
    self._id_dtype = _open(directory, "ids").dtype
    floats = len(schema.numeric) + len(schema.tasks) + 1
    self.row_bytes = len(schema.id_features) * self._id_dtype.itemsize + floats * 4

  def __len__(self) -> int:
    """Number of rows N."""
    return self._rows

  def read(self, ranges: Sequence[tuple[int, int]]) -> Split:
    """Reads the rows of ranges [start, end), one range after another."""
    rows = sum(end - start for start, end in ranges)
    schema = self._schema
    features = {
      "ids": np.empty((rows, len(schema.id_features)), self._id_dtype),
      "numeric": np.empty((rows, len(schema.numeric)), np.float32),
    }
    labels = np.empty((rows, len(schema.tasks)), np.float32)
    weights = np.empty(rows, np.float32)
    slices = {s.name: np.empty(rows, bool) for s in schema.slices}
    numbers = [n.name for n in self._full.numeric]
    filled = 0
    for chunk in _chunks(ranges):
      arrays = {field: _read_rows(self._directory, field, chunk) for field in _FIELDS}
      encoded = _take(EncodedRows(**arrays), self._full, schema)
      here = slice(filled, filled + len(encoded.weights))
      for name, values in to_features(schema, encoded).items():
        features[name][here] = values
      for s in schema.slices:
        slices[s.name][here] = arrays["numbers"][:, numbers.index(s.column)] >= s.at_least
      labels[here], weights[here] = encoded.labels, encoded.weights
      filled = here.stop
    return Split(features, labels, weights, slices)


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
    directory: output folder of data preparation.
    tasks: see selection.select.
    protocol: see selection.select.
    numeric: see selection.select.
    exclude: see selection.select.
    crosses: crossed features to add, see selection.add_crosses.
    budget: bytes that train rows may take in memory; beyond it they stay on disk.

  Returns:
    The schema of the run and its splits, by the names in SPLITS.

  Raises:
    UserError: if there is no prepared data, a file is broken, a split is empty, or crosses are
      requested for rows that stay on disk.
  """
  _require_prepared(directory)
  full = restore_schema(os.path.join(directory, SCHEMA_FILE))
  stored = {name: _load_arrays(directory, name, full) for name in SPLITS}
  schema = select(full, tasks, protocol, numeric, exclude)
  train = StoredSplit(os.path.join(directory, "train"), full, schema)
  is_streamed = len(train) * train.row_bytes > budget
  if is_streamed:
    require(
      not crosses,
      f"config.data.crosses = {tuple(crosses)}: must be empty for streamed train rows; increase "
      "config.train.memory_gib",
    )
    del stored["train"]
  encoded = {name: _take(rows, full, schema) for name, rows in stored.items()}
  if crosses:
    uncrossed = schema
    schema = add_crosses(uncrossed, crosses, encoded["train"].ids)
    encoded = {name: _append_crosses(rows, uncrossed, schema) for name, rows in encoded.items()}
  require(
    bool(schema.id_features) or bool(schema.numeric), "config.data: must leave at least one feature"
  )
  splits: dict[str, Split | StoredSplit] = {"train": train} if is_streamed else {}
  for name, rows in encoded.items():
    columns = _load_numbers(directory, name, full, [s.column for s in schema.slices])
    slices = {
      s.name: column >= s.at_least for s, column in zip(schema.slices, columns, strict=True)
    }
    splits[name] = Split(to_features(schema, rows), rows.labels, rows.weights, slices)
  return schema, splits


def verify(directory: str) -> str:
  """Verifies the files of prepared data that `load` reads; see manifest.verify.

  Returns:
    A digest that identifies the data.
  """
  _require_prepared(directory)
  arrays = [f"{split}/{field}.npy" for split in SPLITS for field in _FIELDS]
  return manifest.verify(directory, [SCHEMA_FILE, *arrays])


def _require_prepared(directory: str) -> None:
  require(
    os.path.exists(os.path.join(directory, SCHEMA_FILE)),
    f"{directory}: contains no prepared data; run: python -m data_prep.census_income --out "
    f"{directory} (or data_prep.synthetic, for that data)",
  )


def memory_budget(memory_gib: float) -> float:
  """Returns the bytes of config.train.memory_gib; 0 means no limit."""
  return memory_gib * 2**30 or math.inf


def _chunks(ranges: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
  """Yields ranges in groups of at least _CHUNK rows, the last one shorter; long ones are cut."""
  chunk, rows = [], 0
  for first, last in ranges:
    for start in range(first, last, _CHUNK):
      end = min(last, start + _CHUNK)
      chunk.append((start, end))
      rows += end - start
      if rows >= _CHUNK:
        yield chunk
        chunk, rows = [], 0
  if chunk:
    yield chunk


def _load_arrays(directory: str, split: str, schema: Schema) -> EncodedRows:
  """Maps the arrays of a split and validates them against the schema."""
  folder = os.path.join(directory, split)
  arrays = {field: _open(folder, field) for field in _FIELDS}
  kinds = {"ids": ("u", 2), "numbers": ("uif", 2), "labels": ("f", 2), "weights": ("f", 1)}
  for field, (kind, ndim) in kinds.items():
    require(
      arrays[field].dtype.kind in kind and arrays[field].ndim == ndim,
      f"{directory}/{split}/{field}.npy: has the wrong type or shape; prepare the data again",
    )
  lengths = {len(array) for array in arrays.values()}
  require(
    len(lengths) == 1, f"{directory}/{split}: arrays of different lengths; prepare the data again"
  )
  require(lengths != {0}, f"{directory}/{split}: the split is empty; prepare the data again")
  require(
    _fits_schema(folder, arrays, schema),
    f"{directory}/{split}: arrays do not fit {SCHEMA_FILE}; prepare the data again",
  )
  return EncodedRows(**arrays)


def _fits_schema(folder: str, arrays: dict[str, np.ndarray], schema: Schema) -> bool:
  """Returns whether widths, ids, numbers, labels and weights are possible under the schema."""
  sizes = np.array([f.size for f in schema.id_features])
  widths = {"ids": len(sizes), "numbers": len(schema.numeric), "labels": len(schema.tasks)}
  if any(arrays[field].shape[1] != width for field, width in widths.items()):
    return False
  # Logarithms are taken of amounts of at least 0.
  least = np.array([0.0 if n.transform == "log1p" else -np.inf for n in schema.numeric])
  for start in range(0, len(arrays["ids"]), _CHUNK):
    # Opened for each chunk, so that its pages do not stay in this process's memory.
    chunk = {field: _open(folder, field)[start : start + _CHUNK] for field in _FIELDS}
    labels_fit = all(
      _labels_fit(chunk["labels"][:, t], task) for t, task in enumerate(schema.tasks)
    )
    # Models do not check ids, so an id beyond its table must be found here.
    ids_fit = bool((chunk["ids"].max(0) < sizes).all())
    weights = chunk["weights"]
    weights_fit = bool((np.isfinite(weights) & (weights >= 0)).all())
    numbers_fit = bool((np.isfinite(chunk["numbers"]) & (chunk["numbers"] >= least)).all())
    if not (labels_fit and ids_fit and weights_fit and numbers_fit):
      return False
  return True


def _labels_fit(labels: np.ndarray, task: Task) -> bool:
  known = labels[~np.isnan(labels)]
  if task.kind == "regression":
    return bool(np.isfinite(known).all())
  classes = 2 if task.kind == "binary" else len(task.classes)
  return bool(((known >= 0) & (known < classes) & (known == np.floor(known))).all())


def _open(directory: str, field: str) -> np.ndarray:
  path = os.path.join(directory, f"{field}.npy")
  try:
    array = np.load(path, mmap_mode="r")
  except (ValueError, EOFError, OverflowError, SyntaxError, TypeError, MemoryError) as error:
    raise UserError(f"{path}: broken array ({error}); prepare the data again") from error
  # NumPy opens archives of arrays by the same function.
  is_usable = isinstance(array, np.ndarray) and array.dtype.isnative
  require(is_usable, f"{path}: not an array of this machine's byte order; prepare the data again")
  return array


def _read_rows(directory: str, field: str, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
  """Reads the rows of ranges [start, end) of a stored array, one range after another.

  Reads instead of mapping: the system maps many pages around each one used, which soon adds the
  whole file to this process's memory.
  """
  path = os.path.join(directory, f"{field}.npy")
  stored = _open(directory, field)
  require(stored.flags.c_contiguous, f"{path}: not stored row by row; prepare the data again")
  rows = np.empty((sum(end - start for start, end in ranges), *stored.shape[1:]), stored.dtype)
  row_bytes = stored.itemsize * math.prod(stored.shape[1:])
  filled = 0
  with open(path, "rb", buffering=0) as file:
    for start, end in ranges:
      file.seek(stored.offset + start * row_bytes)
      target = rows[filled : filled + end - start]
      require(file.readinto(target) == target.nbytes, f"{path}: ends early; prepare the data again")
      filled += end - start
  return rows


def _load_numbers(
  directory: str, split: str, schema: Schema, columns: Sequence[str]
) -> list[np.ndarray]:
  numbers = _open(os.path.join(directory, split), "numbers")
  names = [n.name for n in schema.numeric]
  return [numbers[:, names.index(column)] for column in columns]


def _take(rows: EncodedRows, full: Schema, schema: Schema) -> EncodedRows:
  """Returns rows that were encoded by `full` with only the columns of `schema`."""

  def columns(array: np.ndarray, available: Sequence[Any], wanted: Sequence[Any]) -> np.ndarray:
    names = [item.name for item in available]
    return np.ascontiguousarray(array[:, [names.index(item.name) for item in wanted]])

  return EncodedRows(
    ids=columns(rows.ids, full.id_features, schema.id_features),
    numbers=columns(rows.numbers, full.numeric, schema.numeric),
    labels=columns(rows.labels, full.tasks, schema.tasks),
    weights=np.asarray(rows.weights),
  )


def _append_crosses(rows: EncodedRows, uncrossed: Schema, schema: Schema) -> EncodedRows:
  by_name = {f.name: rows.ids[:, i] for i, f in enumerate(uncrossed.id_features)}
  columns = list(by_name.values())
  columns += [cross_ids(schema, f, by_name) for f in schema.id_features[len(columns) :]]
  return dataclasses.replace(rows, ids=stack(columns, len(rows.ids), id_dtype(schema)))
