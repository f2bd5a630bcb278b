"""Embedding of id features, the input of every model.

Shape letters: B rows, F columns of ids, L of them of a list, C places of a packed list (see
packed_lists), D inputs, V table rows. P positions of a batch that select table rows: B · F, or with
packed lists those of other columns, then the places of each packed part.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax.models import packed_lists
from mmoe_jax.models.kernels import scramble
from mmoe_jax.models.layers import Dropout

Array = jax.Array
TABLES = "embedding"  # The part of each model's parameters that consists of tables.
# Kind -> how the two vectors a and b of an id are combined.
COMPRESSIONS = {
  # Quotient and remainder of the id: no two ids have the same pair (Shi et al., Compositional
  # Embeddings Using Complementary Partitions, KDD 2020, https://arxiv.org/abs/1909.02107, section
  # 4). 1 + a, so that the product starts as random as a vector.
  "quotient_remainder": lambda a, b: (1.0 + a) * b,
  # Two hashes of the id (Zhang et al., Model Size Reduction Using Frequency Based Double Hashing
  # for Recommender Systems, RecSys 2020, https://arxiv.org/abs/2007.14523).
  "double_hash": lambda a, b: a + b,
}
DTYPES = ("float32", "bfloat16")
ROW_MULTIPLE = 256  # Sharded tables have a multiple of these rows: numbers of devices divide it.


class Compression(NamedTuple):
  """Compression of a feature into few table rows: each id has two vectors, which are combined.

  Attributes:
    kind: a key of COMPRESSIONS.
    moduli: number of rows that the first and the second vector are chosen from.
  """

  kind: str
  moduli: tuple[int, int]


class Part(NamedTuple):
  """Columns of a table that belong together: one, or those of a list.

  Attributes:
    feature: number of their feature.
    start: the first of them among the table's columns.
    length: number of columns.
  """

  feature: int
  start: int
  length: int


class TableLayout(NamedTuple):
  """Place of features in a table, which holds all features of one width.

  The ids of feature f select its rows offset_f … offset_f + size_f − 1, so that one gather serves
  all features of a width. Features may share rows, such as an item and the items seen before. A
  compressed feature has each of its columns twice, for the first and the second vectors.

  Attributes:
    name: name of the parameter.
    dim: width of its vectors.
    rows: number of its rows V.
    features: numbers of its features.
    parts: columns of its features, in their order; two parts for a compressed feature.
    first_rows: rows of id 0, the id of unknown values, of its features without compression.
    columns: the F columns of ids that select its rows; None for all columns in their order.
    offsets_F: (F,) int32, the first row of each column's feature.
    coding_3xF: for each column divisor, salt and modulus: row number (id // divisor) mod modulus,
      with a salt instead hash(id, salt) mod modulus; None without compression.
  """

  name: str
  dim: int
  rows: int
  features: tuple[int, ...]
  parts: tuple[Part, ...]
  first_rows: np.ndarray
  columns: np.ndarray | None
  offsets_F: np.ndarray
  coding_3xF: np.ndarray | None

  @property
  def padded_rows(self) -> int:
    """Number of rows V, rounded up to ROW_MULTIPLE."""
    return -(-self.rows // ROW_MULTIPLE) * ROW_MULTIPLE

  def select_ids(self, ids_BxF: Array) -> Array:
    """Returns the ids of the table's columns, of all columns of ids."""
    return ids_BxF if self.columns is None else ids_BxF[:, self.columns]

  def positions(self, features: Mapping[str, Any]) -> Array:
    """Returns the table's rows (B, F), or (P,) with packed lists, that a batch selects."""
    numbers_BxF = self._row_numbers(features["ids"])
    lists = features.get(packed_lists.LISTS, {})
    if not self._is_packed(lists):
      return numbers_BxF
    packed = [
      numbers_BxF.at[lists[p.feature].batch_C, p.start + lists[p.feature].column_C].get(mode="clip")
      for p in self.parts
      if p.feature in lists
    ]
    return jnp.concatenate([numbers_BxF[:, self._padded_columns(lists)].reshape(-1), *packed])

  def spread(self, values_B: Array, features: Mapping[str, Any]) -> Array:
    """Returns a value of each row at its positions, (B, 1) or (P,); 0 where there is no id."""
    lists = features.get(packed_lists.LISTS, {})
    if not self._is_packed(lists):
      return values_B[:, None]
    padded = jnp.repeat(values_B, len(self._padded_columns(lists)))
    packed = [
      values_B.at[lists[p.feature].batch_C].get(mode="fill", fill_value=0)
      for p in self.parts
      if p.feature in lists
    ]
    return jnp.concatenate([padded, *packed])

  def separate(self, vectors: Array, features: Mapping[str, Any]) -> list[Array]:
    """Returns the vectors (B, L, D), or (C, D) of a packed list, of each of the parts.

    Args:
      vectors: vectors of the positions, (B, F, D) or (P, D).
      features: features of the batch.
    """
    lists = features.get(packed_lists.LISTS, {})
    if not self._is_packed(lists):
      return [vectors[:, p.start : p.start + p.length] for p in self.parts]
    rows, columns = features["ids"].shape[0], len(self._padded_columns(lists))
    padded_BxUxD = vectors[: rows * columns].reshape(rows, columns, self.dim)
    found, column, place = [], 0, rows * columns
    for p in self.parts:
      if p.feature in lists:
        end = place + lists[p.feature].batch_C.shape[0]
        found.append(vectors[place:end])
        place = end
      else:
        found.append(padded_BxUxD[:, column : column + p.length])
        column += p.length
    return found

  def _is_packed(self, lists: Mapping[int, Any]) -> bool:
    return any(p.feature in lists for p in self.parts)

  def _padded_columns(self, lists: Mapping[int, Any]) -> np.ndarray:
    """Returns the table's columns that are not packed."""
    kept = [np.arange(p.start, p.start + p.length) for p in self.parts if p.feature not in lists]
    return np.concatenate([np.zeros(0, int), *kept])

  def _row_numbers(self, ids_BxF: Array) -> Array:
    """Returns the table's rows (B, F), int32, that the ids of a batch select."""
    ids_BxF = self.select_ids(ids_BxF)
    if self.coding_3xF is not None:
      divisors_F, salts_F, moduli_F = jnp.asarray(self.coding_3xF)
      ids_BxF = ids_BxF.astype(jnp.uint32)
      hashed_BxF = scramble(ids_BxF ^ scramble(salts_F)[None, :])
      coded_BxF = jnp.where(salts_F > 0, hashed_BxF, ids_BxF // divisors_F[None, :])
      ids_BxF = coded_BxF % moduli_F[None, :]
    return ids_BxF.astype(jnp.int32) + self.offsets_F[None, :]


def compress(kind: str, size: int, rows: int) -> Compression | None:
  """Returns the compression of a feature; None if it has no more ids than rows.

  Args:
    kind: a key of COMPRESSIONS, or `none`.
    size: number of ids.
    rows: number of table rows that it may take.

  Raises:
    ValueError: if it does not fit into so few rows.
  """
  if kind == "none" or size <= rows:
    return None
  if kind == "double_hash":
    return Compression(kind, (rows // 2, rows - rows // 2))
  # The most remainders m, so that few ids share one: m + ceil(size / m) <= rows.
  least = 2 * math.isqrt(size) + 2
  if rows < least:
    raise ValueError(f"must be at least {least:,} for {size:,} ids")
  m = (rows + math.isqrt(rows * rows - 4 * size)) // 2
  while m + -(-size // m) > rows:
    m -= 1
  return Compression(kind, (-(-size // m), m))


def _coding_of(compression: Compression | None, size: int) -> list[tuple[int, int, int]]:
  """Returns divisor, salt and modulus of each of a feature's parts."""
  if compression is None:
    return [(1, 0, size)]
  first, second = compression.moduli
  if compression.kind == "double_hash":
    return [(1, 1, first), (1, 2, second)]
  return [(second, 0, first), (1, 0, second)]


def table_layouts(
  sizes: Sequence[int],
  dims: Sequence[int],
  lengths: Sequence[int] = (),
  shared: Sequence[str] = (),
  compressions: Sequence[Compression | None] = (),
) -> list[TableLayout]:
  """Returns the layout of each table, by ascending width.

  Args:
    sizes: number of ids of each feature.
    dims: width of each feature's vectors.
    lengths: columns of ids of each feature; empty for 1 each.
    shared: for each feature, a name that is equal for features with the same vectors; "" for none.
    compressions: of each feature; empty for none.
  """
  lengths = lengths or (1,) * len(sizes)
  starts = np.cumsum([0, *lengths[:-1]])
  layouts = []
  for dim in sorted(set(dims)):
    members = [f for f, d in enumerate(dims) if d == dim]
    first_row: dict[str | int, int] = {}
    columns, offsets, coding, unknown, places = [], [], [], set(), []
    rows = 0
    for f in members:
      compression = compressions[f] if compressions else None
      parts = _coding_of(compression, sizes[f])
      owner = (shared[f] if shared else "") or f
      if owner not in first_row:
        first_row[owner] = rows
        rows += sum(modulus for _, _, modulus in parts)
      at = first_row[owner]
      if compression is None:
        unknown.add(at)
      for part in parts:
        places.append(Part(f, len(columns), lengths[f]))
        columns += range(starts[f], starts[f] + lengths[f])
        offsets += [at] * lengths[f]
        coding += [part] * lengths[f]
        at += part[2]
    is_all = columns == list(range(sum(lengths)))
    is_coded = compressions and any(compressions[f] for f in members)
    layouts.append(
      TableLayout(
        name=f"table_{dim}",
        dim=dim,
        rows=rows,
        features=tuple(members),
        parts=tuple(places),
        first_rows=np.array(sorted(unknown), int),
        columns=None if is_all else np.array(columns, int),
        offsets_F=np.array(offsets, np.int32),
        coding_3xF=np.array(coding, np.uint32).T if is_coded else None,
      )
    )
  return layouts


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
    compressions: see table_layouts.
    init_std: standard deviation of the initial vectors.
    dtype: type of the tables' numbers, see DTYPES; vectors are float32.
    dropout: rate at which coordinates of the output are dropped in training.
    axis_name: device axis that rows are sharded over, if any.
  """

  sizes: Sequence[int]
  dims: Sequence[int]
  lengths: Sequence[int] = ()
  poolings: Sequence[str] = ()
  shared: Sequence[str] = ()
  compressions: Sequence[Compression | None] = ()
  init_std: float = 0.05
  dtype: str = "float32"
  dropout: float = 0.0
  axis_name: str | None = None

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool) -> Array:
    """Returns x_BxD: embeddings of `ids` (B, F), by width, then `numeric` (B, D_numeric).

    With `vectors`, table name -> (B, F, width) or (P, width), these are used instead of the tables'
    rows. With `input_scale` (D,), x is multiplied by it, see batch_ensemble. With `lists`, these
    features are packed, see packed_lists.
    """
    ids_BxF = features["ids"]
    lengths = self.lengths or (1,) * len(self.sizes)
    given = features.get("vectors", {})
    parts = []
    layouts = table_layouts(self.sizes, self.dims, lengths, self.shared, self.compressions)
    for table in layouts:
      vectors = given[table.name] if given else self._read(table, features)
      if len(table.offsets_F) > len(table.features):
        vectors = self._pool(table, vectors, features)
      parts.append(vectors.reshape(ids_BxF.shape[0], -1))
    if features["numeric"].shape[1]:
      parts.append(features["numeric"])
    x_BxD = jnp.concatenate(parts, axis=1)
    if "input_scale" in features:
      x_BxD = x_BxD * features["input_scale"][None, :]
    return Dropout(self.dropout, self.axis_name)(x_BxD, train)

  def _read(self, table: TableLayout, features: Mapping[str, Array]) -> Array:
    init = self._init(table.first_rows)
    if self.has_variable("params", table.name):
      # Without Flax's check of the shape: rows that fill up the devices' shards may follow.
      table_VxD = self.get_variable("params", table.name)
    else:
      table_VxD = self.param(table.name, init, (table.rows, table.dim), jnp.dtype(self.dtype))
    # Encoding keeps ids in range; a second check would cost 5 to 10 % of a step on a CPU.
    vectors = table_VxD.at[table.positions(features)].get(mode="promise_in_bounds")
    return vectors.astype(jnp.float32)

  def _pool(self, table: TableLayout, vectors: Array, features: Mapping[str, Array]) -> Array:
    """Combines the vectors of each id, then those of each list's known values: (B, features, D).

    Id 0 is an absent or unknown value.
    """
    ids_BxF = table.select_ids(features["ids"])
    lists = features.get(packed_lists.LISTS, {})
    parts = zip(table.parts, table.separate(vectors, features), strict=True)
    pooled = []
    for f in table.features:
      part, found = next(parts)
      compression = self.compressions[f] if self.compressions else None
      if compression is not None:
        found = COMPRESSIONS[compression.kind](found, next(parts)[1])
      if part.length == 1 and compression is None:
        pooled.append(found)
        continue
      if f in lists:
        pooled.append(packed_lists.pool(found, lists[f], self.poolings[f])[:, None])
        continue
      ids_BxL = ids_BxF[:, part.start : part.start + part.length]
      is_known_BxL = (ids_BxL > 0).astype(found.dtype)
      total_BxD = jnp.einsum("bld,bl->bd", found, is_known_BxL)
      if part.length > 1 and self.poolings[f] == "mean":
        total_BxD = total_BxD / jnp.maximum(is_known_BxL.sum(1, keepdims=True), 1.0)
      pooled.append(total_BxD[:, None])
    return jnp.concatenate(pooled, axis=1)

  def _init(self, unknown: np.ndarray) -> Callable[..., Array]:
    def init(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
      return nn.initializers.normal(self.init_std)(key, shape, dtype).at[unknown].set(0.0)

    return init
