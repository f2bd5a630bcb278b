"""Identities of a run at tracking services, in trackers.json, so that a resumed run continues."""

import os
from typing import Any

from mmoe_jax.errors import UserError
from mmoe_jax.files import read_json_object, write_json

IDENTITIES = "trackers.json"


def read(workdir: str, tracker: str) -> dict[str, Any]:
  """Returns what a tracker has saved; empty if nothing.

  Raises:
    UserError: if the file is broken.
  """
  path = os.path.join(workdir, IDENTITIES)
  saved = read_json_object(path).get(tracker, {}) if os.path.exists(path) else {}
  if not isinstance(saved, dict):
    raise UserError(f"{path}: broken: '{tracker}' must be an object")
  return saved


def save(workdir: str, tracker: str, entries: dict[str, Any]) -> None:
  """Saves what a tracker needs to continue its run."""
  path = os.path.join(workdir, IDENTITIES)
  saved = read_json_object(path) if os.path.exists(path) else {}
  write_json(path, saved | {tracker: entries})
