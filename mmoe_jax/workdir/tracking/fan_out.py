"""Trackers of a run: passes each call to all of them and disables those that fail."""

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from mmoe_jax.errors import describe
from mmoe_jax.workdir.tracking.protocol import Record, TrackedRun, Tracker


class Trackers:
  """Several trackers as one; a context manager that ends those that have not ended."""

  def __init__(self, trackers: Mapping[str, Tracker], required: str = ""):
    """Combines trackers.

    Args:
      trackers: trackers by name, in the order of calls.
      required: name of one whose errors end the run; errors of the others disable them.
    """
    self._trackers = dict(trackers)
    self._required = required

  def __enter__(self) -> "Trackers":
    return self

  def __exit__(self, *_: Any) -> None:
    self.end(None)

  def log_settings(self, run: TrackedRun) -> None:
    """Starts all trackers."""
    self._call("log_settings", run)

  def log_metrics(self, record: Record) -> None:
    """Passes an epoch's record to all trackers."""
    self._call("log_metrics", record)

  def end(self, results: Mapping[str, Any] | None) -> None:
    """Ends all trackers; further calls have no effect."""
    self._call("end", results)
    self._trackers = {}

  def _call(self, method: str, argument: Any) -> None:
    for name, tracker in list(self._trackers.items()):
      try:
        getattr(tracker, method)(argument)
      except Exception as error:  # A tracker may raise anything, and must not end the run.
        if name == self._required:
          raise
        print(
          f"warning: tracker '{name}' failed ({describe(error)}) and is disabled; training "
          "continues without it",
          file=sys.stderr,
        )
        del self._trackers[name]
        if method != "end":
          with contextlib.suppress(Exception):
            tracker.end(None)
