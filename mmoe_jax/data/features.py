"""Features of encoded rows: standardised numbers, quantiles, piecewise-linear encoding.

Shape letters: N rows, F columns of ids.
"""

from collections.abc import Sequence

import numpy as np

from mmoe_jax.data.schema import EncodedRows, Schema


def to_features(schema: Schema, rows: EncodedRows) -> dict[str, np.ndarray]:
  """Returns the features of encoded rows: `ids` (N, F) and `numeric` (N, inputs), standardised."""
  mean = np.array([n.mean for n in schema.numeric])
  std = np.array([n.std for n in schema.numeric])
  is_log = np.array([n.transform == "log1p" for n in schema.numeric], bool)
  raw = np.array(rows.numbers, np.float64)
  x = raw.copy()
  np.log1p(x, out=x, where=is_log)
  for d, feature in enumerate(schema.numeric):
    if feature.transform == "quantile":
      x[:, d] = quantiles(raw[:, d], feature.points)
  inputs = [((x - mean) / std).astype(np.float32)]
  if schema.numeric_count > len(schema.numeric):
    is_missing = np.isnan(raw)
    inputs[0][is_missing] = 0.0
    has_missing = [n.has_missing for n in schema.numeric]
    inputs.append(is_missing[:, has_missing].astype(np.float32))
    inputs += [pieces(raw[:, d], n.edges) for d, n in enumerate(schema.numeric) if n.edges]
  return {"ids": np.asarray(rows.ids), "numeric": np.concatenate(inputs, axis=1)}


def quantiles(x_N: np.ndarray, points: Sequence[float]) -> np.ndarray:
  """Returns the share of train rows below each value, interpolated between quantiles."""
  points = np.asarray(points)
  # Of equal points, a value gets the middle of their quantiles.
  distinct, first, counts = np.unique(points, return_index=True, return_counts=True)
  middle = (first + (counts - 1) / 2) / (len(points) - 1)
  found = np.interp(x_N, distinct, middle)
  return np.where(np.isnan(x_N), np.nan, found)


def pieces(x_N: np.ndarray, edges: Sequence[float]) -> np.ndarray:
  """Returns the piecewise-linear encoding (N, len(edges) - 1); 0 for missing values."""
  edges = np.asarray(edges)
  share = (x_N[:, None] - edges[:-1]) / np.diff(edges)
  return np.nan_to_num(np.clip(share, 0, 1)).astype(np.float32)
