"""Storage of a schema as JSON."""

import dataclasses
import itertools
import math

from mmoe_jax.data.schema import KINDS, TRANSFORMS, Schema
from mmoe_jax.errors import require
from mmoe_jax.files import parse, read_json_object, write_json

FORMAT_VERSION = 2


def save_schema(schema: Schema, path: str) -> None:
  """Writes a schema as JSON, atomically."""
  write_json(path, {"format_version": FORMAT_VERSION, **dataclasses.asdict(schema)})


def restore_schema(path: str) -> Schema:
  """Reads a schema that `save_schema` wrote.

  Raises:
    UserError: if the file is not a schema of this version.
  """
  content = read_json_object(path)
  version = content.pop("format_version", None)
  require(
    version == FORMAT_VERSION,
    f"{path}: has format version {version}, must be {FORMAT_VERSION}; prepare the data again (of a "
    "work directory: train again)",
  )
  schema = parse(content, Schema, path)
  fault = _find_fault(schema)
  require(fault is None, f"{path}: broken: {fault}; prepare the data again")
  return schema


def _find_fault(schema: Schema) -> str | None:
  """Returns why no preparation can have written a schema; None if it is sound."""
  kinds = ("category", "bins", "log_int", "cross")
  for feature in schema.id_features:
    where = f"id feature '{feature.name}'"
    if feature.kind not in kinds:
      return f"{where} has kind '{feature.kind}', must be one of {', '.join(kinds)}"
    if len(feature.sources) != (2 if feature.kind == "cross" else 1):
      return f"{where} has {len(feature.sources)} sources"
    expected = str if feature.kind == "category" else (int, float)
    if not all(isinstance(value, expected) for value in feature.values):
      return f"{where} has a value of another type"
    is_sorted = all(a < b for a, b in itertools.pairwise(feature.values))
    if feature.kind != "category" and not is_sorted:
      return f"{where} has values out of order"
  for feature in schema.numeric:
    if feature.transform not in TRANSFORMS:
      return f"number '{feature.name}' has the unknown transform '{feature.transform}'"
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
  if not schema.tasks or len({t.name for t in schema.tasks}) != len(schema.tasks):
    return "tasks are missing or repeated"
  if len({f.name for f in schema.id_features}) != len(schema.id_features):
    return "an id feature is repeated"
  return None
