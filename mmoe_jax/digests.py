"""Digests: SHA-256 of files and of JSON, which show damage and changes."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mmoe_jax.errors import require
from mmoe_jax.files import nan_to_none, read_json_object

SEAL = "sha256"  # Key of a sealed object's digest of its other entries.


def of_file(path: str) -> str:
  """Returns the SHA-256 of a file's content, in hexadecimal digits."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def of_json(tree: Any) -> str:
  """Returns the SHA-256 of a tree of JSON values; the order of keys does not matter."""
  text = json.dumps(nan_to_none(tree), sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a JSON object with the digest of its entries as a last entry; see `open_sealed`."""
  content = nan_to_none(content)
  return {**content, SEAL: of_json(content)}


def is_sealed(content: Mapping[str, Any]) -> bool:
  """Returns whether a JSON object has its digest, and has not changed since it was sealed."""
  entries = {key: value for key, value in content.items() if key != SEAL}
  return content.get(SEAL) == of_json(entries)


def read_sealed(path: str) -> dict[str, Any]:
  """Reads a sealed JSON object without its digest; one without a digest is accepted.

  Raises:
    UserError: if the file is not a JSON object, or has changed since it was written.
    OSError: if it cannot be read.
  """
  content = read_json_object(path)
  require(
    SEAL not in content or is_sealed(content),
    f"{path}: changed or damaged since it was written ({SEAL} does not match)",
  )
  return {key: value for key, value in content.items() if key != SEAL}
