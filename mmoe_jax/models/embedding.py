"""Embedding of id features, the input of every model.

Shape letters: B rows, F columns of ids, L of them of a list, D inputs, V table rows.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax.models.layers import Dropout

Array = jax.Array
TABLES = "embedding"  # The part of each model's parameters that consists of tables.
ROW_MULTIPLE = 256  # Sharded tables have a multiple of these rows: numbers of devices divide it.


class TableLayout(NamedTuple):
  """Place of features in a table, which holds all features of one width.

  The ids of feature f select its rows offset_f … offset_f + size_f − 1, so that one gather serves
  all features of a width. Features may share rows, such as an item and the items seen before.

  Attributes:
    name: name of the parameter.
    dim: width of its vectors.
    rows: number of its rows V.
    features: numbers of its features.
    first_rows: rows of id 0, the id of unknown values, of its features.
    columns: the F columns of ids that select its rows; None for all columns in their order.
    offsets_F: (F,) int32, the row of each column's id 0.
  """

  name: str
  dim: int
  rows: int
  features: tuple[int, ...]
  first_rows: np.ndarray
  columns: np.ndarray | None
  offsets_F: np.ndarray

  @property
  def padded_rows(self) -> int:
    """Number of rows V, rounded up to ROW_MULTIPLE."""
    return -(-self.rows // ROW_MULTIPLE) * ROW_MULTIPLE

  def select_ids(self, ids_BxF: Array) -> Array:
    """Returns the ids of the table's columns, of all columns of ids."""
    return ids_BxF if self.columns is None else ids_BxF[:, self.columns]

  def row_numbers(self, ids_BxF: Array) -> Array:
    """Returns the table's rows (B, F), int32, that the ids of a batch select."""
    return self.select_ids(ids_BxF).astype(jnp.int32) + self.offsets_F[None, :]


def table_layouts(
  sizes: Sequence[int],
  dims: Sequence[int],
  lengths: Sequence[int] = (),
  shared: Sequence[str] = (),
) -> list[TableLayout]:
  """Returns the layout of each table, by ascending width.

  Args:
    sizes: number of ids of each feature.
    dims: width of each feature's vectors.
    lengths: columns of ids of each feature; empty for 1 each.
    shared: for each feature, a name that is equal for features with the same vectors; "" for none.
  """
  lengths = lengths or (1,) * len(sizes)
  starts = np.cumsum([0, *lengths[:-1]])
  layouts = []
  for dim in sorted(set(dims)):
    members = [f for f, d in enumerate(dims) if d == dim]
    first_row: dict[str | int, int] = {}
    rows = 0
    for f in members:
      if _owner(shared, f) not in first_row:
        first_row[_owner(shared, f)] = rows
        rows += sizes[f]
    offsets = [first_row[_owner(shared, f)] for f in members]
    columns = np.array([starts[f] + i for f in members for i in range(lengths[f])], int)
    layouts.append(
      TableLayout(
        name=f"table_{dim}",
        dim=dim,
        rows=rows,
        features=tuple(members),
        first_rows=np.unique(offsets),
        columns=None if len(columns) == sum(lengths) else columns,
        offsets_F=np.repeat(offsets, [lengths[f] for f in members]).astype(np.int32),
      )
    )
  return layouts


def _owner(shared: Sequence[str], feature: int) -> str | int:
  """Returns what a feature's vectors belong to: a name that it shares, or its number."""
  return (shared[feature] if shared else "") or feature


class FeatureEmbedding(nn.Module):
  """Embeds id features and appends the numeric ones.

  There is one table per distinct width, see TableLayout. Row 0 of each feature, the id of unknown
  values, starts at zero: where train rows have no unknown values, these add nothing, not noise.

  Training that updates only the rows of a batch (training/row_updates.py) differentiates by the
  vectors: it passes them as the feature `vectors`, and the tables are not read.

  Attributes:
    sizes: number of ids of each feature.
    dims: width of each feature's vectors.
    lengths: columns of ids of each feature; empty for 1 each. A list has one per value.
    poolings: how a list's vectors are combined, `mean` or `sum`.
    shared: see table_layouts.
    init_std: standard deviation of the initial vectors.
    dropout: rate at which coordinates of the output are dropped in training.
  """

  sizes: Sequence[int]
  dims: Sequence[int]
  lengths: Sequence[int] = ()
  poolings: Sequence[str] = ()
  shared: Sequence[str] = ()
  init_std: float = 0.05
  dropout: float = 0.0

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool) -> Array:
    """Returns x_BxD: embeddings of `ids` (B, F), by width, then `numeric` (B, D_numeric).

    With `vectors`, table name -> (B, F, width), these are used instead of the tables' rows.
    """
    ids_BxF = features["ids"]
    lengths = self.lengths or (1,) * len(self.sizes)
    given = features.get("vectors", {})
    parts = []
    for table in table_layouts(self.sizes, self.dims, lengths, self.shared):
      vectors_BxFxD = given[table.name] if given else self._read(table, ids_BxF)
      if len(table.offsets_F) > len(table.features):
        vectors_BxFxD = self._pool(vectors_BxFxD, table.select_ids(ids_BxF), table.features)
      parts.append(vectors_BxFxD.reshape(ids_BxF.shape[0], -1))
    if features["numeric"].shape[1]:
      parts.append(features["numeric"])
    x_BxD = jnp.concatenate(parts, axis=1)
    return Dropout(self.dropout)(x_BxD, train)

  def _read(self, table: TableLayout, ids_BxF: Array) -> Array:
    init = self._init(table.first_rows)
    if self.has_variable("params", table.name):
      # Without Flax's check of the shape: rows that fill up the devices' shards may follow.
      table_VxD = self.get_variable("params", table.name)
    else:
      table_VxD = self.param(table.name, init, (table.rows, table.dim))
    # Encoding keeps ids in range; a second check would cost 5 to 10 % of a step on a CPU.
    return table_VxD.at[table.row_numbers(ids_BxF)].get(mode="promise_in_bounds")

  def _pool(self, vectors_BxFxD: Array, ids_BxF: Array, members: Sequence[int]) -> Array:
    """Combines the vectors of each list's known values; id 0 is an absent or unknown value."""
    pooled, at = [], 0
    for f in members:
      here = slice(at, at + self.lengths[f])
      at = here.stop
      if self.lengths[f] == 1:
        pooled.append(vectors_BxFxD[:, here])
        continue
      is_known_BxL = (ids_BxF[:, here] > 0).astype(vectors_BxFxD.dtype)
      total_BxD = jnp.einsum("bld,bl->bd", vectors_BxFxD[:, here], is_known_BxL)
      if self.poolings[f] == "mean":
        total_BxD = total_BxD / jnp.maximum(is_known_BxL.sum(1, keepdims=True), 1.0)
      pooled.append(total_BxD[:, None])
    return jnp.concatenate(pooled, axis=1)

  def _init(self, unknown: np.ndarray) -> Callable[..., Array]:
    def init(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
      return nn.initializers.normal(self.init_std)(key, shape, dtype).at[unknown].set(0.0)

    return init
