"""Loading of prepared data for one run.

Shape letters: N rows, F columns of ids, D numeric features, T tasks.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmoe_jax.data import manifest, remote_copy, shards
from mmoe_jax.data.encoding import cross_ids, id_dtype, stack
from mmoe_jax.data.features import to_features
from mmoe_jax.data.schema import EncodedRows, Schema, Split
from mmoe_jax.data.selection import add_crosses, crosses_of, select
from mmoe_jax.data.share import WHOLE, Share
from mmoe_jax.data.storage import restore_schema
from mmoe_jax.errors import UserError, require

SPLITS = ("train", "validation", "test")
SCHEMA_FILE = "schema.json"


class StoredSplit:
  """Split that stays on disk; rows are read and turned into features on request.

  Attributes:
    row_bytes: bytes that a row takes in training.
  """

  def __init__(self, stored: shards.Shards, full: Schema, schema: Schema):
    """Wraps the arrays of a split.

    Args:
      stored: the arrays.
      full: schema that the arrays were prepared by.
      schema: schema of the run; crosses may be added later, see `with_crosses`.
    """
    self._stored, self._full, self._schema, self._uncrossed = stored, full, schema, schema
    floats = schema.numeric_count + len(schema.tasks) + 1
    width = max(stored.id_dtype.itemsize, id_dtype(schema).itemsize)
    self.row_bytes = schema.id_count * width + floats * 4

  def with_crosses(self, crossed: Schema) -> "StoredSplit":
    """Returns the split with the crossed features of a schema."""
    split = StoredSplit(self._stored, self._full, crossed)
    split._uncrossed = self._schema
    return split

  def __len__(self) -> int:
    """Number of rows N."""
    return len(self._stored)

  def id_chunks(self, share: Share = WHOLE) -> Iterator[np.ndarray]:
    """Yields the ids of a host's share of rows in chunks, in the order of the features."""
    ranges = (own for _, own in share.rows(len(self), shards.CHUNK))
    for chunk in ([own] for own in ranges if own[0] < own[1]):
      yield _columns_of_ids(self._stored.read("ids", chunk), self._full, self._uncrossed)

  def read(self, ranges: Sequence[tuple[int, int]]) -> Split:
    """Reads the rows of ranges [start, end), one range after another."""
    rows = sum(end - start for start, end in ranges)
    schema = self._schema
    features = {
      "ids": np.empty((rows, schema.id_count), self._id_dtype()),
      "numeric": np.empty((rows, schema.numeric_count), np.float32),
    }
    labels = np.empty((rows, len(schema.tasks)), np.float32)
    weights = np.empty(rows, np.float32)
    slices = np.empty((rows, len(schema.slices)), bool)
    filled = 0
    for chunk in shards.chunks(ranges):
      arrays = {field: self._stored.read(field, chunk) for field in shards.FIELDS}
      encoded = _take(EncodedRows(**arrays), self._full, self._uncrossed)
      if schema is not self._uncrossed:
        encoded = _append_crosses(encoded, self._uncrossed, schema)
      here = slice(filled, filled + len(encoded.weights))
      for name, values in to_features(schema, encoded).items():
        features[name][here] = values
      slices[here] = encoded.slices
      labels[here], weights[here] = encoded.labels, encoded.weights
      filled = here.stop
    return Split(features, labels, weights, _by_name(schema, slices))

  def _id_dtype(self) -> np.dtype:
    if self._schema is self._uncrossed:
      return self._stored.id_dtype
    return id_dtype(self._schema)


