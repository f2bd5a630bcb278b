"""Checkpoints, by orbax; no other module imports it.

`checkpoints/EPOCH/` holds two items that are written together: `state`, from which training
resumes, and `best`, the variables with the best validation metric so far.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mmoe_jax.errors import SaveError, UserError

FOLDER = "checkpoints"


def exists(workdir: str) -> bool:
  """Returns whether a work directory contains a checkpoint."""
  folder = os.path.join(workdir, FOLDER)
  return os.path.isdir(folder) and any(name.isdigit() for name in os.listdir(folder))


def read_arrays(workdir: str) -> dict[str, np.ndarray]:
  """Reads the arrays of the last saved state by path, for comparing runs."""
  folder = os.path.abspath(os.path.join(workdir, FOLDER))
  last = max((name for name in os.listdir(folder) if name.isdigit()), key=int)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # orbax warns that it takes the sharding from the file.
    tree = ocp.PyTreeCheckpointer().restore(os.path.join(folder, last, "state"))
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


class Checkpoints:
  """Checkpoints of a work directory; a context manager that waits for pending saves.

  Saving copies the arrays to the host and writes in the background, to a folder that is renamed
  when it is complete: a kill at any time leaves the previous checkpoint intact.
  """

  def __init__(self, workdir: str, read_only: bool = False):
    """Opens `workdir/checkpoints`, which is created unless `read_only`.

    Raises:
      UserError: if there is no such folder to read, or if it is a file.
    """
    self._directory = os.path.abspath(os.path.join(workdir, FOLDER))
    if read_only and not os.path.isdir(self._directory):
      raise UserError(f"{workdir}: contains no checkpoints; pass the --workdir of a training run")
    if os.path.exists(self._directory) and not os.path.isdir(self._directory):
      raise UserError(f"{self._directory}: must be a folder of checkpoints, not a file")
    options = ocp.CheckpointManagerOptions(
      max_to_keep=1, create=not read_only, read_only=read_only, cleanup_tmp_directories=True
    )
    self._manager = ocp.CheckpointManager(self._directory, options=options)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
    try:
      with self._user_errors():
        self._manager.close()
    except UserError:
      if kind is None:  # Otherwise the first error is the one to report.
        raise

  @contextlib.contextmanager
  def _user_errors(self) -> Iterator[None]:
    """Turns orbax' and tensorstore's errors for a full or missing disk into SaveError."""
    try:
      yield
    except (ValueError, OSError) as error:
      text = str(error)
      is_full = "RESOURCE_EXHAUSTED" in text or "No space left" in text
      reason = "no space left on the disk" if is_full else text.strip().splitlines()[0][:200]
      raise SaveError(
        f"{self._directory}: cannot save ({reason}); free some space, and the same command "
        "resumes from the previous checkpoint"
      ) from error

  def save(self, epoch: int, state: Any, best: Any) -> None:
    """Saves both items in the background, unless this epoch is saved already.

    Raises:
      SaveError: if this or the previous save cannot be written.
    """
    if self._manager.latest_step() == epoch:
      return
    items = {"state": ocp.args.StandardSave(state), "best": ocp.args.StandardSave(best)}
    with self._user_errors():
      self._manager.save(epoch, args=ocp.args.Composite(**items))

  def wait(self) -> None:
    """Waits until pending saves are on disk."""
    with self._user_errors():
      self._manager.wait_until_finished()

  def latest_epoch(self) -> int | None:
    """Returns the epoch of the last checkpoint; None if there is none."""
    return self._manager.latest_step()

  def restore_state(self, like: Any) -> Any | None:
    """Restores the last state with the structure and devices of `like`; None without checkpoint."""
    return self._restore("state", like)

  def restore_best(self, like: Any) -> Any | None:
    """Restores the best variables with the structure of `like`; None without checkpoint."""
    return self._restore("best", like)

  def _restore(self, item: str, like: Any) -> Any | None:
    epoch = self._manager.latest_step()
    if epoch is None:
      return None
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    args = ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)})
    try:
      return self._manager.restore(epoch, args=args)[item]
    # Errors of orbax, tensorstore and json for a missing or broken file, or one of other shapes.
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
      reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
      raise UserError(
        f"{self._directory}/{epoch}: cannot restore '{item}' ({reason[:200]}); use another "
        "--workdir to start again"
      ) from error
