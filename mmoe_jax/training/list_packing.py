"""Packing of lists in training: the places that an epoch needs, see models/packed_lists.py.

Shape letters: N train rows, S steps per epoch, K list features.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmoe_jax.data import Schema
from mmoe_jax.models.packed_lists import LISTS, choose_capacity, pack

Array = jax.Array


class ListColumns(NamedTuple):
  """Columns of a list feature among the ids.

  Attributes:
    feature: number of the feature.
    start: its first column.
    length: number of columns.
  """

  feature: int
  start: int
  length: int


def find_lists(schema: Schema) -> tuple[ListColumns, ...]:
  """Returns the columns of each list feature of a schema."""
  return tuple(
    ListColumns(f, schema.id_columns[feature.name].start, feature.length)
    for f, feature in enumerate(schema.id_features)
    if feature.length > 1
  )


def pack_lists(
  features: Mapping[str, Any], lists: Sequence[ListColumns], capacities: Sequence[int]
) -> Mapping[str, Any]:
  """Returns the features of a batch with its lists packed.

  Args:
    features: features of the batch on one device.
    lists: the list features.
    capacities: places of each list, 0 to leave it padded; empty for all padded.
  """
  if not any(capacities):
    return features
  packed = {
    f: pack(features["ids"][:, start : start + length], capacity)
    for (f, start, length), capacity in zip(lists, capacities, strict=True)
    if capacity
  }
  return {**features, LISTS: packed}


def make_capacities(
  lists: Sequence[ListColumns],
  batch_size: int,
  devices: int,
  order_of: Callable[[Array, int], Array],
) -> Callable[[Any, Array], tuple[int, ...]]:
  """Returns capacities(ids (N, F), key) -> the places of each list that an epoch needs.

  They depend on the rows and the epoch's key only, so that a resumed run has the same.

  Args:
    lists: the list features; without any, capacities are empty.
    batch_size: rows of a step over all devices.
    devices: number of devices that share a batch.
    order_of: (key, N) -> order of the rows in the epoch.
  """
  share = batch_size // devices

  @jax.jit
  def most_values(ids_NxF: Array, key: Array) -> Array:
    count = ids_NxF.shape[0]
    steps = math.ceil(count / batch_size)
    values_NxK = jnp.stack(
      [(ids_NxF[:, at.start : at.start + at.length] > 0).sum(1, dtype=jnp.int32) for at in lists],
      axis=1,
    )
    rows = order_of(key, count)[jnp.arange(steps * batch_size) % count]
    return values_NxK[rows].reshape(steps * devices, share, -1).sum(1).max(0)

  def capacities(ids: Any, key: Array) -> tuple[int, ...]:
    if not lists:
      return ()
    most_K = jax.device_get(most_values(ids, key))
    return tuple(
      choose_capacity(int(most), share, at.length) for most, at in zip(most_K, lists, strict=True)
    )

  return capacities
