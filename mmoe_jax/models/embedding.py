"""Embedding of id features, the input of every model.

Shape letters: B rows, F id features, D inputs, V table rows.
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
    init_std: standard deviation of the initial vectors.
    dropout: rate at which coordinates of the output are dropped in training.
  """

  sizes: Sequence[int]
  dims: Sequence[int]
  init_std: float = 0.05
  dropout: float = 0.0

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool) -> Array:
    """Returns x_BxD: embeddings of `ids` (B, F), by width, then `numeric` (B, D_numeric)."""
    ids_BxF = features["ids"]
    parts = []
    for dim in sorted(set(self.dims)):
      columns = [f for f, d in enumerate(self.dims) if d == dim]
      sizes = [self.sizes[f] for f in columns]
      table_VxD = self.param(f"table_{dim}", self._init(sizes), (sum(sizes), dim))
      offsets_F = np.cumsum([0, *sizes[:-1]]).astype(np.int32)
      column_ids_BxF = ids_BxF if len(columns) == len(self.dims) else ids_BxF[:, np.array(columns)]
      rows_BxF = column_ids_BxF.astype(jnp.int32) + offsets_F[None, :]
      # Encoding keeps ids in range; a second check would cost 5 to 10 % of a step on a CPU.
      vectors = table_VxD.at[rows_BxF].get(mode="promise_in_bounds")
      parts.append(vectors.reshape(ids_BxF.shape[0], -1))
    if features["numeric"].shape[1]:
      parts.append(features["numeric"])
    x_BxD = jnp.concatenate(parts, axis=1)
    return Dropout(self.dropout)(x_BxD, train)

  def _init(self, sizes: Sequence[int]) -> Callable[..., Array]:
    unknown = np.cumsum([0, *sizes[:-1]])

    def init(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
      return nn.initializers.normal(self.init_std)(key, shape, dtype).at[unknown].set(0.0)

    return init
