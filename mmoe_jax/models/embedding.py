"""Embedding of id features, the input of every model.

Shape letters: B rows, F columns of ids, L of them of a list, D inputs, V table rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax.models.layers import Dropout

Array = jax.Array


class FeatureEmbedding(nn.Module):
  """Embeds id features and appends the numeric ones.

  There is one table per distinct width. The ids of feature f select its rows offset_f …
  offset_f + size_f − 1, so that one gather serves all features of a width. Row 0 of each feature,
  the id of unknown values, starts at zero: training has no unknown values, so they add nothing
  rather than noise.

  Attributes:
    sizes: number of ids of each feature.
    dims: width of each feature's vectors.
    lengths: columns of ids of each feature; empty for 1 each. A list has one per value.
    poolings: how a list's vectors are combined, `mean` or `sum`.
    init_std: standard deviation of the initial vectors.
    dropout: rate at which coordinates of the output are dropped in training.
  """

  sizes: Sequence[int]
  dims: Sequence[int]
  lengths: Sequence[int] = ()
  poolings: Sequence[str] = ()
  init_std: float = 0.05
  dropout: float = 0.0

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool) -> Array:
    """Returns x_BxD: embeddings of `ids` (B, F), by width, then `numeric` (B, D_numeric)."""
    ids_BxF = features["ids"]
    lengths = self.lengths or (1,) * len(self.sizes)
    starts = np.cumsum([0, *lengths[:-1]])
    parts = []
    for dim in sorted(set(self.dims)):
      members = [f for f, d in enumerate(self.dims) if d == dim]
      sizes = [self.sizes[f] for f in members]
      table_VxD = self.param(f"table_{dim}", self._init(sizes), (sum(sizes), dim))
      offsets = np.cumsum([0, *sizes[:-1]])
      columns = [starts[f] + i for f in members for i in range(lengths[f])]
      offsets_F = np.repeat(offsets, [lengths[f] for f in members]).astype(np.int32)
      column_ids_BxF = (
        ids_BxF if len(columns) == sum(lengths) else ids_BxF[:, np.array(columns, int)]
      )
      rows_BxF = column_ids_BxF.astype(jnp.int32) + offsets_F[None, :]
      # Encoding keeps ids in range; a second check would cost 5 to 10 % of a step on a CPU.
      vectors_BxFxD = table_VxD.at[rows_BxF].get(mode="promise_in_bounds")
      if len(columns) > len(members):
        vectors_BxFxD = self._pool(vectors_BxFxD, column_ids_BxF, members)
      parts.append(vectors_BxFxD.reshape(ids_BxF.shape[0], -1))
    if features["numeric"].shape[1]:
      parts.append(features["numeric"])
    x_BxD = jnp.concatenate(parts, axis=1)
    return Dropout(self.dropout)(x_BxD, train)

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

  def _init(self, sizes: Sequence[int]) -> Callable[..., Array]:
    unknown = np.cumsum([0, *sizes[:-1]])

    def init(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
      return nn.initializers.normal(self.init_std)(key, shape, dtype).at[unknown].set(0.0)

    return init
