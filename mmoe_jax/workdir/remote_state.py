"""States of a work directory in object storage.

  ADDRESS/state.json           the marker: run, epoch, and size and SHA-256 of each file
  ADDRESS/files/NAME.DIGEST    the files; DIGEST begins their SHA-256

Objects are never overwritten, apart from the marker, which is written last: until then the marker
before it names a complete state.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict

import msgspec

from mmoe_jax import digests
from mmoe_jax.data import locations, vocabularies
from mmoe_jax.errors import UserError, require
from mmoe_jax.files import parse, write_json
from mmoe_jax.workdir.contract import CHECKPOINTS, RESULTS, saved_epochs

MARKER = "state.json"
FILES = "files"
_DIGITS = 16  # Of a digest, in the name of an object.
_THREADS = 8
_READS = 4
_READ_AGAIN_SECONDS = 0.2
_TRIES = 20
_WRITTEN_ONCE = (CHECKPOINTS, vocabularies.FOLDER)  # Folders whose files never change.


class File(TypedDict):
  """Size and digest of a file."""

  bytes: int
  sha256: str


class State(msgspec.Struct, frozen=True):
  """State of a work directory.

  Attributes:
    run: identifies the run, also between machines.
    epoch: epoch of the newest checkpoint; -1 without one.
    files: file of the work directory, with `/` -> its size and digest.
  """

  run: str
  epoch: int
  files: dict[str, File]

  @property
  def progress(self) -> tuple[int, bool]:
    """Order of the states of a run: the epoch, then whether it has results."""
    return self.epoch, RESULTS in self.files

  def objects(self) -> dict[str, str]:
    """Returns file -> its object, relative to ADDRESS/files."""
    return {name: f"{name}.{file['sha256'][:_DIGITS]}" for name, file in self.files.items()}


def progress_of(folder: str) -> tuple[int, bool]:
  """Returns the `State.progress` of a local work directory."""
  return max(saved_epochs(folder), default=-1), os.path.exists(os.path.join(folder, RESULTS))


def read(address: str, scratch: str) -> State | None:
  """Reads the marker; None without one.

  Args:
    address: the work directory in object storage.
    scratch: local file for its content.

  Raises:
    UserError: if it is damaged, or the storage cannot be reached.
  """
  path = locations.join(address, MARKER)
  for attempt in range(_READS):
    try:
      locations.download(path, scratch)
      state = parse(digests.read_sealed(scratch), State, path)
      break
    except FileNotFoundError:
      return None
    except UserError:
      # An object that is overwritten while it is read can be cut.
      if attempt == _READS - 1:
        raise
      time.sleep(_READ_AGAIN_SECONDS)
  for name in state.files:
    require(
      not os.path.isabs(name) and ".." not in name.split("/"), f"{path}: names the file {name}"
    )
  return state


def write(address: str, state: State, scratch: str) -> None:
  """Writes the marker; arguments as for `read`."""
  write_json(scratch, digests.seal(msgspec.to_builtins(state)))
  locations.upload(scratch, locations.join(address, MARKER))


def download(address: str, state: State, folder: str, only: Iterable[str] = ()) -> None:
  """Makes a local folder hold a state; files that it has already are not downloaded.

  Args:
    address: the work directory in object storage.
    state: its state.
    folder: local folder. Its files that the state does not name are removed.
    only: files to download; all by default.

  Raises:
    UserError: for a file that differs from the marker.
    FileNotFoundError: for one that has been removed since.
  """
  objects = state.objects()

  def fetch(name: str) -> None:
    path, file = os.path.join(folder, *name.split("/")), state.files[name]
    is_here = os.path.exists(path) and os.path.getsize(path) == file["bytes"]
    if is_here and digests.of_file(path) == file["sha256"]:
      return
    source = locations.join(address, FILES, objects[name])
    locations.download(source, path)
    require(
      digests.of_file(path) == file["sha256"], f"{source}: changed or damaged since it was written"
    )

  in_parallel(fetch, [name for name in state.files if not only or name in only])
  for name in set(list_files(folder)) - set(state.files):
    os.remove(os.path.join(folder, name))
  for path, _, _ in os.walk(os.path.join(folder, CHECKPOINTS), topdown=False):
    if not os.listdir(path):
      os.rmdir(path)


def snapshot(folder: str, into: str, run: str, known: dict[Any, str]) -> State:
  """Keeps the files of a work directory as they are now, while a run trains there.

  Checkpoints are linked, which costs no space and outlives their removal; other files are copied.

  Args:
    folder: local work directory.
    into: folder of the same file system; what it contains is removed.
    run: see State.
    known: digests of files that never change, by their identity; entries are added.

  Raises:
    OSError: if it cannot be written, or checkpoints come and go faster than they can be linked.
  """
  for _ in range(_TRIES):
    shutil.rmtree(into, ignore_errors=True)
    names = list_files(folder)
    try:
      for name in names:
        _keep(os.path.join(folder, name), os.path.join(into, name), _is_written_once(name))
    except FileNotFoundError:
      continue  # An older checkpoint was removed.
    if [*filter(_is_written_once, names)] == [*filter(_is_written_once, list_files(folder))]:
      break
  else:
    raise OSError(f"{folder}: checkpoints change faster than they can be kept")
  files = {name: _describe(os.path.join(into, name), name, known) for name in names}
  return State(run, progress_of(into)[0], files)


def list_files(folder: str) -> list[str]:
  """Returns the files of a local work directory that belong to its state, with `/`."""
  found = []
  for path, folders, names in os.walk(folder):
    inner = os.path.relpath(path, folder).replace(os.sep, "/")
    if inner == CHECKPOINTS:
      folders[:] = [name for name in folders if name.isdecimal()]  # Others are incomplete.
    for name in names:
      full = name if inner == "." else f"{inner}/{name}"
      is_temporary = name.startswith(".") and not _is_written_once(full)
      if not is_temporary and os.path.isfile(os.path.join(path, name)):
        found.append(full)
  return sorted(found)


def in_parallel(function: Callable[[str], None], names: Iterable[str]) -> None:
  """Calls a function of names in threads; raises the first error."""
  with ThreadPoolExecutor(_THREADS) as pool:
    for _ in pool.map(function, names):
      pass


def _is_written_once(name: str) -> bool:
  return name.split("/")[0] in _WRITTEN_ONCE


def _keep(source: str, target: str, is_written_once: bool) -> None:
  os.makedirs(os.path.dirname(target), exist_ok=True)
  if is_written_once:
    try:
      os.link(source, target)
      return
    except FileNotFoundError:
      raise
    except OSError:
      pass  # A file system without links.
  shutil.copyfile(source, target)


def _describe(path: str, name: str, known: dict[Any, str]) -> File:
  status = os.stat(path)
  identity = (name, status.st_ino, status.st_size, status.st_mtime_ns)
  if not _is_written_once(name):
    return {"bytes": status.st_size, "sha256": digests.of_file(path)}
  if identity not in known:
    known[identity] = digests.of_file(path)
  return {"bytes": status.st_size, "sha256": known[identity]}
