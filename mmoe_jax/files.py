"""Files: atomic writes, JSON, arrays."""

import contextlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from mmoe_jax.errors import UserError, require


def write_atomically(path: str, text: str) -> None:
  """Writes text to a temporary file and renames it, so that readers never find half a file."""
  with replacing(path) as tmp_path, open(tmp_path, "w", encoding="utf-8") as file:
    file.write(text)


def save_array(path: str, array: np.ndarray) -> None:
  """Writes an array in NumPy's format, atomically."""
  with replacing(path) as tmp_path, open(tmp_path, "wb") as file:
    np.save(file, array)


def to_json(tree: Any, indent: int | None = None) -> str:
  """Returns a tree of JSON values as text; NaN and infinities become null."""
  return json.dumps(nan_to_none(tree), indent=indent)


def write_json(path: str, tree: Any) -> None:
  """Writes a tree of JSON values, atomically; see `to_json`. The folder is created if absent."""
  os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
  write_atomically(path, to_json(tree, indent=1))


def read_json_object(path: str) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    UserError: if the file is not JSON, or not an object.
    OSError: if it cannot be read.
  """
  try:
    with open(path, encoding="utf-8") as file:
      content = json.load(file, parse_constant=_refuse)
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path}: broken: not JSON ({error})") from error
  require(isinstance(content, dict), f"{path}: broken: not a JSON object")
  return content


def _refuse(constant: str) -> None:
  raise ValueError(f"{constant} is not a JSON value")


def parse(content: Any, kind: Any, path: str) -> Any:
  """Converts JSON values to a type, such as a dataclass or a TypedDict.

  Args:
    content: JSON values.
    kind: the type.
    path: file, for the error.

  Raises:
    UserError: naming the file, the key and what was expected.
  """
  try:
    return msgspec.convert(content, kind)
  except (msgspec.ValidationError, RecursionError) as error:
    raise UserError(f"{path}: broken: {error}") from error


def nan_to_none(tree: Any) -> Any:
  """Returns a tree of JSON values, from NumPy's too, with None for numbers that are not finite."""
  if isinstance(tree, np.ndarray | np.generic):
    tree = tree.tolist()
  if isinstance(tree, Mapping):
    return {key: nan_to_none(value) for key, value in tree.items()}
  if isinstance(tree, list | tuple):
    return [nan_to_none(value) for value in tree]
  return None if isinstance(tree, float) and not math.isfinite(tree) else tree


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
  """Yields a temporary path; the file there replaces `path` unless an error is raised.

  A link is followed. Devices and pipes are not replaced: the content is written into them.
  """
  path = os.path.realpath(path)
  if os.path.exists(path) and not os.path.isfile(path):
    yield path
    return
  # An unpredictable name, and a file that did not exist.
  number, tmp_path = tempfile.mkstemp(
    dir=os.path.dirname(path), prefix=f".{os.path.basename(path)[:200]}-", suffix=".part"
  )
  try:
    os.fchmod(number, _mode(path))
    os.close(number)
    yield tmp_path
    os.replace(tmp_path, path)
  finally:
    if os.path.exists(tmp_path):
      os.remove(tmp_path)


def _mode(path: str) -> int:
  """Returns the permissions of a file, or those that a new one would have."""
  with contextlib.suppress(FileNotFoundError):
    return stat.S_IMODE(os.stat(path).st_mode)
  mask = os.umask(0)
  os.umask(mask)
  return 0o666 & ~mask
