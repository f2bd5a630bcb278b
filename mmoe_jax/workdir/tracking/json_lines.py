"""Tracker that writes metrics.jsonl: one record per line, from which a run resumes."""

import os
from collections.abc import Mapping
from typing import Any, TextIO

from mmoe_jax.files import to_json, write_atomically
from mmoe_jax.workdir.tracking.protocol import Record, TrackedRun

METRICS_FILE = "metrics.jsonl"


class JsonLines:
  """Writes metrics.jsonl; lines after the checkpoint of a resumed run are dropped."""

  def __init__(self):
    """Creates a tracker without a file."""
    self._file: TextIO | None = None

  def log_settings(self, run: TrackedRun) -> None:
    """Writes the records of finished epochs."""
    path = os.path.join(run.workdir, METRICS_FILE)
    write_atomically(path, "".join(to_json(record) + "\n" for record in run.records))
    self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by end)

  def log_metrics(self, record: Record) -> None:
    """Writes a complete line."""
    self._file.write(to_json(record) + "\n")
    self._file.flush()

  def end(self, results: Mapping[str, Any] | None) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()
