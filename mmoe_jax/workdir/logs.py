"""Logs of training: metrics.jsonl and TensorBoard events."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import msgspec
import tensorboardX

from mmoe_jax.files import to_json, write_atomically
from mmoe_jax.workdir.progress import Progress, mean

METRICS_FILE = "metrics.jsonl"


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
  """Writes one record per epoch; a context manager.

  A resumed run drops the records after its checkpoint, so that no epoch is repeated.

  Attributes:
    records: all records of the run, those of earlier processes included.
  """

  def __init__(
    self,
    workdir: str,
    first_epoch: int,
    epochs: int,
    writes: bool = True,
    verbose: bool = True,
    digest: str | None = None,
  ):
    """Opens the log of a run after `first_epoch` of its `epochs`.

    Args:
      workdir: the work directory.
      first_epoch: number of finished epochs.
      epochs: number of epochs.
      writes: whether to write files; otherwise records are only collected, as one host writes.
      verbose: whether to show progress.
      digest: digest of the records up to `first_epoch`; None if unknown.
    """
    self.records = read_metrics(workdir, first_epoch)
    if writes:
      verify_metrics(workdir, self.records, digest)
    self._writes = writes
    self._progress = Progress(first_epoch, epochs) if writes and verbose else None
    if not writes:
      return
    path = os.path.join(workdir, METRICS_FILE)
    write_atomically(path, "".join(to_json(record) + "\n" for record in self.records))
    self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
    self._events = tensorboardX.SummaryWriter(workdir, purge_step=first_epoch + 1)

  def __enter__(self) -> "RunLog":
    return self

  def __exit__(self, *_: Any) -> None:
    if self._progress is not None:
      self._progress.close()
    if self._writes:
      self._events.close()
      self._file.close()

  def digest(self) -> str:
    """Returns the digest of all records so far."""
    return digest_of(self.records)

  def write(self, record: Mapping[str, Any]) -> None:
    """Logs an epoch.

    Args:
      record: `epoch`, and measurements by name: numbers, or lists over members, whose means are
        shown and sent to TensorBoard.
    """
    self.records.append(dict(record))
    if not self._writes:
      return
    self._file.write(to_json(record) + "\n")
    self._file.flush()
    for name, value in record.items():
      if name != "epoch" and isinstance(value, int | float | list):
        self._events.add_scalar(name, mean(value), record["epoch"])
    if self._progress is not None:
      self._progress.update(record)
