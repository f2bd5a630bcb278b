"""Lock of a work directory in object storage: an object that its holder renews.

Object storage has no exclusive creation here, so the lock is a strong convention and no guarantee:
two starts within a second can both write it, and a process that was suspended for longer than
STALE_SECONDS can have lost it. Both are noticed at the next renewal, and before every marker is
written; the process without the lock uploads nothing more. Clocks have to agree to a minute.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from mmoe_jax.data import locations
from mmoe_jax.errors import UserError, require
from mmoe_jax.files import write_json

NAME = "lock.json"
STALE_SECONDS = 180.0
RENEW_SECONDS = 30.0
_READS = 4
_READ_AGAIN_SECONDS = 0.2
_SETTLE_SECONDS = 1.0  # Between writing the lock and looking who has it.


@contextlib.contextmanager
def held(address: str, folder: str, scratch: str) -> Iterator["Lock"]:
  """Holds the lock while the context lasts.

  Args:
    address: the work directory in object storage.
    folder: identifies the local folder that the caller has locked: a lock from there is void.
    scratch: local file for the lock's content.

  Raises:
    UserError: if another process holds it.
  """
  lock = Lock(address, folder, scratch)
  lock.acquire()
  ended = threading.Event()
  thread = threading.Thread(target=lock.keep, args=(ended,), daemon=True)
  thread.start()
  try:
    yield lock
  finally:
    ended.set()
    lock.release()


class Lock:
  """The lock object of one work directory."""

  def __init__(self, address: str, folder: str, scratch: str):
    """Describes the lock; see `held`."""
    self._path = locations.join(address, NAME)
    self._address, self._folder, self._scratch = address, folder, scratch
    self._token = uuid.uuid4().hex
    self._is_released = False
    self._mutex = threading.Lock()

  def acquire(self) -> None:
    """Takes the lock, unless another process renewed it lately."""
    other = self._read()
    if other is not None and other.get("folder") != self._folder:
      age = time.time() - float(other.get("time", 0.0))
      require(
        age > STALE_SECONDS,
        f"{self._address}: another process is training there ({_describe(other)}, "
        f"{age:.0f} s ago); if it has ended, wait {STALE_SECONDS - age:.0f} s or remove "
        f"{self._path}",
      )
    self._write()
    time.sleep(_SETTLE_SECONDS)
    self.require_held()

  def require_held(self) -> None:
    """Raises UserError if another process has the lock now, or it was released."""
    require(not self._is_released, f"{self._address}: interrupted")
    other = self._read()
    if other is not None and other.get("token") != self._token:
      raise UserError(
        f"{self._address}: another process is training there now ({_describe(other)}); use another "
        "--workdir, or end one of them"
      )

  def keep(self, ended: threading.Event) -> None:
    """Renews the lock until the event, or until another process has it."""
    while not ended.wait(RENEW_SECONDS):
      other = None
      # A failure is harmless: the next renewal follows before the lock is stale.
      with contextlib.suppress(UserError, OSError):
        other = self._read()
        if other is None or other.get("token") == self._token:
          self._write()
          continue
      if other is not None and other.get("token") != self._token:
        return

  def release(self) -> None:
    """Removes the lock, if it is still held."""
    with self._mutex:
      self._is_released = True
    with contextlib.suppress(UserError, OSError):
      other = self._read()
      if other is not None and other.get("token") == self._token:
        locations.remove(self._path)

  def _read(self) -> dict[str, Any] | None:
    # An object that is overwritten while it is read can be cut.
    for _ in range(_READS):
      try:
        content = json.loads(locations.read_text(self._path))
      except FileNotFoundError:
        return None
      except json.JSONDecodeError:
        time.sleep(_READ_AGAIN_SECONDS)
        continue
      if isinstance(content, dict):
        return content
    raise UserError(f"{self._path}: broken: not JSON; if no process is training there, remove it")

  def _write(self) -> None:
    content = {
      "host": socket.gethostname(),
      "process": os.getpid(),
      "time": f"{time.time():.3f}",  # Of constant length: a renewal cannot cut a reader's object.
      "token": self._token,
      "folder": self._folder,
    }
    with self._mutex:
      if self._is_released:
        return
      write_json(self._scratch, content)
      locations.upload(self._scratch, self._path)


def _describe(other: dict[str, Any]) -> str:
  return f"host {other.get('host', 'unknown')}, process {other.get('process', 'unknown')}"
