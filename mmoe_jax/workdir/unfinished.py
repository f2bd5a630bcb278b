"""State within an epoch, saved when training stops there, so that no step is repeated.

`checkpoints/unfinished/EPOCH.STEPS/` holds `state`, as in a checkpoint; `losses` of the steps that
are done; `tables`, if they are not part of the state; and `manifest`. There is at most one, until
the epoch is finished and saved.
"""

import os
import re
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mmoe_jax.workdir.contract import CHECKPOINTS, saved_epochs
from mmoe_jax.workdir.items import DamagedError, Reader, to_save, user_errors, warn

_FOLDER = "unfinished"
_NAME = re.compile(r"(\d+)\.(\d+)")


class Unfinished(NamedTuple):
  """State within an epoch.

  Attributes:
    epoch: number of finished epochs.
    steps: number of finished steps of the next epoch.
    rows: number of rows of the next epoch that have been trained on.
    state: the state; without tables that are not part of it.
    losses: losses of the finished steps, arrays by name.
    seconds: training time of the finished steps.
    wall_seconds: time of the run until then.
    log: digest of the records of metrics.jsonl up to the epoch.
    tables: tables by name, if they are not part of the state.
    best_epoch: with tables, the epoch of the best ones.
  """

  epoch: int
  steps: int
  rows: int
  state: Any
  losses: Mapping[str, np.ndarray]
  seconds: float
  wall_seconds: float = 0.0
  log: str | None = None
  tables: Mapping[str, Any] | None = None
  best_epoch: int = 0


class UnfinishedEpoch:
  """The unfinished epoch of a work directory."""

  def __init__(self, workdir: str, reader: Reader, belongs_to: Mapping[str, str]):
    """Takes the work directory, its reader, and what its checkpoints belong to."""
    self._workdir, self._reader, self._belongs_to = workdir, reader, belongs_to
    self._directory = os.path.abspath(os.path.join(workdir, CHECKPOINTS, _FOLDER))
    self._restored = ""

  def save(self, unfinished: Unfinished) -> None:
    """Saves a state and waits until it is complete; then removes the one before.

    Raises:
      SaveError: if it cannot be written.
    """
    name = f"{unfinished.epoch}.{unfinished.steps}"
    if name == self._restored:
      return
    items = {"state": unfinished.state, "losses": dict(unfinished.losses)}
    if unfinished.tables:
      items["tables"] = dict(unfinished.tables)
    numbers = ("epoch", "steps", "rows", "seconds", "wall_seconds", "log", "best_epoch")
    manifest = {key: getattr(unfinished, key) for key in numbers}
    manifest["shapes"] = {key: list(array.shape) for key, array in unfinished.losses.items()}
    with user_errors(self._directory):
      self._reader.save(
        os.path.join(self._directory, name),
        to_save(items, {**manifest, "belongs_to": self._belongs_to}),
      )
    self._remove(except_for=name)

  def restore(
    self, like: Any, tables_like: Mapping[str, Any] | None, starts: Mapping[int, int]
  ) -> Unfinished | None:
    """Restores the state within an epoch that no checkpoint has finished; None without.

    A damaged one is left out, with a warning: training then repeats the epoch.

    Args:
      like: arrays with the structure, shapes and devices of the state.
      tables_like: the same for tables that are not part of the state.
      starts: number of steps from which an epoch can be resumed -> number of rows before.

    Raises:
      UserError: if it belongs to another run.
    """
    newest = max(self._names(), default=None)
    if newest is None or newest[0] < max(saved_epochs(self._workdir), default=0):
      return None
    name = f"{newest[0]}.{newest[1]}"
    path = os.path.join(self._directory, name)
    try:
      manifest = self._reader.read_manifest(path)
      if (manifest["epoch"], manifest["steps"]) != newest:
        raise DamagedError(f"it was saved as {manifest['epoch']}.{manifest['steps']}")
      if starts.get(manifest["steps"]) != manifest["rows"]:
        raise DamagedError("another version divides the epoch otherwise")
      shapes = {k: np.zeros(shape, np.float32) for k, shape in manifest["shapes"].items()}
      items = {"state": like, "losses": shapes} | ({"tables": tables_like} if tables_like else {})
      found = {item: self._reader.read(path, item, each)[0] for item, each in items.items()}
    except DamagedError as error:
      warn(f"{path}: cannot be used ({error}); repeating the epoch from its start")
      return None
    self._restored = name
    numbers = {key: manifest[key] for key in ("rows", "seconds", "wall_seconds", "log")}
    return Unfinished(*newest, **numbers, **found, best_epoch=manifest["best_epoch"])

  def discard_finished(self) -> None:
    """Removes the state of an epoch that a checkpoint has finished."""
    newest = max(self._names(), default=None)
    if newest is not None and newest[0] < max(saved_epochs(self._workdir), default=0):
      self._remove()

  def _names(self) -> list[tuple[int, int]]:
    names = os.listdir(self._directory) if os.path.isdir(self._directory) else []
    return [(int(m[1]), int(m[2])) for m in map(_NAME.fullmatch, names) if m]

  def _remove(self, except_for: str = "") -> None:
    """Removes the folders of all states but one, those of interrupted saves included."""
    if jax.process_index() != 0:
      return
    for name in os.listdir(self._directory):
      if name != except_for:
        shutil.rmtree(os.path.join(self._directory, name), ignore_errors=True)
    if not except_for:
      os.rmdir(self._directory)
