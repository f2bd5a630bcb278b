"""Second pass over a table: the rows of a part as arrays, a shard per split."""

import os
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from data_prep import arrays
from data_prep.parts import PartJob, tables_of
from mmoe_jax import data, errors
from mmoe_jax.data import locations

_encoders = threading.local()


def _encoder(path: str) -> data.Encoder:
  """Returns the encoder of a schema; each worker thread keeps the last one."""
  key = (path, locations.stat(path))
  if getattr(_encoders, "key", None) != key:
    if locations.is_remote(path):
      with tempfile.TemporaryDirectory() as scratch:
        copy = os.path.join(scratch, data.SCHEMA_FILE)
        locations.download(path, copy)
        for name in data.vocabulary_files(copy):
          source = locations.join(path.removesuffix(data.SCHEMA_FILE), name)
          locations.download(source, os.path.join(scratch, *name.split("/")))
        schema = data.restore_schema(copy)
    else:
      schema = data.restore_schema(path)
    _encoders.key, _encoders.encoder = key, data.Encoder(schema)
  return _encoders.encoder


def encode_part(job: PartJob, reader: Callable[..., Any] | None = None) -> dict[str, Any]:
  """Second pass over a part: writes a shard for each of its splits.

  Returns:
    `files`: path in the output folder -> bytes and digest; `counts`: split -> arrays.count;
    `unknown` and `dropped`: column -> number of values.
  """
  encoder = _encoder(job.schema_path)
  schema = encoder.schema
  pieces: dict[str, list[tuple[data.EncodedRows, np.ndarray]]] = {s: [] for s in data.SPLITS}
  record: dict[str, Any] = {"files": {}, "counts": {}, "unknown": {}, "dropped": {}}
  for table, splits in tables_of(job, reader):
    encoded = encoder(table, labels=True)
    for column, (count, _) in encoded.unknown.items():
      record["unknown"][column] = record["unknown"].get(column, 0) + count
    for column, count in encoded.dropped.items():
      record["dropped"][column] = record["dropped"].get(column, 0) + count
    arrays.require_implied(schema, encoded.labels, table)
    for s, split in enumerate(data.SPLITS):
      here = splits == s
      if here.all():
        pieces[split].append((encoded, np.asarray(table.lines)))
      elif here.any():
        pieces[split].append((arrays.take(encoded, here), np.asarray(table.lines)[here]))
  for s, split in enumerate(data.SPLITS):
    found = sum(len(lines) for _, lines in pieces[split])
    name = job.part.pieces[0].name
    errors.require(found == job.rows[s], f"{name}: changed between the two passes; start again")
    if found:
      encoded, lines = arrays.join(pieces[split])
      record["files"] |= arrays.store(encoded, lines - 1, job.folders[split], split)
      record["counts"][split] = arrays.count(schema, encoded.labels)
  return record
