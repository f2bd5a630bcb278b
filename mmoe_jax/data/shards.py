"""Arrays of a split on disk, in one shard or several: opening, validation, reading of ranges.

A split of one shard lies in its own folder; the shards of others lie in folders 00000, 00001, ….
"""

import math
import os
from collections.abc import Iterator, Sequence

import numpy as np

from mmoe_jax.data.conditions import evaluate, parse_condition
from mmoe_jax.data.schema import Schema, Task
from mmoe_jax.data.share import WHOLE, Share
from mmoe_jax.errors import UserError, require

FIELDS = ("ids", "numbers", "labels", "weights", "slices")
CHUNK = 1 << 16  # Rows that are in memory at a time, where the split may exceed memory.
_SCHEMA_FILE = "schema.json"


def shard_names(schema: Schema, split: str) -> list[str]:
  """Returns the folders of a split's shards, relative to the folder of the data, with `/`."""
  rows = schema.counts.get(split, {}).get("shards", ())
  return [f"{split}/{i:05d}" for i in range(len(rows))] if len(rows) > 1 else [split]


class Shards:
  """Arrays of a split, row after row over all its shards.

  Attributes:
    id_dtype: type of the stored ids.
  """

  def __init__(self, directory: str, split: str, schema: Schema):
    """Opens the shards of a split, without reading their rows.

    Args:
      directory: folder of the prepared data.
      split: name of the split.
      schema: schema that the arrays were prepared by.

    Raises:
      UserError: if an array is broken, or does not fit the others.
    """
    self._where, self._schema = f"{directory}/{split}", schema
    self._folders = [os.path.join(directory, *n.split("/")) for n in shard_names(schema, split)]
    kinds = {"ids": ("u", 2), "numbers": ("uif", 2), "labels": ("f", 2), "weights": ("f", 1)}
    # Data of format version 2 has no array of slices; they are conditions on numbers.
    self._has_slices = os.path.exists(os.path.join(self._folders[0], "slices.npy"))
    if self._has_slices:
      kinds["slices"] = ("b", 2)
    self._kinds = kinds
    lengths: list[int] = []
    self._stored: list[dict[str, _StoredArray]] = []
    for folder in self._folders:
      arrays = {field: open_array(folder, field) for field in kinds}
      for field, (kind, ndim) in kinds.items():
        require(
          arrays[field].dtype.kind in kind and arrays[field].ndim == ndim,
          f"{folder}/{field}.npy: has the wrong type or shape; prepare the data again",
        )
      found = {len(array) for array in arrays.values()}
      require(len(found) == 1, f"{folder}: arrays of different lengths; prepare the data again")
      lengths.append(found.pop())
      self._stored.append({field: _StoredArray(folder, field) for field in kinds})
    self.id_dtype = np.result_type(*{stored["ids"].dtype for stored in self._stored})
    self._ends = np.cumsum(lengths)
    require(len(self) > 0, f"{self._where}: the split is empty; prepare the data again")

  def __len__(self) -> int:
    """Number of rows N."""
    return int(self._ends[-1])

  def validate(self, share: Share = WHOLE) -> None:
    """Raises UserError unless all values, of this host's share, are possible under the schema."""
    for folder in self._folders:
      require(
        _fits_schema(folder, list(self._kinds), self._schema, share),
        f"{folder}: arrays do not fit {_SCHEMA_FILE}; prepare the data again",
      )

  def whole(self, field: str) -> np.ndarray:
    """Returns an array of all rows: a mapped file, or several joined in memory."""
    if field not in self._kinds:
      return self._slices(self.whole("numbers"))
    arrays = [open_array(folder, field) for folder in self._folders]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

  def gathered(self, field: str, share: Share) -> np.ndarray:
    """Returns an array of all rows, of which each host reads its share from the files."""
    if share.count == 1:
      return self.whole(field)
    if field not in self._kinds:
      return self._slices(self.gathered("numbers", share))
    at_a_time = min(CHUNK, math.ceil(len(self) / share.count))
    parts = []
    for (start, end), own in share.rows(len(self), at_a_time):
      read = self.read(field, [own])
      filler = np.zeros((at_a_time - len(read), *read.shape[1:]), read.dtype)
      parts.append(share.gather(np.concatenate([read, filler]))[: end - start])
    return np.concatenate(parts)

  def read(self, field: str, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Reads the rows of ranges [start, end) of an array, one range after another."""
    if field not in self._kinds:
      return self._slices(self.read("numbers", ranges))
    stored = [self._stored[i][field] for i in range(len(self._folders))]
    dtype = np.result_type(*{array.dtype for array in stored})
    rows = sum(end - start for start, end in ranges)
    out = np.empty((rows, *stored[0].width), dtype)
    for i, parts in self._by_shard(ranges).items():
      stored[i].read(parts, out)
    return out

  def _by_shard(self, ranges: Sequence[tuple[int, int]]) -> dict[int, list[tuple[int, int, int]]]:
    """Returns shard -> ranges in it, each with its place in the result.

    Rows of an epoch lie in strips all over the shards; each file is opened once for all of them.
    """
    found: dict[int, list[tuple[int, int, int]]] = {}
    place, last = 0, len(self._ends) - 1
    for start, end in ranges:
      while start < end:
        i = min(last, int(np.searchsorted(self._ends, start, side="right")))
        first = int(self._ends[i - 1]) if i else 0
        stop = end if i == last else min(end, int(self._ends[i]))
        found.setdefault(i, []).append((start - first, stop - first, place))
        place += stop - start
        start = stop
    return found

  def _slices(self, numbers: np.ndarray) -> np.ndarray:
    columns = _Numbers(numbers, [n.name for n in self._schema.numeric])
    found = [evaluate(parse_condition(s.condition), columns) == 1 for s in self._schema.slices]
    return np.stack(found, axis=1) if found else np.zeros((len(numbers), 0), bool)


class _StoredArray:
  """Stored array whose rows are read; its header is read once, and again if the file changes.

  Reads instead of mapping: the system maps many pages around each one used, which soon adds the
  whole file to this process's memory.

  Attributes:
    dtype: type of its numbers.
    width: shape of a row.
  """

  def __init__(self, directory: str, field: str):
    """Reads the header; raises UserError if the array is broken."""
    self._directory, self._field = directory, field
    self._path = os.path.join(directory, f"{field}.npy")
    self._read_header(os.stat(self._path))

  def _read_header(self, status: os.stat_result) -> None:
    array = open_array(self._directory, self._field)
    is_by_rows = array.flags.c_contiguous
    require(is_by_rows, f"{self._path}: not stored row by row; prepare the data again")
    self._identity = _identity(status)
    self._offset, self.dtype, self.width = array.offset, array.dtype, array.shape[1:]
    self._row_bytes = array.itemsize * math.prod(self.width)

  def read(self, parts: Sequence[tuple[int, int, int]], out: np.ndarray) -> None:
    """Reads rows [start, end) to out[place …], for each (start, end, place)."""
    with open(self._path, "rb", buffering=0) as file:
      status = os.fstat(file.fileno())
      if _identity(status) != self._identity:
        before = self.dtype, self.width
        self._read_header(status)
        is_same = (self.dtype, self.width) == before
        require(is_same, f"{self._path}: changed while it is used; start again")
      for start, end, place in parts:
        file.seek(self._offset + start * self._row_bytes)
        target = out[place : place + end - start]
        rows = target if out.dtype == self.dtype else np.empty(target.shape, self.dtype)
        is_whole = file.readinto(rows) == rows.nbytes
        require(is_whole, f"{self._path}: ends early; prepare the data again")
        if rows is not target:
          target[...] = rows


def _identity(status: os.stat_result) -> tuple[int, int, int]:
  return status.st_ino, status.st_mtime_ns, status.st_size


class _Numbers:
  """Stored numbers, as conditions read them."""

  def __init__(self, numbers: np.ndarray, names: Sequence[str]):
    self._numbers, self._names = numbers, list(names)

  def numbers(self, column: str) -> np.ndarray:
    require(column in self._names, f"slice on '{column}': prepare the data again")
    return np.asarray(self._numbers[:, self._names.index(column)], np.float64)

  def factor(self, column: str) -> tuple[np.ndarray, list[str]]:
    raise UserError(f"slice on '{column}': prepare the data again")


def chunks(ranges: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
  """Yields ranges in groups of at least CHUNK rows, the last one shorter; long ones are cut."""
  chunk, rows = [], 0
  for first, last in ranges:
    for start in range(first, last, CHUNK):
      end = min(last, start + CHUNK)
      chunk.append((start, end))
      rows += end - start
      if rows >= CHUNK:
        yield chunk
        chunk, rows = [], 0
  if chunk:
    yield chunk


def open_array(directory: str, field: str) -> np.ndarray:
  """Maps a stored array.

  Raises:
    UserError: if the file is broken.
    OSError: if it cannot be read.
  """
  path = os.path.join(directory, f"{field}.npy")
  try:
    with np.errstate(over="ignore"):
      array = np.load(path, mmap_mode="r")
  except OSError:
    raise
  except Exception as error:  # Of any type: NumPy evaluates the text of the header.
    is_readable = str(error) and " at 0x" not in str(error)  # Not of a node of its syntax tree.
    reason = error if is_readable else "its header cannot be read"
    raise UserError(f"{path}: broken array ({reason}); prepare the data again") from error
  # NumPy opens archives of arrays by the same function.
  is_usable = isinstance(array, np.ndarray) and array.dtype.isnative
  require(is_usable, f"{path}: not an array of this machine's byte order; prepare the data again")
  return array


def _fits_schema(folder: str, fields: Sequence[str], schema: Schema, share: Share) -> bool:
  """Returns whether widths, ids, numbers, labels and weights are possible under the schema."""
  sizes = np.array([f.size for f in schema.id_features for _ in range(f.length)])
  widths = {"ids": len(sizes), "numbers": len(schema.numeric), "labels": len(schema.tasks)}
  widths |= {"slices": len(schema.slices)} if "slices" in fields else {}
  if any(open_array(folder, field).shape[1] != width for field, width in widths.items()):
    return False
  least = np.array([n.least for n in schema.numeric])
  has_missing = np.array([n.has_missing for n in schema.numeric], bool)
  for _, (start, end) in share.rows(len(open_array(folder, "ids")), CHUNK):
    if start == end:
      continue
    # Opened for each chunk, so that its pages do not stay in this process's memory.
    chunk = {field: open_array(folder, field)[start:end] for field in fields}
    labels_fit = all(
      _labels_fit(chunk["labels"][:, t], task) for t, task in enumerate(schema.tasks)
    )
    # Models do not check ids, so an id beyond its table must be found here.
    ids_fit = bool((chunk["ids"].max(0) < sizes).all())
    weights = chunk["weights"]
    weights_fit = bool((np.isfinite(weights) & (weights >= 0)).all())
    numbers = chunk["numbers"]
    with np.errstate(invalid="ignore"):
      is_good = np.isfinite(numbers) & (numbers >= least)
    numbers_fit = bool((is_good | (np.isnan(numbers) & has_missing)).all())
    if not (labels_fit and ids_fit and weights_fit and numbers_fit):
      return False
  return True


def _labels_fit(labels: np.ndarray, task: Task) -> bool:
  known = labels[~np.isnan(labels)]
  if task.kind == "regression":
    return bool(np.isfinite(known).all())
  classes = 2 if task.kind == "binary" else len(task.classes)
  return bool(((known >= 0) & (known < classes) & (known == np.floor(known))).all())
