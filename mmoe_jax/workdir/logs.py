"""Logs of training: the records of metrics.jsonl, progress, and calls of trackers."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import msgspec

from mmoe_jax.files import to_json
from mmoe_jax.workdir import tracking
from mmoe_jax.workdir.progress import Progress
from mmoe_jax.workdir.tracking.json_lines import METRICS_FILE


class _Record(TypedDict):
  """Entries of a record that a resumed run relies on."""

  epoch: int
  rows_per_second: NotRequired[float]
  wall_seconds: NotRequired[float]
  active: NotRequired[list[bool]]  # Of a population's members, as `errors`.
  errors: NotRequired[dict[str, str]]
  warnings: NotRequired[dict[str, list[str]]]


def read_metrics(workdir: str, last_epoch: int | None = None) -> list[dict[str, Any]]:
  """Reads the records of metrics.jsonl up to an epoch, or to a line that a kill truncated."""
  path = os.path.join(workdir, METRICS_FILE)
  records = []
  if os.path.exists(path):
    with open(path, encoding="utf-8", errors="replace") as file:
      for line in file:
        try:
          msgspec.json.decode(line, type=_Record)
          record = json.loads(line)
        except (ValueError, RecursionError):
          break
        if last_epoch is not None and record["epoch"] > last_epoch:
          break
        records.append(record)
  return records


def digest_of(records: Sequence[Mapping[str, Any]]) -> str:
  """Returns a digest of records, which checkpoints keep so that a changed log is noticed."""
  lines = "".join(to_json(record) + "\n" for record in records)
  return hashlib.sha256(lines.encode()).hexdigest()


def verify_metrics(workdir: str, records: Sequence[Mapping[str, Any]], digest: str | None) -> None:
  """Prints a warning if records are not those that were logged up to a checkpoint.

  Args:
    workdir: the work directory.
    records: result of `read_metrics` up to the checkpoint's epoch.
    digest: digest of the logged records; None if unknown.
  """
  if digest is not None and digest_of(records) != digest:
    path = os.path.join(workdir, METRICS_FILE)
    print(
      f"warning: {path}: changed or damaged since it was written; numbers from it (gates, speed, "
      "elapsed time) may be wrong, scores and metrics of the results are not",
      file=sys.stderr,
    )


def of_member(record: Mapping[str, Any], member: int) -> dict[str, Any]:
  """Returns the part of a population's record for one member, in the form of a run's record."""
  values = {k: v[member] for k, v in record.items() if isinstance(v, list)}
  warnings = {int(key): lines for key, lines in record.get("warnings", {}).items()}
  return values | ({"warnings": {"gates": warnings[member]}} if member in warnings else {})


class RunLog:
  """Passes one record per epoch to trackers and shows progress; a context manager.

  A resumed run drops the records after its checkpoint, so that no epoch is repeated.

  Attributes:
    records: all records of the run, those of earlier processes included.
  """

  def __init__(
    self,
    workdir: str,
    first_epoch: int,
    epochs: int,
    trackers: tracking.Trackers,
    writes: bool = True,
    verbose: bool = True,
    digest: str | None = None,
  ):
    """Opens the log of a run after `first_epoch` of its `epochs`.

    Args:
      workdir: the work directory.
      first_epoch: number of finished epochs.
      epochs: number of epochs.
      trackers: trackers, which are started; the caller ends them.
      writes: whether to show and track; otherwise records are only collected, as one host writes.
      verbose: whether to show progress.
      digest: digest of the records up to `first_epoch`; None if unknown.
    """
    self.records = read_metrics(workdir, first_epoch)
    if writes:
      verify_metrics(workdir, self.records, digest)
    self._writes, self._trackers = writes, trackers
    if writes:
      trackers.log_settings(tracking.TrackedRun(workdir, first_epoch, tuple(self.records)))
    self._progress = Progress(first_epoch, epochs) if writes and verbose else None

  def __enter__(self) -> "RunLog":
    return self

  def __exit__(self, *_: Any) -> None:
    if self._progress is not None:
      self._progress.close()

  def digest(self) -> str:
    """Returns the digest of all records so far."""
    return digest_of(self.records)

  def write(self, record: Mapping[str, Any]) -> None:
    """Logs an epoch.

    Args:
      record: `epoch`, and measurements by name: numbers, or lists over members, whose means are
        shown and tracked.
    """
    self.records.append(dict(record))
    if not self._writes:
      return
    self._trackers.log_metrics(record)
    if self._progress is not None:
      self._progress.update(record)
