"""Checkpoints of finished epochs, by orbax, which this module and `items` import only.

`checkpoints/EPOCH/` holds three items that are written together: `state`, from which training
resumes; `best`, the variables with the best validation metric so far; and `manifest`: the epoch,
digests of the arrays of both, and digests of what they belong to. The two newest are kept. Every
restored array is verified; where the newest checkpoint is damaged, the one before is used.

Large embedding tables are a fourth item, `tables`, and neither in `state` nor in `best`: the best
ones are those of the checkpoint of the best epoch, which is kept as well.
"""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from mmoe_jax.errors import UserError
from mmoe_jax.workdir.contract import CHECKPOINTS, saved_epochs
from mmoe_jax.workdir.items import DamagedError, Reader, to_save, user_errors, warn
from mmoe_jax.workdir.unfinished import UnfinishedEpoch

KEPT = 2
_TABLES = "embedding"  # The part of a model's parameters that the item `tables` holds.
_QUIET_SECONDS = 0.3


class Restored(NamedTuple):
  """Restored part of a checkpoint.

  Attributes:
    epoch: its epoch.
    item: the restored arrays.
    log: digest of the records of metrics.jsonl up to the epoch; None if it was not saved.
  """

  epoch: int
  item: Any
  log: str | None


def read_arrays(workdir: str, item: str = "state") -> dict[str, np.ndarray]:
  """Reads the arrays of an item of the last checkpoint by path, for comparing runs."""
  folder = os.path.abspath(os.path.join(workdir, CHECKPOINTS))
  last = os.path.join(folder, str(saved_epochs(workdir)[-1]), item)
  reader = ocp.PyTreeCheckpointer()
  # To the host: the devices that saved them may not exist here.
  to_host = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(last).item_metadata.tree
  )
  tree = reader.restore(last, restore_args=to_host)
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


