"""Vocabularies of many values: Arrow files next to the schema, memory-mapped.

A file has one row per value, and three columns:

  value  the values in the order of their ids, from id 1
  hash   the hashes of the values, ascending
  id     the id of each hash's value

A lookup is a binary search for the hash and a comparison of the texts. Neither opening a file nor a
lookup creates a Python object per value, and processes share the pages that they read.

Shape letters: V values of a vocabulary, N texts to look up.
"""

import os
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmoe_jax import digests
from mmoe_jax.errors import UserError, require

FOLDER = "vocabularies"
LARGE = 10_000  # Values up to which a vocabulary is part of schema.json.
_LONGEST_NAME = 100
_WORD = 8  # Bytes that are hashed at a time.


class Vocabulary(Sequence[str]):
  """Values of a feature, as an Arrow array; indexing and iterating create texts."""

  def __init__(self, values: pa.Array, index: tuple[np.ndarray, np.ndarray] | None = None):
    """Wraps values.

    Args:
      values: (V,) distinct texts in the order of their ids.
      index: hashes (V,) in ascending order, and the id of each; None to compute them when needed.
    """
    self.values = values.cast(pa.large_string())
    self._index = index

  def __len__(self) -> int:
    """Number of values V."""
    return len(self.values)

  def __getitem__(self, at: Any) -> Any:
    """Returns the text at a position, or the texts of a slice as a tuple."""
    if isinstance(at, slice):
      return tuple(self.values[at].to_pylist())
    return self.values[at].as_py()

  def __iter__(self) -> Iterator[str]:
    """Yields the texts."""
    for start in range(0, len(self), LARGE):
      yield from self.values.slice(start, LARGE).to_pylist()

  def __eq__(self, other: object) -> bool:
    """Returns whether both have the same values in the same order."""
    if isinstance(other, Vocabulary):
      return self.values.equals(other.values)
    return NotImplemented

  def __repr__(self) -> str:
    """Returns the number of values."""
    return f"Vocabulary of {len(self)} values"

  def __hash__(self) -> int:
    """Returns a hash that equal vocabularies share."""
    return hash(len(self))

  def ids(self, texts: Any) -> np.ndarray:
    """Looks up texts.

    Args:
      texts: (N,) texts, a list or an Arrow array without nulls.

    Returns:
      (N,) int64: the id of each, 0 for a text that is not in the vocabulary.
    """
    texts = texts if isinstance(texts, pa.Array) else pa.array(texts, pa.string())
    texts = texts.cast(pa.large_string())
    hashes_V, ids_V = self._indexed()
    hashes_N = hash_texts(texts)
    order = np.argsort(hashes_N)  # Neighbours search neighbouring pages.
    at_N = np.empty(len(texts), np.int64)
    at_N[order] = np.searchsorted(hashes_V, hashes_N[order])
    found = np.zeros(len(texts), np.int64)
    rest = np.arange(len(texts))
    while True:
      rest = rest[at_N[rest] < len(hashes_V)]
      rest = rest[hashes_V[at_N[rest]] == hashes_N[rest]]
      if not len(rest):
        return found
      candidates = ids_V[at_N[rest]].astype(np.int64)
      values = self.values.take(pa.array(candidates - 1))
      equal = np.asarray(pc.equal(values, texts.take(pa.array(rest))))
      found[rest[equal]] = candidates[equal]
      rest = rest[~equal]
      at_N[rest] += 1  # Another value may have the same hash.

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns the vocabulary as arrays.

    `hash` (V,) and `id` (V,) as in its file; `bytes`, the values in UTF-8 one after another, and
    `ends` (V + 1,), where they begin and end.
    """
    hashes_V, ids_V = self._indexed()
    start, count = self.values.offset, len(self)
    _, offsets, content = self.values.buffers()
    ends = np.frombuffer(offsets, np.int64)[start : start + count + 1]
    joined = np.frombuffer(content, np.uint8, int(ends[-1] - ends[0]), int(ends[0]))
    return {"hash": hashes_V, "id": ids_V, "ends": ends - ends[0], "bytes": joined}

  def save(self, path: str) -> None:
    """Writes the vocabulary as an Arrow file, atomically."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    number, tmp_path = tempfile.mkstemp(dir=os.path.dirname(path), suffix=".part")
    os.close(number)
    try:
      # From memory: the file that these values came from may have been replaced since.
      hashes_V, ids_V = self._indexed()
      table = pa.table({"value": self.values, "hash": hashes_V, "id": ids_V})
      with pa.ipc.new_file(tmp_path, table.schema) as writer:
        writer.write_table(table)
      os.chmod(tmp_path, 0o644)
      os.replace(tmp_path, path)
    except BaseException:
      os.remove(tmp_path)
      raise

  def _indexed(self) -> tuple[np.ndarray, np.ndarray]:
    if self._index is None:
      hashes_V = hash_texts(self.values)
      order = np.argsort(hashes_V, kind="stable")
      self._index = hashes_V[order], (order + 1).astype(np.uint32)
    return self._index


