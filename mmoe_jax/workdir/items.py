"""Items of a checkpoint: how they are written and read, and that they are what was saved.

An item is a tree of arrays. The item `manifest` has the digests of the others, and of the files
that the checkpoint belongs to.
"""

import contextlib
import gc
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from mmoe_jax import digests
from mmoe_jax.errors import SaveError, require
from mmoe_jax.workdir.array_digests import digest_arrays

_QUIET_SECONDS = 0.3


class DamagedError(Exception):
  """A checkpoint cannot be read, or its arrays are not those that were saved."""


def to_save(items: Mapping[str, Any], manifest: Mapping[str, Any]) -> Any:
  """Returns what orbax saves: the items, and the manifest with their digests.

  Args:
    items: arrays by the name of an item.
    manifest: the other entries of the manifest.
  """
  content = {**manifest, "items": {k: digest_arrays(tree) for k, tree in items.items()}}
  saved: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
  saved["manifest"] = ocp.args.JsonSave(digests.seal({**content, "in_parts": True}))
  return ocp.args.Composite(**saved)


@contextlib.contextmanager
def user_errors(directory: str) -> Iterator[None]:
  """Turns orbax' and tensorstore's errors for a full or missing disk into SaveError."""
  try:
    yield
  except (ValueError, OSError) as error:
    text = str(error)
    is_full = "RESOURCE_EXHAUSTED" in text or "No space left" in text
    reason = "no space left on the disk" if is_full else _first_line(error)
    raise SaveError(
      f"{directory}: cannot save ({reason}); free some space, and the same command "
      "resumes from the previous checkpoint"
    ) from error


class Reader:
  """Reads items of checkpoints of one work directory."""

  def __init__(self, workdir: str, belongs_to: Mapping[str, str]):
    """Takes the work directory, and name -> digest of what its checkpoints belong to."""
    self._workdir, self._belongs_to = workdir, belongs_to
    self._checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())

  def close(self) -> None:
    """Ends its threads."""
    self._checkpointer.close()

  def save(self, path: str, items: Any) -> None:
    """Saves what `to_save` gave, and waits until it is complete; replaces an earlier save."""
    self._checkpointer.save(path, args=items, force=True)

  def read(self, path: str, item: str, like: Any) -> tuple[Any, Mapping[str, Any]]:
    """Reads an item.

    Args:
      path: folder of the checkpoint.
      item: name of the item.
      like: arrays or shapes with its structure and devices.

    Returns:
      The verified arrays and the manifest; unverified with an empty one if it was saved without.

    Raises:
      DamagedError: if it cannot be read or differs from what was saved.
      UserError: if it belongs to another run.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    wanted = {item: ocp.args.StandardRestore(abstract)}
    if os.path.isdir(os.path.join(path, "manifest")):
      wanted["manifest"] = ocp.args.JsonRestore()
    found, reason = self._try(path, ocp.args.Composite(**wanted))
    if reason is not None:
      raise DamagedError(reason)
    if "manifest" not in wanted:
      return found[item], {}
    manifest = self._verified(found["manifest"])
    if manifest["items"].get(item) != digest_arrays(found[item], manifest.get("in_parts", False)):
      raise DamagedError(f"'{item}' is not what was saved")
    return found[item], manifest

  def read_manifest(self, path: str) -> Mapping[str, Any]:
    """Reads the manifest of a checkpoint; raises as `read`."""
    found, reason = self._try(path, ocp.args.Composite(manifest=ocp.args.JsonRestore()))
    if reason is not None:
      raise DamagedError(reason)
    return self._verified(found["manifest"])

  def _verified(self, manifest: Any) -> Mapping[str, Any]:
    if not isinstance(manifest, dict) or not digests.is_sealed(manifest):
      raise DamagedError("its manifest changed since it was saved")
    for name, expected in manifest["belongs_to"].items():
      require(
        self._belongs_to.get(name, expected) == expected,
        f"{self._workdir} holds a run on differently prepared data; use another --workdir"
        if name == "data"
        else f"{os.path.join(self._workdir, name)}: changed since the run began; restore it from a "
        "copy, or train in another --workdir",
      )
    return manifest

  def _try(self, path: str, args: Any) -> tuple[Any, str | None]:
    """Reads items of a checkpoint: (items, None), or (None, why it cannot be read).

    For a broken file, threads of orbax and tensorstore print up to 200 lines, some of them when the
    exception is deleted. It is deleted here, while output is suppressed.
    """
    with _quiet():
      try:
        return self._checkpointer.restore(path, args=args), None
      # orbax, tensorstore and json raise errors of many types, bare Exception included.
      except Exception as error:
        reason = _first_line(error)
      gc.collect()
      time.sleep(_QUIET_SECONDS)  # Until the threads have finished,
      gc.collect()  # and what they held is gone.
    return None, reason


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Discards standard error, also what threads of libraries in C++ write there."""
  try:
    saved = os.dup(2)
  except OSError:  # It is closed.
    yield
    return
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, 2)
  try:
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)
    os.close(null)


def _first_line(error: BaseException) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def warn(text: str) -> None:
  """Prints a warning."""
  print(f"warning: {text}", file=sys.stderr, flush=True)