class Checkpoints:
  """Checkpoints of a work directory; a context manager that waits for pending saves.

  Saving copies the arrays to the host and writes in the background, to a folder that is renamed
  when it is complete: a kill at any time leaves the previous checkpoint intact.

  Attributes:
    unfinished: state within an epoch.
  """

  def __init__(
    self,
    workdir: str,
    read_only: bool = False,
    belongs_to: Mapping[str, str] | None = None,
  ):
    """Opens `workdir/checkpoints`, which is created unless `read_only`.

    Args:
      workdir: the work directory.
      read_only: whether to restore only, also while another process trains there.
      belongs_to: name -> digest of what the run depends on (contract.digests_of, and `data`):
        saved with each checkpoint, and compared when one is restored.

    Raises:
      UserError: if there is no such folder to read, if it is a file, or if orbax cannot use it.
    """
    self._directory = os.path.abspath(os.path.join(workdir, CHECKPOINTS))
    self._workdir = workdir
    self._belongs_to = dict(belongs_to or {})
    self._damaged: set[int] = set()
    self._best_of: dict[int, int] = {}  # Epoch of a checkpoint -> epoch with its best tables.
    if read_only and not os.path.isdir(self._directory):
      raise UserError(f"{workdir}: contains no checkpoints; pass the --workdir of a training run")
    if os.path.exists(self._directory) and not os.path.isdir(self._directory):
      raise UserError(f"{self._directory}: must be a folder of checkpoints, not a file")
    # orbax logs each error that is raised here as well.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    self._reader = Reader(workdir, self._belongs_to)
    self.unfinished = UnfinishedEpoch(workdir, self._reader, self._belongs_to)
    self._manager = None
    if not read_only:
      options = ocp.CheckpointManagerOptions(
        preservation_policy=_NewestAndTheirBest(self._best_of), cleanup_tmp_directories=True
      )
      self._manager = ocp.CheckpointManager(self._directory, options=options)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
    try:
      with user_errors(self._directory):
        if self._manager is not None:
          self._manager.close()
          self._remove_old()
          self.unfinished.discard_finished()
        self._reader.close()
    except UserError:
      if kind is None:  # Otherwise the first error is the one to report.
        raise

  def save(
    self,
    epoch: int,
    state: Any,
    best: Any,
    log: str | None = None,
    tables: Mapping[str, Any] | None = None,
    best_epoch: int = 0,
  ) -> None:
    """Saves the items in the background, unless this epoch is saved already and whole.

    Args:
      epoch: number of finished epochs.
      state: arrays from which training resumes.
      best: variables with the best validation metric.
      log: digest of the records of metrics.jsonl up to this epoch.
      tables: tables by name, if they are not part of `state`.
      best_epoch: with tables, the epoch of `best`, which must be saved, too.

    Raises:
      SaveError: if this or the previous save cannot be written.
    """
    if epoch in self._manager.all_steps() and epoch not in self._damaged:
      return
    items = {"state": state, "best": best}
    manifest = {"epoch": epoch, "belongs_to": self._belongs_to, "log": log}
    if tables:
      items["tables"] = dict(tables)
      manifest["tables"] = {name: list(table.shape) for name, table in tables.items()}
      manifest["best_epoch"] = best_epoch
      self._best_of[epoch] = best_epoch
    with user_errors(self._directory):
      if epoch in self._damaged:
        self._manager.wait_until_finished()
        self._manager.delete(epoch)
        self._damaged.discard(epoch)
      self._manager.save(epoch, args=to_save(items, manifest))
    self.unfinished.discard_finished()

  def wait(self) -> None:
    """Waits until pending saves are on disk."""
    with user_errors(self._directory):
      self._manager.wait_until_finished()

  def keep_best_tables(self, epoch: int) -> None:
    """Keeps the best tables, of this epoch, for the checkpoints since, which were not read."""
    self._best_of.update({e: epoch for e in saved_epochs(self._workdir) if e >= epoch})

  def _remove_old(self) -> None:
    """Removes checkpoints that a killed process was deleting, once newer ones are complete."""
    epochs = saved_epochs(self._workdir)
    newest = epochs[-KEPT:]
    if jax.process_index() != 0 or len(epochs) <= KEPT:
      return
    kept = set(newest)
    for epoch in newest:
      path = os.path.join(self._directory, str(epoch))
      if os.path.isdir(os.path.join(path, "tables")):
        try:
          kept.add(self._reader.read_manifest(path)["best_epoch"])
        except DamagedError:
          return
    for epoch in set(epochs) - kept:
      shutil.rmtree(os.path.join(self._directory, str(epoch)), ignore_errors=True)

  def restore_state(
    self, like: Any, best_like: Any, tables_like: Mapping[str, Any] | None = None
  ) -> Restored | None:
    """Restores the newest whole state; None without checkpoint.

    A damaged `best` with it is remembered, so that the next `save` of its epoch replaces it.

    Args:
      like: arrays with the structure, shapes and devices of the state.
      best_like: the same for `best`.
      tables_like: the same for tables that are not part of the state.

    Returns:
      The state; with tables (state, tables).

    Raises:
      UserError: if every checkpoint is damaged, or belongs to another run.
    """
    restored = self._restore_newest("state", like, tables_like)
    if restored is not None:
      try:
        self._restore(restored.epoch, "best", best_like)
      except DamagedError as error:
        self._damaged.add(restored.epoch)
        warn(f"{self._directory}/{restored.epoch}: 'best' is damaged ({error}); saving it again")
    return restored

  def restore_best(self, like: Any) -> Restored | None:
    """Restores the newest whole best variables, tables included; as `restore_state`."""
    return self._restore_newest("best", like)

  def restore_tables(self, epoch: int, like: Mapping[str, Any]) -> dict[str, Any]:
    """Restores the tables of one checkpoint.

    Raises:
      UserError: if they are missing or damaged.
    """
    try:
      return self._restore(epoch, "tables", dict(like)).item
    except DamagedError as error:
      raise UserError(
        f"{self._directory}/{epoch}: cannot restore the best tables ({error}); restore the folder "
        "from a copy, or train in another --workdir"
      ) from error

  def _restore_newest(
    self, item: str, like: Any, tables_like: Mapping[str, Any] | None = None
  ) -> Restored | None:
    failed: dict[int, str] = {}
    # Listed again after each failure: a run that trains at the same time saves and deletes.
    while epochs := [e for e in saved_epochs(self._workdir) if e not in failed]:
      epoch = epochs[-1]
      try:
        restored = self._restore(epoch, item, like)
        if tables_like:
          tables = self._restore(epoch, "tables", dict(tables_like))
          restored = restored._replace(item=(restored.item, tables.item))
      except DamagedError as error:
        failed[epoch] = str(error)
        continue
      for other, reason in failed.items():
        if other in saved_epochs(self._workdir):
          self._damaged.add(other)
          warn(
            f"{self._directory}/{other}: damaged ({reason}); using the checkpoint of epoch {epoch}"
          )
      return restored
    if failed:
      epoch = max(failed)
      raise UserError(
        f"{self._directory}/{epoch}: cannot restore '{item}' ({failed[epoch]}), nor from any older "
        "checkpoint; restore the folder from a copy, or train in another --workdir"
      )
    return None

  def _restore(self, epoch: int, item: str, like: Any) -> Restored:
    """Restores an item of one checkpoint and verifies it.

    Raises:
      DamagedError: if it cannot be read or differs from what was saved.
      UserError: if it belongs to another run.
    """
    path = os.path.join(self._directory, str(epoch))
    if item == "best" and os.path.isdir(os.path.join(path, "tables")):
      return self._restore_best_with_tables(epoch, like)
    return self._restore_item(epoch, item, like)[0]

  def _restore_best_with_tables(self, epoch: int, like: Any) -> Restored:
    """Restores best variables whose tables are those of another checkpoint."""
    params = dict(like["params"])
    tables_like = params.pop(_TABLES, None)
    best, manifest = self._restore_item(epoch, "best", {**like, "params": params})
    if tables_like is None:
      return best
    # Saved tables may have more rows, which fill up shards.
    shapes = {
      name: jax.ShapeDtypeStruct(tuple(manifest["tables"][name]), t.dtype, sharding=t.sharding)
      for name, t in tables_like.items()
    }
    try:
      tables = self._restore_item(manifest["best_epoch"], "tables", shapes)[0].item
    except DamagedError as error:
      raise DamagedError(f"tables of epoch {manifest['best_epoch']}: {error}") from error
    return best._replace(item={**best.item, "params": {**best.item["params"], _TABLES: tables}})

  def _restore_item(self, epoch: int, item: str, like: Any) -> tuple[Restored, Mapping[str, Any]]:
    """Returns an item of one checkpoint, verified, and the manifest; raises as `_restore`."""
    path = os.path.join(self._directory, str(epoch))
    arrays, manifest = self._reader.read(path, item, like)
    if not manifest:
      warn(f"{path}: saved by an older version; cannot be verified")
      return Restored(epoch, arrays, None), {}
    if manifest["epoch"] != epoch:
      raise DamagedError(f"it was saved as epoch {manifest['epoch']}")
    if "best_epoch" in manifest:
      self._best_of[epoch] = manifest["best_epoch"]
    return Restored(epoch, arrays, manifest["log"]), manifest


class _NewestAndTheirBest(PreservationPolicy):
  """Keeps the newest checkpoints, and those with their best tables: epoch -> epoch `best_of`."""

  def __init__(self, best_of: Mapping[int, int]):
    self.best_of = best_of

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """Returns whether to keep each checkpoint."""
    del context
    newest = {each.step for each in checkpoints[-KEPT:]}
    kept = newest | {self.best_of[epoch] for epoch in newest if epoch in self.best_of}
    return [each.step in kept for each in checkpoints]