def open_vocabulary(path: str) -> Vocabulary:
  """Opens the file of a vocabulary, without reading it.

  Raises:
    UserError: if it is not such a file.
  """
  try:
    table = pa.ipc.open_file(pa.memory_map(path)).read_all().combine_chunks()
    columns = [table.column(name).chunk(0) for name in ("value", "hash", "id")]
    values, hashes, ids = columns
    types = [column.type for column in columns]
    require(types == [pa.large_string(), pa.uint64(), pa.uint32()], f"{path}: not a vocabulary")
  except (pa.ArrowException, KeyError, IndexError) as error:
    raise UserError(f"{path}: broken: not a vocabulary ({error})") from error
  return Vocabulary(values, (np.asarray(hashes), np.asarray(ids)))


def to_values(texts: pa.Array) -> tuple[str, ...] | Vocabulary:
  """Returns distinct texts as the values of a feature: a Vocabulary if there are many."""
  return tuple(texts.to_pylist()) if len(texts) <= LARGE else Vocabulary(texts)


def file_name(feature: str) -> str:
  """Returns the path of a feature's vocabulary, relative to schema.json."""
  name = urllib.parse.quote(feature, safe=" ")
  if len(name) > _LONGEST_NAME:
    name = digests.of_json(feature)[:32]
  return f"{FOLDER}/{name}.arrow"


def save(vocabulary: Vocabulary, folder: str, feature: str) -> dict[str, Any]:
  """Writes the vocabulary of a feature; returns its entry in schema.json."""
  name = file_name(feature)
  path = os.path.join(folder, *name.split("/"))
  vocabulary.save(path)
  return {"file": name, "values": len(vocabulary), "sha256": digests.of_file(path)}


def restore(entry: Mapping[str, Any], schema_path: str) -> Vocabulary:
  """Opens the vocabulary of an entry of a schema.

  Args:
    entry: the entry.
    schema_path: path of the schema.

  Raises:
    UserError: if its file is missing, or not the one that was written.
  """
  folder = os.path.dirname(os.path.abspath(schema_path))
  path = os.path.join(folder, *path_in(entry, schema_path).split("/"))
  remedy = "restore it from a copy, or prepare the data again (of a work directory: train again)"
  require(os.path.isfile(path), f"{schema_path}: its vocabulary {path} is missing; {remedy}")
  require(
    digests.of_file(path) == entry.get("sha256"),
    f"{schema_path}: its vocabulary {path} changed or is damaged; {remedy}",
  )
  return open_vocabulary(path)


def path_in(entry: Any, where: str) -> str:
  """Returns the path of an entry of schema.json.

  Args:
    entry: the entry.
    where: path of the schema, for errors.

  Raises:
    UserError: if it is not a file in the folder of vocabularies.
  """
  name = entry.get("file") if isinstance(entry, Mapping) else None
  good = isinstance(name, str) and name.startswith(f"{FOLDER}/") and name.endswith(".arrow")
  require(good and name.count("/") == 1, f"{where}: broken: a vocabulary has the file {name!r}")
  return name


def hash_texts(texts: pa.Array) -> np.ndarray:
  """Returns a hash (N,) uint64 of each text's bytes, the same on every machine.

  Args:
    texts: (N,) large_string, without nulls.
  """
  start = texts.offset
  _, offsets, content = texts.buffers()
  ends = np.frombuffer(offsets, np.int64)[start : start + len(texts) + 1]
  if not len(texts):
    return np.zeros(0, np.uint64)
  first, size = int(ends[0]), int(ends[-1] - ends[0])
  padded = np.zeros(size + _WORD, np.uint8)
  if size:
    padded[:size] = np.frombuffer(content, np.uint8, size, first)
  # Unaligned words: one starts at every byte.
  words = np.ndarray((size + 1,), np.dtype("<u8"), padded, strides=(1,))
  starts_N, lengths_N = ends[:-1] - first, np.diff(ends)
  hashed = _mix(lengths_N.astype(np.uint64))
  here: Any = slice(None)
  for at in range(0, int(lengths_N.max()), _WORD):
    if at:
      here = np.flatnonzero(lengths_N > at)
    elif not lengths_N.all():
      here = np.flatnonzero(lengths_N)
    left = np.minimum(lengths_N[here] - at, _WORD).astype(np.uint64)
    word = words[starts_N[here] + at] & (np.uint64(2**64 - 1) >> (np.uint64(64) - left * _BITS))
    hashed[here] = _mix(hashed[here] ^ word)
  return hashed


_BITS = np.uint64(8)  # Of a byte.


def _mix(x: np.ndarray) -> np.ndarray:
  """Returns the finaliser of SplitMix64 (Steele et al., OOPSLA 2014), a bijection of uint64."""
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
