"""Checkpoints: the only room that imports orbax.

`checkpoints/EPOCH/` holds two items, written together so that they never disagree: `state`, from
which training goes on, and `best`, the variables with the best validation measure so far.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mmoe_jax.errors import UserError

FOLDER = "checkpoints"


def exists(workdir: str) -> bool:
  """Whether a run in this work directory has saved anything yet."""
  folder = os.path.join(workdir, FOLDER)
  return os.path.isdir(folder) and any(name.isdigit() for name in os.listdir(folder))


def read_raw(workdir: str) -> dict[str, np.ndarray]:
  """The arrays of the last saved state by path, as they are on disk, for comparing runs."""
  folder = os.path.abspath(os.path.join(workdir, FOLDER))
  last = max((name for name in os.listdir(folder) if name.isdigit()), key=int)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # That it asks the file for its sharding is what we want.
    tree = ocp.PyTreeCheckpointer().restore(os.path.join(folder, last, "state"))
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


class Checkpoints:
  """The checkpoints of a work directory; a context manager that waits for pending saves.

  Saving copies the arrays to the host and writes in the background, to a folder that is renamed
  when it is complete: a kill at any moment leaves the one before.
  """

  def __init__(self, workdir: str, read_only: bool = False):
    """Opens `workdir/checkpoints`, which is made unless `read_only`."""
    self._directory = os.path.abspath(os.path.join(workdir, FOLDER))
    if read_only and not os.path.isdir(self._directory):
      raise UserError(f"{workdir}: no checkpoints here; is it the --workdir of a training run?")
    if os.path.exists(self._directory) and not os.path.isdir(self._directory):
      raise UserError(f"{self._directory}: in the way: not a folder of checkpoints")
    options = ocp.CheckpointManagerOptions(
      max_to_keep=1, create=not read_only, read_only=read_only, cleanup_tmp_directories=True
    )
    self._manager = ocp.CheckpointManager(self._directory, options=options)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
    try:
      with self._writing():
        self._manager.close()
    except UserError:
      if kind is None:  # Else what went wrong first is what the user should hear of.
        raise

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns what orbax and tensorstore raise for a full or lost disk, at a save or after it."""
    try:
      yield
    except (ValueError, OSError) as error:
      text = str(error)
      full = "RESOURCE_EXHAUSTED" in text or "No space left" in text
      reason = "no space left on the disk" if full else text.strip().splitlines()[0][:200]
      raise UserError(
        f"{self._directory}: cannot save ({reason}); make room, and the same command goes on from "
        "the checkpoint before"
      ) from error

  def save(self, epoch: int, state: Any, best: Any) -> None:
    """Saves both items in the background, if this epoch is not saved already.

    Raises UserError when it, or the save before, could not be written.
    """
    if self._manager.latest_step() == epoch:
      return
    items = {"state": ocp.args.StandardSave(state), "best": ocp.args.StandardSave(best)}
    with self._writing():
      self._manager.save(epoch, args=ocp.args.Composite(**items))

  def wait(self) -> None:
    """Waits until what was saved is on disk."""
    with self._writing():
      self._manager.wait_until_finished()

  def latest_epoch(self) -> int | None:
    """The epoch of the last checkpoint; None if there is none."""
    return self._manager.latest_step()

  def restore_state(self, like: Any) -> Any | None:
    """The last state, in the structure and on the devices of `like`; None if there is none."""
    return self._restore("state", like)

  def restore_best(self, like: Any) -> Any | None:
    """The best variables, in the structure of `like`; None if there is no checkpoint."""
    return self._restore("best", like)

  def _restore(self, item: str, like: Any) -> Any | None:
    epoch = self._manager.latest_step()
    if epoch is None:
      return None
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    args = ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)})
    try:
      return self._manager.restore(epoch, args=args)[item]
    # What orbax, tensorstore and json raise for a missing, broken or other-shaped file.
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
      reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
      raise UserError(
        f"{self._directory}/{epoch}: cannot restore '{item}' ({reason[:200]}); delete the work "
        "directory to start anew"
      ) from error
