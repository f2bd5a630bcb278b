"""Preemption: SIGTERM and SIGINT let a command finish what is in hand, save, and exit with 75.

Code that has something to lose runs in `deferred`, and calls `stop_if_requested` (or `requested`,
then saves and raises Preempted) where it can resume. Outside of it a signal ends the command at
once, and a second signal always does.

A thread receives the signals: Python's handlers wait while the main thread compiles or computes.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes.
SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LEAVE_SECONDS = 3.0  # To the end of the process when nothing is in hand, at the latest.
_REPEAT_SECONDS = 0.3  # `timeout` and `mpirun` send each signal twice.

_requested = threading.Event()
_interrupted = threading.Event()  # KeyboardInterrupt was raised: once is enough.
_deferring = 0  # Depth of nested `deferred`.
_writer = -1  # Of the pipe to the thread.


class Preempted(BaseException):
  """Raised after saving, because a signal asked to stop; no error, so handlers let it pass."""


def handle_signals() -> None:
  """Handles the signals as described above; call it in the main thread.

  A second call replaces handlers that libraries have set since.
  """
  global _writer
  if _writer < 0:
    reader, _writer = os.pipe()
    os.set_blocking(_writer, False)
    threading.Thread(target=_receive, args=(reader,), daemon=True).start()
  for number in SIGNALS:
    signal.signal(number, _interrupt)
  signal.set_wakeup_fd(_writer, warn_on_full_buffer=False)


def requested() -> bool:
  """Returns whether a signal has asked to stop."""
  return _requested.is_set()


def stop_if_requested() -> None:
  """Raises Preempted if a signal has asked to stop; what is in hand must be saved."""
  if requested():
    raise Preempted


@contextlib.contextmanager
def deferred(when: bool = True) -> Iterator[None]:
  """Lets a first signal wait for the next safe point while the context lasts.

  Args:
    when: whether to do so; otherwise the context changes nothing.

  Raises:
    Preempted: if a signal has asked to stop in an earlier context.
  """
  global _deferring
  if not _deferring:
    stop_if_requested()
  _deferring += when
  try:
    yield
  finally:
    _deferring -= when


def exit_soon() -> None:
  """Ends the process after some seconds, if it has not ended until then."""
  timer = threading.Timer(_LEAVE_SECONDS, lambda: os._exit(EXIT_STATUS))
  timer.daemon = True
  timer.start()


def _interrupt(*_: Any) -> None:
  """Raises KeyboardInterrupt in the main thread where nothing is to be saved."""
  if not _deferring and not _interrupted.is_set():
    _interrupted.set()
    raise KeyboardInterrupt


def _receive(reader: int) -> None:
  """Receives signals in a thread, for the rest of the process."""
  first: float | None = None
  while numbers := os.read(reader, 1):
    number = numbers[0]
    if number not in SIGNALS:
      continue
    now = time.monotonic()
    if first is None:
      first = now
      if _deferring:
        _requested.set()
        _print("stopping after the part in hand; a second signal ends at once")
      else:
        exit_soon()
    elif now - first > _REPEAT_SECONDS:
      _print("ended at once; the same command resumes from the last save")
      os._exit(128 + number)


def _print(line: str) -> None:
  with contextlib.suppress(OSError, ValueError):  # Standard error may be closed.
    if sys.stderr is not None:
      print(f"\n{line}", file=sys.stderr, flush=True)
