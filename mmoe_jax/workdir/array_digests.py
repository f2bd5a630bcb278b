"""Digests of trees of arrays, the same for any placement on devices and hosts."""

import hashlib
from typing import Any

import jax
import numpy as np

from mmoe_jax import parallel

PARTS = 256  # Shards of an array divide these parts of its rows.


def digest_arrays(tree: Any, in_parts: bool = True) -> str:
  """Returns the SHA-256 of paths, types, shapes and values of a tree of arrays.

  All hosts must call it, with the same tree.

  Args:
    tree: arrays; of one whose rows are shared by hosts, each reads the rows that it has.
    in_parts: whether arrays of a multiple of PARTS rows are represented by the digests of their
      parts. Checkpoints of earlier versions have digests of whole arrays.
  """
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  named = {tuple(map(_key, path)): leaf for path, leaf in leaves}
  digest = hashlib.sha256()
  for path, array in sorted(named.items(), key=lambda item: item[0]):
    digest.update(f"{'/'.join(path)} {array.dtype} {array.shape}\n".encode())
    if in_parts and array.ndim and array.shape[0] and array.shape[0] % PARTS == 0:
      digest.update(_part_digests(array))
    else:
      digest.update(_bytes_of(np.asarray(array)))
  return digest.hexdigest()


def _part_digests(array: Any) -> np.ndarray:
  """Returns the digests (PARTS, 32) of the parts of an array, from the hosts that have them."""
  found = np.zeros((PARTS, hashlib.sha256().digest_size), np.uint8)
  size = array.shape[0] // PARTS
  for first, rows in _local_rows(array):
    for start in range(0, len(rows), size):
      part = hashlib.sha256(_bytes_of(rows[start : start + size])).digest()
      found[(first + start) // size] = np.frombuffer(part, np.uint8)
  is_elsewhere = isinstance(array, jax.Array) and not array.is_fully_addressable
  return parallel.max_over_hosts(found) if is_elsewhere else found


def _local_rows(array: Any) -> list[tuple[int, np.ndarray]]:
  """Returns the rows of an array that this host has: pairs of first row and rows."""
  if not isinstance(array, jax.Array) or array.is_fully_addressable:
    return [(0, np.asarray(array))]
  shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
  return [(first, np.asarray(rows)) for first, rows in shards.items()]


def _bytes_of(array: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _key(entry: Any) -> str:
  """Returns the name of a step in a path, the same for attributes, keys and positions."""
  for kind in ("name", "key", "idx"):
    if hasattr(entry, kind):
      return str(getattr(entry, kind))
  return str(entry)