def load(
  directory: str,
  tasks: Sequence[str],
  protocol: str,
  numeric: str = "standardize",
  exclude: Sequence[str] = (),
  crosses: Sequence[str] = (),
  budget: float = math.inf,
  share: Share = WHOLE,
) -> tuple[Schema, dict[str, Split | StoredSplit]]:
  """Loads prepared data for one run.

  Args:
    directory: output folder of data preparation; one in object storage is copied to this machine.
    tasks: see selection.select.
    protocol: see selection.select.
    numeric: see selection.select.
    exclude: see selection.select.
    crosses: crossed features to add, see selection.add_crosses.
    budget: bytes that train rows may take in memory; beyond it they stay on disk.
    share: share of the files that this host reads, of several that load the same data.

  Returns:
    The schema of the run and its splits, by the names in SPLITS.

  Raises:
    UserError: if there is no prepared data, a file is broken, or a split is empty.
  """
  directory = remote_copy.local_folder(directory)
  _require_prepared(directory)
  full = restore_schema(os.path.join(directory, SCHEMA_FILE))
  schema = select(full, tasks, protocol, numeric, exclude)
  stored = {name: shards.Shards(directory, name, full) for name in SPLITS}
  for split in stored.values():
    split.validate(share)
  pairs = crosses_of(schema, crosses)
  train = StoredSplit(stored["train"], full, schema)
  is_streamed = len(train) * train.row_bytes > budget
  resident = [name for name in SPLITS if name != "train" or not is_streamed]
  encoded = {name: _take(_read_all(stored[name], share), full, schema) for name in resident}
  if pairs:
    uncrossed = schema
    train_ids = train.id_chunks(share) if is_streamed else [encoded["train"].ids]
    schema = add_crosses(uncrossed, pairs, train_ids, share if is_streamed else WHOLE)
    train = train.with_crosses(schema)
    encoded = {name: _append_crosses(rows, uncrossed, schema) for name, rows in encoded.items()}
  require(
    bool(schema.id_features) or bool(schema.numeric), "config.data: must leave at least one feature"
  )
  splits: dict[str, Split | StoredSplit] = {"train": train} if is_streamed else {}
  for name, rows in encoded.items():
    slices = _by_name(schema, rows.slices)
    splits[name] = Split(to_features(schema, rows), rows.labels, rows.weights, slices)
  return schema, splits


def verify(directory: str, share: Share = WHOLE) -> str:
  """Verifies the files of prepared data that `load` reads; see manifest.verify.

  Args:
    directory: output folder of data preparation.
    share: share of the files that this host verifies.

  Returns:
    A digest that identifies the data.
  """
  directory = remote_copy.local_folder(directory)
  _require_prepared(directory)
  try:
    schema = restore_schema(os.path.join(directory, SCHEMA_FILE))
  except UserError:
    manifest.verify(directory, [SCHEMA_FILE])  # Damage is a better reason than its effect.
    raise
  folders = [name for split in SPLITS for name in shards.shard_names(schema, split)]
  fields = [field for field in shards.FIELDS if field != "slices"]
  names = [f"{folder}/{field}.npy" for folder in folders for field in fields]
  if os.path.exists(os.path.join(directory, *folders[0].split("/"), "slices.npy")):
    names += [f"{folder}/slices.npy" for folder in folders]
  return manifest.verify(directory, [SCHEMA_FILE, *names], share)


def _require_prepared(directory: str) -> None:
  require(
    os.path.exists(os.path.join(directory, SCHEMA_FILE)),
    f"{directory}: contains no prepared data; run: python -m data_prep.census_income --out "
    f"{directory} (or data_prep.tabular or data_prep.synthetic, for other data)",
  )


def memory_budget(memory_gib: float) -> float:
  """Returns the bytes of config.train.memory_gib; 0 means no limit."""
  return memory_gib * 2**30 or math.inf


def _read_all(stored: shards.Shards, share: Share) -> EncodedRows:
  return EncodedRows(**{field: stored.gathered(field, share) for field in shards.FIELDS})


def _by_name(schema: Schema, slices: np.ndarray) -> dict[str, np.ndarray]:
  return {s.name: np.ascontiguousarray(slices[:, i]) for i, s in enumerate(schema.slices)}


def _columns_of_ids(ids: np.ndarray, full: Schema, schema: Schema) -> np.ndarray:
  """Returns ids by `full` with only the columns of `schema`."""
  columns = full.id_columns
  indices = [i for f in schema.id_features for i in range(*columns[f.name].indices(1 << 30))]
  return np.ascontiguousarray(ids[:, indices])


def _take(rows: EncodedRows, full: Schema, schema: Schema) -> EncodedRows:
  """Returns rows that were encoded by `full` with only the columns of `schema`."""

  def columns(array: np.ndarray, available: Sequence[Any], wanted: Sequence[Any]) -> np.ndarray:
    names = [item.name for item in available]
    return np.ascontiguousarray(array[:, [names.index(item.name) for item in wanted]])

  return EncodedRows(
    ids=_columns_of_ids(rows.ids, full, schema),
    numbers=columns(rows.numbers, full.numeric, schema.numeric),
    labels=columns(rows.labels, full.tasks, schema.tasks),
    weights=np.asarray(rows.weights),
    slices=rows.slices,
  )


def _append_crosses(rows: EncodedRows, uncrossed: Schema, schema: Schema) -> EncodedRows:
  by_name = {name: rows.ids[:, at.start] for name, at in uncrossed.id_columns.items()}
  columns = list(rows.ids.T)
  columns += [
    cross_ids(schema, f, by_name) for f in schema.id_features[len(uncrossed.id_features) :]
  ]
  return dataclasses.replace(rows, ids=stack(columns, len(rows.ids), id_dtype(schema)))
