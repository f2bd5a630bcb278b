"""Tracker that writes metrics.csv: one row per epoch, one column per number."""

import csv
import math
import os
from collections.abc import Mapping
from typing import Any, TextIO

from mmoe_jax.files import replacing
from mmoe_jax.workdir.tracking.protocol import Record, TrackedRun, scalars

CSV_FILE = "metrics.csv"


class CsvTable:
  """Writes metrics.csv; rows after the checkpoint of a resumed run are dropped.

  The cells of undefined numbers are empty. A number that first appears in a later epoch adds a
  column, for which the file is written again.
  """

  def __init__(self):
    """Creates a tracker without a file."""
    self._file: TextIO | None = None
    self._rows: list[dict[str, Any]] = []
    self._columns: dict[str, None] = {}

  def log_settings(self, run: TrackedRun) -> None:
    """Writes the rows of finished epochs."""
    self._path = os.path.join(run.workdir, CSV_FILE)
    self._rows = [_row(record) for record in run.records]
    self._columns = {"epoch": None} | {name: None for row in self._rows for name in row}
    self._rewrite()

  def log_metrics(self, record: Record) -> None:
    """Writes a complete row."""
    row = _row(record)
    self._rows.append(row)
    if row.keys() <= self._columns.keys():
      self._writer().writerow(row)
      self._file.flush()
    else:
      self._columns |= dict.fromkeys(row)
      self._rewrite()

  def end(self, results: Mapping[str, Any] | None) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()

  def _rewrite(self) -> None:
    self.end(None)
    with replacing(self._path) as path, open(path, "w", encoding="utf-8", newline="") as self._file:
      self._writer().writeheader()
      self._writer().writerows(self._rows)
    self._file = open(self._path, "a", encoding="utf-8", newline="")  # noqa: SIM115

  def _writer(self) -> csv.DictWriter:
    return csv.DictWriter(self._file, list(self._columns), lineterminator="\n")


def _row(record: Record) -> dict[str, Any]:
  numbers = {name: value if math.isfinite(value) else "" for name, value in scalars(record).items()}
  return {"epoch": record["epoch"], **numbers}
