"""Storage of a schema as JSON, and of large vocabularies in files next to it."""

import dataclasses
import itertools
import math
import os
from typing import Any

from mmoe_jax.data import vocabularies
from mmoe_jax.data.conditions import parse_condition
from mmoe_jax.data.schema import KINDS, POOLINGS, TIME_PARTS, TRANSFORMS, IdFeature, Schema
from mmoe_jax.data.vocabularies import Vocabulary
from mmoe_jax.errors import UserError, require
from mmoe_jax.files import parse, read_json_object, write_json

FORMAT_VERSION = 4
_READABLE = (2, 3, FORMAT_VERSION)


def save_schema(schema: Schema, path: str) -> list[str]:
  """Writes a schema as JSON, atomically, after the files of its large vocabularies.

  Returns:
    The files of vocabularies, relative to the folder of `path`.
  """
  content = _without_defaults(schema)
  entries: dict[str, Any] = {}
  for item in content["id_features"]:
    if isinstance(item.get("values"), Vocabulary):
      owner = item.get("table") or item["name"]
      if owner not in entries:
        folder = os.path.dirname(os.path.abspath(path))
        entries[owner] = vocabularies.save(item["values"], folder, owner)
      del item["values"]
      item["vocabulary"] = entries[owner]
  write_json(path, {"format_version": FORMAT_VERSION, **content})
  return [entry["file"] for entry in entries.values()]


def vocabulary_files(path: str) -> list[str]:
  """Returns the files of vocabularies that a schema refers to, relative to its folder.

  Raises:
    UserError: if the file is not a schema.
  """
  entries = _entries(read_json_object(path)).values()
  return sorted({vocabularies.path_in(entry, path) for entry in entries})


def restore_schema(path: str) -> Schema:
  """Reads a schema that `save_schema` wrote.

  Raises:
    UserError: if the file is not a schema of this version, or a vocabulary is missing or damaged.
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
  entries = _entries(content)
  schema = _with_vocabularies(parse(content, Schema, path), entries, path)
  fault = _find_fault(schema)
  require(fault is None, f"{path}: broken: {fault}; prepare the data again")
  return schema


def _entries(content: Any) -> dict[str, Any]:
  """Removes the vocabularies from the JSON values of a schema, and returns them by feature."""
  features = content.get("id_features")
  features = features if isinstance(features, list) else []
  return {
    str(item.get("name")): item.pop("vocabulary")
    for item in features
    if isinstance(item, dict) and "vocabulary" in item
  }


def _with_vocabularies(schema: Schema, entries: dict[str, Any], path: str) -> Schema:
  """Returns a schema whose features have the vocabularies of these entries."""
  opened: dict[str, Vocabulary] = {}
  features = []
  for feature in schema.id_features:
    if feature.name in entries:
      entry = entries[feature.name]
      name = vocabularies.path_in(entry, path)
      if name not in opened:
        opened[name] = vocabularies.restore(entry, path)
      feature = dataclasses.replace(feature, values=opened[name])
    features.append(feature)
  return dataclasses.replace(schema, id_features=tuple(features))


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
  for split, counts in schema.counts.items():
    if not isinstance(counts, dict) or not isinstance(counts.get("shards", []), list):
      return f"the counts of '{split}' are not those of a split"
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
  sizes: dict[str, int] = {}
  for feature in schema.id_features:
    if feature.table and sizes.setdefault(feature.table, feature.size) != feature.size:
      return f"features of different sizes in the table '{feature.table}'"
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
  if isinstance(feature.values, Vocabulary):
    return None if is_text else "a vocabulary"
  if not all(isinstance(value, str if is_text else int | float) for value in feature.values):
    return "a value of another type"
  if not is_text and not _ascends(feature.values):
    return "values out of order"
  return None


def _ascends(values: Any, strictly: bool = True) -> bool:
  pairs = itertools.pairwise(values)
  return all(a < b if strictly else a <= b for a, b in pairs)
