"""Lists of ids without padding: the known values of a batch, one after another.

A list has a column of ids for each value that it may hold, and most rows hold fewer. A packed list
gives the values a place each, of which a batch needs as many as it has values; vectors, gradients
and updates of tables then exist for these alone. Pooled vectors are the same to float error.

Shape letters: B rows, L columns of a list, C places, D width of vectors.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
LISTS = "lists"  # Key of a batch's features: number of a feature -> its PackedList.
_STEP = 2**0.25  # Ratio of capacities: few differ, so few programs are compiled.
_WORTH = 0.8  # Share of the padded places above which packing gains nothing.


class PackedList(NamedTuple):
  """Places of a list's values in a batch.

  Attributes:
    batch_C: row of the batch that each value is from, ascending; B for places without a value.
    column_C: its column among the list's.
    count_B: number of values in each row.
  """

  batch_C: Array
  column_C: Array
  count_B: Array


def pack(ids_BxL: Array, capacity: int) -> PackedList:
  """Returns the places of a list's known values.

  Args:
    ids_BxL: ids; a row's known values come first, then 0.
    capacity: number of places C, at least the number of known values.
  """
  rows, count_B = ids_BxL.shape[0], (ids_BxL > 0).sum(1, dtype=jnp.int32)
  end_B = jnp.cumsum(count_B)
  ends_C = jnp.zeros(capacity, jnp.int32).at[end_B].add(1, mode="drop")
  place_C = jnp.arange(capacity, dtype=jnp.int32)
  # The row of a place is the number of rows that end at it or before it.
  batch_C = jnp.where(place_C < end_B[-1], jnp.cumsum(ends_C), rows)
  start_B = end_B - count_B
  column_C = place_C - start_B.at[batch_C].get(mode="clip")
  return PackedList(batch_C, jnp.clip(column_C, 0, ids_BxL.shape[1] - 1), count_B)


def pool(vectors_CxD: Array, packed: PackedList, pooling: str) -> Array:
  """Returns the sum or mean (B, D) of each row's vectors; 0 for a row without values."""
  rows = packed.count_B.shape[0]
  total_BxD = jax.ops.segment_sum(
    vectors_CxD, packed.batch_C, num_segments=rows, indices_are_sorted=True
  )
  if pooling == "mean":
    count_B = jnp.maximum(packed.count_B, 1).astype(vectors_CxD.dtype)
    total_BxD = total_BxD / count_B[:, None]
  return total_BxD


def choose_capacity(most: int, rows: int, length: int) -> int:
  """Returns the number of places for lists of at most `most` values in a batch.

  Args:
    most: greatest number of known values in any batch.
    rows: rows of a batch B.
    length: columns of the list L.

  Returns:
    A capacity of few possible ones, at least `most`; 0 where padding to B · L costs no more.
  """
  # Halved from B · L, so that it depends on the data and not on earlier choices.
  full = rows * length
  steps = math.floor(math.log(full / max(most, 1)) / math.log(_STEP) + 1e-9)
  capacity = math.ceil(full / _STEP**steps)
  return 0 if capacity > _WORTH * full else capacity
