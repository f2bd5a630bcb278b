"""Work directories in object storage (`s3://`, `gs://`).

A run trains in a folder of the cache on this machine. A thread uploads every save during
training; a start on another machine downloads the last state that was uploaded completely.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import re
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterator

import msgspec

from mmoe_jax import cache
from mmoe_jax.data import locations
from mmoe_jax.errors import SaveError, UserError, describe, require
from mmoe_jax.files import parse, read_json_object, write_json
from mmoe_jax.workdir import contract, remote_lock, remote_state
from mmoe_jax.workdir.remote_state import State

_POLL_SECONDS = 0.5
_PAUSES_SECONDS = (1.0, 4.0)  # Between attempts of an upload.
_READS = 5  # Attempts to download a state, which a run may replace meanwhile.
_RUN = "run"  # Folder of the training run, in the cache.
_COPY = "copy"  # Folder that prediction and reports read.
_RECORD = "remote.json"


@dataclasses.dataclass
class _Record:
  """Entries of remote.json, which is next to the local work directory.

  Attributes:
    address: the work directory in object storage.
    folder: identifies this folder.
    run: identifies the run, see State.
    is_uploaded: whether any state of it was uploaded.
    is_whole: whether the folder is complete, which it is not while it is downloaded.
  """

  address: str
  folder: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
  run: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
  is_uploaded: bool = False
  is_whole: bool = True


@contextlib.contextmanager
def work_directory(address: str) -> Iterator[str]:
  """Yields a local folder for a work directory in object storage; a local one as it is.

  At the start the folder gets the state in object storage, unless it has that or a later one. While
  the context lasts, every new checkpoint is uploaded. At its end everything is, which the caller
  waits for, except after an interrupt.

  Args:
    address: the work directory, local or remote.

  Raises:
    UserError: if another process trains there, or the storage cannot be used.
    SaveError: at the end, if the last upload failed; the local folder is complete.
  """
  if not locations.is_remote(address):
    yield address
    return
  import jax  # Commands that only read do without.

  require(
    jax.process_count() == 1,
    f"--workdir={address}: several hosts need a work directory in a folder that all of them share",
  )
  root = _root(address)
  address = address.rstrip("/")
  with contract.lock(root):
    record = _read_record(root, address)
    scratch = os.path.join(root, remote_lock.NAME)
    with remote_lock.held(address, record.folder, scratch) as lock:
      stored = _start(address, root, record)
      print(f"{address}: trains in {os.path.join(root, _RUN)}, uploads saves", file=sys.stderr)
      uploads = _Uploads(address, root, record, stored, lock)
      try:
        yield uploads.folder
      except KeyboardInterrupt:
        uploads.stop()
        raise
      except BaseException:
        uploads.warn(uploads.finish())
        raise
      reason = uploads.finish()
  if reason is not None:
    raise SaveError(
      f"{address}: cannot upload the last state ({reason}); {uploads.folder} holds everything, and "
      "the same command on this machine uploads it"
    )


def local_copy(address: str, *only: str) -> str:
  """Returns a local folder with the state of a work directory, for reading; a local one as it is.

  What the cache has already is not downloaded.

  Args:
    address: the work directory, local or remote.
    *only: files that are needed; all by default.

  Raises:
    UserError: if there is no state, or it cannot be read.
  """
  if not locations.is_remote(address):
    return address
  root, address = _root(address), address.rstrip("/")
  # The name of the run is what reports show.
  name = re.sub(r"[^\w.-]", "_", address.rpartition("/")[2]).strip(".")
  folder = os.path.join(root, _COPY, name or _RUN)
  os.makedirs(folder, exist_ok=True)
  with open(os.path.join(root, f".{_COPY}.lock"), "w", encoding="utf-8") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    found = _download(address, folder, os.path.join(root, f"{_COPY}-{remote_state.MARKER}"), only)
  require(
    found is not None,
    f"{address}: contains no saved state of a run; pass the --workdir of a training run",
  )
  return folder


def _root(address: str) -> str:
  return cache.folder("workdirs", hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16])


def _download(address: str, folder: str, scratch: str, only: tuple[str, ...] = ()) -> State | None:
  """Downloads the newest state; None if there is none."""
  for attempt in range(_READS):
    state = remote_state.read(address, scratch)
    if state is None:
      return None
    try:
      remote_state.download(address, state, folder, only)
      return state
    except FileNotFoundError:
      if attempt == _READS - 1:
        raise
  return None


def _read_record(root: str, address: str) -> _Record:
  path = os.path.join(root, _RECORD)
  if not os.path.exists(path):
    record = _Record(address)
    _write_record(root, record)
    return record
  return parse(read_json_object(path), _Record, path)


def _write_record(root: str, record: _Record) -> None:
  write_json(os.path.join(root, _RECORD), msgspec.to_builtins(record))


def _start(address: str, root: str, record: _Record) -> State | None:
  """Brings the local folder to the state in object storage, unless it is as new; returns that."""
  folder, scratch = os.path.join(root, _RUN), os.path.join(root, remote_state.MARKER)
  stored = remote_state.read(address, scratch)
  if stored is None:
    require(
      not record.is_uploaded,
      f"{address}: contains no state of a run any more, but {root} does; remove that folder to "
      f"begin a new run, or continue with --workdir={folder}",
    )
    return None
  is_same = record.run == stored.run
  if is_same and record.is_whole and remote_state.progress_of(folder) >= stored.progress:
    record.is_uploaded = True
    _write_record(root, record)
    return stored
  require(
    is_same or record.is_uploaded or not contract.saved_epochs(folder),
    f"{address}: contains another run than {root}, which was never uploaded; remove that folder, "
    "or use another --workdir",
  )
  record.run, record.is_uploaded, record.is_whole = stored.run, True, False
  _write_record(root, record)
  stored = _download(address, folder, scratch)
  record.is_whole = True
  _write_record(root, record)
  return stored


class _Uploads:
  """Uploads of a local work directory, in a thread."""

  def __init__(
    self, address: str, root: str, record: _Record, stored: State | None, lock: remote_lock.Lock
  ):
    """Starts to watch.

    Args:
      address: the work directory in object storage.
      root: folder of the cache that belongs to it.
      record: content of remote.json.
      stored: state in object storage, if any.
      lock: the lock of the work directory, which is held.
    """
    self.folder = os.path.join(root, _RUN)
    self._kept = os.path.join(root, "snapshot")
    self._address, self._root, self._record, self._lock = address, root, record, lock
    self._stored = stored
    self._present = set(stored.objects().values()) if stored else set()
    self._digests: dict[object, str] = {}
    self._ended = threading.Event()
    is_stored = stored is not None and remote_state.progress_of(self.folder) == stored.progress
    self._handled = self._newest() if is_stored else None
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()

  def stop(self) -> None:
    """Ends the thread without waiting for it; an upload in progress writes no marker."""
    self._ended.set()
    self._lock.release()

  def finish(self) -> str | None:
    """Uploads what is left; returns why that failed, if it did."""
    self._ended.set()
    self._thread.join()
    return self._try()

  def warn(self, reason: str | None) -> None:
    """Prints why an upload failed, if it did."""
    if reason is not None:
      print(
        f"warning: {self._address}: cannot upload a save ({reason}); the next one tries again; "
        f"{self.folder} holds everything",
        file=sys.stderr,
        flush=True,
      )

  def _watch(self) -> None:
    while not self._ended.wait(_POLL_SECONDS):
      newest = self._newest()
      if newest is None or newest == self._handled:
        continue
      self._handled = newest
      reason = self._try()
      if not self._ended.is_set():
        self.warn(reason)

  def _newest(self) -> tuple[int, int] | None:
    """Returns the epoch of the newest checkpoint, and what identifies its folder."""
    epochs = contract.saved_epochs(self.folder)
    if not epochs:
      return None
    path = os.path.join(self.folder, contract.CHECKPOINTS, str(epochs[-1]))
    try:
      return epochs[-1], os.stat(path).st_ino
    except FileNotFoundError:
      return None

  def _try(self) -> str | None:
    """Uploads the present state, in several attempts; returns why the last one failed."""
    for pause in (*_PAUSES_SECONDS, None):
      try:
        self._upload()
        return None
      except (UserError, OSError) as error:
        reason = describe(error)
      finally:
        shutil.rmtree(self._kept, ignore_errors=True)
      if pause is not None:
        time.sleep(pause)
    return reason

  def _upload(self) -> None:
    state = remote_state.snapshot(self.folder, self._kept, self._record.run, self._digests)
    if state.epoch < 0 or state == self._stored:
      return
    objects = state.objects()

    def send(name: str) -> None:
      target = locations.join(self._address, remote_state.FILES, objects[name])
      locations.upload(os.path.join(self._kept, name), target)
      self._present.add(objects[name])

    remote_state.in_parallel(send, [n for n, o in objects.items() if o not in self._present])
    self._lock.require_held()
    remote_state.write(self._address, state, os.path.join(self._root, remote_state.MARKER))
    self._stored, self._record.is_uploaded = state, True
    _write_record(self._root, self._record)
    self._remove_others(set(objects.values()))

  def _remove_others(self, needed: set[str]) -> None:
    """Removes objects that the marker does not name; what fails is removed after the next save."""
    self._present &= needed
    folder = locations.join(self._address, remote_state.FILES)
    with contextlib.suppress(UserError, OSError):
      for name in set(locations.list_names(folder)) - needed:
        locations.remove(locations.join(folder, name))
