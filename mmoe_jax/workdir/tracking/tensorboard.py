"""Tracker that writes TensorBoard events, by tensorboardX; no other module imports it."""

import os
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from mmoe_jax.workdir.tracking.protocol import Record, TrackedRun, scalars

_FLUSH_SECONDS = 10.0  # Flushing waits for the disk.


class TensorBoard:
  """Writes events of scalars.

  The events are those of tensorboardX.SummaryWriter, which writes in a thread: after an error there
  its queue fills, and training would wait forever.
  """

  def __init__(self):
    """Creates a tracker without a file."""
    self._writer: EventsWriter | None = None
    self._flushed = 0.0

  def log_settings(self, run: TrackedRun) -> None:
    """Opens a file of events that replace those of later epochs than the finished ones."""
    self._writer = EventsWriter(os.path.join(run.workdir, "events"))
    self._write(run.epoch + 1, file_version="brain.Event:2")
    self._write(run.epoch + 1, session_log=SessionLog(status=SessionLog.START))
    self._flush()

  def log_metrics(self, record: Record) -> None:
    """Writes an event per number."""
    for name, value in scalars(record).items():
      self._write(record["epoch"], summary=scalar(name, value))
    if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
      self._flush()

  def end(self, results: Mapping[str, Any] | None) -> None:
    """Closes the file."""
    if self._writer is not None:
      self._writer.close()

  def _flush(self) -> None:
    self._writer.flush()
    self._flushed = time.monotonic()

  def _write(self, epoch: int, **content: Any) -> None:
    self._writer.write_event(Event(wall_time=time.time(), step=epoch, **content))
