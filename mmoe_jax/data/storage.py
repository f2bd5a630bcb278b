"""Storage of a schema as JSON."""

import dataclasses
import itertools
import math
from typing import Any

from mmoe_jax.data.conditions import parse_condition
from mmoe_jax.data.schema import KINDS, POOLINGS, TIME_PARTS, TRANSFORMS, IdFeature, Schema
from mmoe_jax.errors import UserError, require
from mmoe_jax.files import parse, read_json_object, write_json

FORMAT_VERSION = 3
_READABLE = (2, FORMAT_VERSION)


def save_schema(schema: Schema, path: str) -> None:
  """Writes a schema as JSON, atomically."""
  write_json(path, {"format_version": FORMAT_VERSION, **_without_defaults(schema)})


def restore_schema(path: str) -> Schema:
  """Reads a schema that `save_schema` wrote.

  Raises:
    UserError: if the file is not a schema of this version.
  """
  content = read_json_object(path)
  version = content.pop("format_version", None)
  require(
    version in _READABLE,
    f"{path}: has format version {version}, must be {FORMAT_VERSION}; prepare the data again (of a "
    "work directory: train again)",
  )
  if version == 2:
    _update(content)
  schema = parse(content, Schema, path)
  fault = _find_fault(schema)
  require(fault is None, f"{path}: broken: {fault}; prepare the data again")
  return schema


def _without_defaults(schema: Schema) -> dict[str, Any]:
  """Returns a schema as JSON values; features and tasks have only what differs from a default."""

  def entries(item: Any) -> dict[str, Any]:
    return {
      field.name: getattr(item, field.name)
      for field in dataclasses.fields(item)
      if getattr(item, field.name) != field.default
    }

  content = {field.name: getattr(schema, field.name) for field in dataclasses.fields(schema)}
  for key in ("id_features", "numeric", "tasks", "slices"):
    content[key] = [entries(item) for item in content[key]]
  return content


def _update(content: dict[str, Any]) -> None:
  """Turns the JSON values of format version 2 into those of version 3."""
  for item in content.get("slices") or ():
    if isinstance(item, dict) and {"column", "at_least"} <= item.keys():
      item["condition"] = f"`{item.pop('column')}` >= {item.pop('at_least')!r}"


def _find_fault(schema: Schema) -> str | None:
  """Returns why no preparation can have written a schema; None if it is sound."""
  for feature in schema.id_features:
    if fault := _find_feature_fault(feature):
      return f"id feature '{feature.name}' has {fault}"
  for feature in schema.numeric:
    if feature.transform not in TRANSFORMS:
      return f"number '{feature.name}' has the unknown transform '{feature.transform}'"
    if feature.transform == "quantile" and len(feature.points) < 2:
      return f"number '{feature.name}' has no quantiles"
    if not (_ascends(feature.points, strictly=False) and _ascends(feature.edges)):
      return f"number '{feature.name}' has values out of order"
  for item in (*schema.numeric, *schema.tasks):
    if not (math.isfinite(item.mean) and math.isfinite(item.std) and item.std > 0):
      return f"'{item.name}' has mean {item.mean} and std {item.std}"
  for task in schema.tasks:
    if task.kind not in KINDS:
      return f"task '{task.name}' has the unknown kind '{task.kind}'"
    if task.kind == "multiclass" and len(set(task.classes)) != max(2, len(task.classes)):
      return f"task '{task.name}' has {len(set(task.classes))} different classes"
    if set(task.positive) & set(task.negative):
      return f"task '{task.name}' has a value that is positive and negative"
  try:
    for text in [*(s.condition for s in schema.slices), *(c for t in schema.tasks for c in _of(t))]:
      parse_condition(text)
  except UserError as error:
    return str(error)
  if not schema.tasks or len({t.name for t in schema.tasks}) != len(schema.tasks):
    return "tasks are missing or repeated"
  if len({f.name for f in schema.id_features}) != len(schema.id_features):
    return "an id feature is repeated"
  return None


def _of(task: Any) -> list[str]:
  return [text for text in (task.condition, task.labelled) if text]


def _find_feature_fault(feature: IdFeature) -> str | None:
  """Returns what is wrong with an id feature; None if it is sound."""
  kinds = ("category", "hash", "list", "bins", "log_int", "cross", *TIME_PARTS)
  if feature.kind not in kinds:
    return f"kind '{feature.kind}', must be one of {', '.join(kinds)}"
  if len(feature.sources) != (2 if feature.kind == "cross" else 1):
    return f"{len(feature.sources)} sources"
  if feature.buckets < 0 or (feature.kind == "hash") > (feature.buckets > 0):
    return f"{feature.buckets} buckets"
  if feature.length < 1 or (feature.length > 1) > (feature.kind == "list"):
    return f"length {feature.length}"
  if feature.kind == "list" and not (feature.pooling in POOLINGS and feature.separator):
    return "no pooling or separator"
  is_text = feature.kind in ("category", "list")
  if not all(isinstance(value, str if is_text else int | float) for value in feature.values):
    return "a value of another type"
  if not is_text and not _ascends(feature.values):
    return "values out of order"
  return None


def _ascends(values: Any, strictly: bool = True) -> bool:
  pairs = itertools.pairwise(values)
  return all(a < b if strictly else a <= b for a, b in pairs)
