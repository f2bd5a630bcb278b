"""Storage of a schema as JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmoe_jax.data.schema import IdFeature, NumericFeature, Schema, Slice, Task
from mmoe_jax.errors import UserError, require
from mmoe_jax.files import read_json_object, write_json

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
  try:
    return _from_json(content)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{path}: not a schema ({error}); prepare the data again") from error


def _from_json(content: dict[str, Any]) -> Schema:
  kinds = (
    ("id_features", IdFeature),
    ("numeric", NumericFeature),
    ("tasks", Task),
    ("slices", Slice),
  )
  for key, kind in kinds:
    content[key] = tuple(kind(**_tuples(item)) for item in content[key])
  content["columns"] = tuple(content["columns"])
  content["protocols"] = _tuples(content["protocols"])
  return Schema(**content)


def _tuples(item: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a mapping with tuples in place of JSON's lists."""
  return {k: tuple(v) if isinstance(v, list) else v for k, v in item.items()}
