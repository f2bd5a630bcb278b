"""Loading prepared data for one run. NumPy and pandas only.

The schema's names are here too, so that `data.Task` and the like are all that callers need.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmoe_jax.errors import UserError, require
from mmoe_jax.schema import (
  FORMAT_VERSION,
  KINDS,
  NUMERIC_FORMS,
  TRANSFORMS,
  UNKNOWN,
  Arrays,
  IdFeature,
  NumericFeature,
  Schema,
  Slice,
  Split,
  Task,
  stack,
)

__all__ = [
  "FORMAT_VERSION",
  "KINDS",
  "NUMERIC_FORMS",
  "SPLITS",
  "TRANSFORMS",
  "UNKNOWN",
  "Arrays",
  "IdFeature",
  "NumericFeature",
  "Schema",
  "Slice",
  "Split",
  "Task",
  "load",
]
SPLITS = ("train", "validation", "test")


def load(
  directory: str,
  tasks: Sequence[str],
  protocol: str,
  numeric: str = "standardize",
  exclude: Sequence[str] = (),
  crosses: Sequence[str] = (),
) -> tuple[Schema, dict[str, Split]]:
  """Loads prepared data for one run.

  Args:
    directory: where data preparation wrote.
    tasks, protocol, numeric, exclude: see `Schema.select`.
    crosses: crossed features to add, see `Schema.with_crosses`.

  Returns:
    The schema of the run and its splits, by the names in SPLITS.

  Raises:
    UserError: when there is no prepared data, a file is broken, or a split is empty.
  """
  path = os.path.join(directory, "schema.json")
  require(
    os.path.exists(path),
    f"{directory}: no prepared data here; run: python -m data_prep.census_income --out {directory} "
    "(or data_prep.synthetic, for that data)",
  )
  full = Schema.restore(path)
  stored = {name: _load_arrays(directory, name, full) for name in SPLITS}
  schema = full.select(tasks, protocol, numeric, exclude)
  stored = {name: _take(arrays, full, schema) for name, arrays in stored.items()}
  if crosses:
    plain = schema
    schema = plain.with_crosses(crosses, stored["train"].ids)
    stored = {name: _append_crosses(arrays, plain, schema) for name, arrays in stored.items()}
  require(
    bool(schema.id_features) or bool(schema.numeric), "config.data leaves no feature to learn from"
  )
  splits = {}
  for name, arrays in stored.items():
    source = _load_numbers(directory, name, full, [s.column for s in schema.slices])
    slices = {s.name: column >= s.at_least for s, column in zip(schema.slices, source, strict=True)}
    splits[name] = Split(schema.features(arrays), arrays.labels, arrays.weights, slices)
  return schema, splits


def _load_arrays(directory: str, split: str, schema: Schema) -> Arrays:
  loaded = {}
  for field in ("ids", "numbers", "labels", "weights"):
    path = os.path.join(directory, split, f"{field}.npy")
    try:
      loaded[field] = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
      raise UserError(f"{path}: broken array ({error}); prepare the data again") from error
  kinds = {"ids": ("u", 2), "numbers": ("uif", 2), "labels": ("f", 2), "weights": ("f", 1)}
  for field, (kind, ndim) in kinds.items():
    require(
      loaded[field].dtype.kind in kind and loaded[field].ndim == ndim,
      f"{directory}/{split}/{field}.npy: not an array of that kind; prepare the data again",
    )
  rows = {len(array) for array in loaded.values()}
  require(
    len(rows) == 1, f"{directory}/{split}: arrays of different lengths; prepare the data again"
  )
  require(rows != {0}, f"{directory}/{split}: the split is empty; prepare the data again")
  sizes = np.array([f.size for f in schema.id_features])
  widths = {"ids": len(sizes), "numbers": len(schema.numeric), "labels": len(schema.tasks)}
  fits = all(loaded[k].shape[1] == n for k, n in widths.items())
  fits = fits and all(_fit(loaded["labels"][:, t], task) for t, task in enumerate(schema.tasks))
  fits = fits and bool(np.isfinite(loaded["weights"]).all())
  # Models do not check ids again, so an id that its table lacks must not get past here.
  require(
    fits and bool((loaded["ids"].max(0) < sizes).all()),
    f"{directory}/{split}: arrays that do not fit schema.json; prepare the data again",
  )
  return Arrays(**loaded)


def _fit(labels: np.ndarray, task: Task) -> bool:
  """Whether labels are what their task can have."""
  known = labels[~np.isnan(labels)]
  if task.kind == "regression":
    return bool(np.isfinite(known).all())
  classes = 2 if task.kind == "binary" else len(task.classes)
  return bool(((known >= 0) & (known < classes) & (known == np.floor(known))).all())


def _load_numbers(
  directory: str, split: str, schema: Schema, columns: Sequence[str]
) -> list[np.ndarray]:
  numbers = np.load(os.path.join(directory, split, "numbers.npy"), mmap_mode="r")
  names = [n.name for n in schema.numeric]
  return [numbers[:, names.index(column)] for column in columns]


def _take(arrays: Arrays, full: Schema, schema: Schema) -> Arrays:
  def columns(array: np.ndarray, have: Sequence[Any], want: Sequence[Any]) -> np.ndarray:
    names = [item.name for item in have]
    return np.ascontiguousarray(array[:, [names.index(item.name) for item in want]])

  return Arrays(
    ids=columns(arrays.ids, full.id_features, schema.id_features),
    numbers=columns(arrays.numbers, full.numeric, schema.numeric),
    labels=columns(arrays.labels, full.tasks, schema.tasks),
    weights=np.asarray(arrays.weights),
  )


def _append_crosses(arrays: Arrays, plain: Schema, schema: Schema) -> Arrays:
  by_name = {f.name: arrays.ids[:, i] for i, f in enumerate(plain.id_features)}
  columns = list(by_name.values())
  columns += [schema.cross(f, by_name) for f in schema.id_features[len(columns) :]]
  dtype = np.min_scalar_type(max(f.size for f in schema.id_features) - 1)
  return dataclasses.replace(arrays, ids=stack(columns, len(arrays.ids), dtype))
