"""Invented raw rows that reach every kind of value of a schema, to verify an export with."""

import datetime
from collections.abc import Callable
from typing import Any

import numpy as np

from mmoe_jax.data import IdFeature, NumericFeature, Schema
from mmoe_jax.data.encoding import needed_columns
from mmoe_jax.data.schema import TIME_PARTS

_SHARE = 0.1  # Of missing, and of unknown values.
_START = datetime.datetime(2024, 1, 1)


def make_rows(schema: Schema, count: int, seed: int = 0) -> list[dict[str, Any]]:
  """Returns raw rows of JSON values: known, unknown and missing ones of every column.

  Args:
    schema: schema of a run.
    count: number of rows.
    seed: seed of the values.
  """
  rng = np.random.default_rng(seed)
  draws = {column: _draw_of(schema, column, rng) for column in needed_columns(schema)}
  return [{column: draw() for column, draw in draws.items()} for _ in range(count)]


def _draw_of(schema: Schema, column: str, rng: np.random.Generator) -> Callable[[], Any]:
  """Returns a function that draws a value of a column."""
  numbers = [n for n in schema.numeric if n.name == column]
  features = [f for f in schema.id_features if f.sources == (column,)]
  kinds = {f.kind for f in features}
  if numbers or kinds & {"bins", "log_int"}:
    return lambda: _number(numbers, features, rng)
  feature = features[0]
  if kinds & TIME_PARTS.keys():
    return lambda: (
      None
      if rng.random() < _SHARE
      else (_START + datetime.timedelta(seconds=int(rng.integers(10**8)))).isoformat(sep=" ")
    )
  if feature.kind == "list":
    return lambda: _list(feature, rng)
  return lambda: None if rng.random() < _SHARE else _text(feature, rng)


def _text(feature: IdFeature, rng: np.random.Generator) -> str:
  if feature.buckets or rng.random() < _SHARE:
    return f"value {rng.integers(10**6)}"
  return str(feature.values[int(rng.integers(len(feature.values)))])


def _list(feature: IdFeature, rng: np.random.Generator) -> Any:
  texts = [_text(feature, rng) for _ in range(rng.integers(0, feature.length + 3))]
  return texts if rng.random() < 0.5 else feature.separator.join(texts)


def _number(
  numbers: list[NumericFeature], features: list[IdFeature], rng: np.random.Generator
) -> float | None:
  has_missing = any(item.has_missing for item in (*numbers, *features))
  if has_missing and rng.random() < _SHARE:
    return None
  is_log = any(n.transform == "log1p" for n in numbers) or any(
    f.kind == "log_int" for f in features
  )
  edges = [float(v) for f in features if f.kind == "bins" for v in f.values]
  value = float(rng.choice(edges)) if edges and rng.random() < 0.5 else float(rng.normal(0, 50))
  value = abs(value) if is_log else value
  return float(int(value)) if rng.random() < 0.5 else value
