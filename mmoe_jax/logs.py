"""What a run leaves to read: metrics.jsonl, TensorBoard events, a progress bar."""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import tensorboardX
import tqdm

from mmoe_jax.table import write_atomically

METRICS_FILE = "metrics.jsonl"


def read_metrics(workdir: str, last_epoch: int | None = None) -> list[dict[str, Any]]:
  """The records of metrics.jsonl up to an epoch, up to a line that a kill cut short."""
  path = os.path.join(workdir, METRICS_FILE)
  records = []
  if os.path.exists(path):
    with open(path, encoding="utf-8", errors="replace") as file:
      for line in file:
        try:
          record = json.loads(line)
        except ValueError:
          break
        if not isinstance(record, dict) or not isinstance(record.get("epoch"), int):
          break
        if last_epoch is not None and record["epoch"] > last_epoch:
          break
        records.append(record)
  return records


def of_member(record: Mapping[str, Any], member: int) -> dict[str, Any]:
  """What an epoch's record of a population says of one member, as its solo run would have."""
  own = {k: v[member] for k, v in record.items() if isinstance(v, list)}
  warnings = {int(key): lines for key, lines in record.get("warnings", {}).items()}
  return own | ({"warnings": {"gates": warnings[member]}} if member in warnings else {})


class RunLog:
  """Writes one record an epoch; a context manager.

  A run that goes on from a checkpoint drops the records after it, so that no epoch stands twice.

  Attributes:
    records: all records of the run so far, those of earlier processes included.
  """

  def __init__(self, workdir: str, first_epoch: int, epochs: int, writes: bool = True):
    """Opens the log of a run that has `first_epoch` of its `epochs` behind it.

    With `writes` False it only collects records: of several hosts, one writes.
    """
    self.records = read_metrics(workdir, first_epoch)
    self._writes = writes
    if not writes:
      return
    path = os.path.join(workdir, METRICS_FILE)
    write_atomically(path, "".join(json.dumps(r) + "\n" for r in self.records))
    self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
    self._events = tensorboardX.SummaryWriter(workdir, purge_step=first_epoch + 1)
    # disable=None: no bar when standard error is not a terminal.
    self._bar = tqdm.tqdm(
      total=epochs, initial=first_epoch, unit="epoch", disable=None, dynamic_ncols=True
    )

  def __enter__(self) -> "RunLog":
    return self

  def __exit__(self, *_: Any) -> None:
    if not self._writes:
      return
    self._bar.close()
    self._events.close()
    self._file.close()

  def write(self, record: Mapping[str, Any]) -> None:
    """Logs an epoch: `epoch`, and whatever else was measured, by name.

    Numbers, or lists of a number a member of a population: TensorBoard and the bar show their mean.
    """
    self.records.append(dict(record))
    if not self._writes:
      return
    self._file.write(json.dumps({k: _without_nan(v) for k, v in record.items()}) + "\n")
    self._file.flush()
    means = {k: _mean(v) for k, v in record.items() if isinstance(v, int | float | list)}
    for name, value in means.items():
      if name != "epoch":
        self._events.add_scalar(name, value, record["epoch"])
    shown = {
      name.removeprefix("validation/"): f"{value:.4f}"
      for name, value in means.items()
      if name == "loss" or (name.startswith("validation/") and name.endswith(_SHOWN))
    }
    self._bar.set_postfix(shown, refresh=False)
    self._bar.update()


_SHOWN = ("/auc", "/mse", "/accuracy")


def _without_nan(value: Any) -> Any:
  """NaN is no JSON: an undefined metric is null."""
  if isinstance(value, list):
    return [_without_nan(v) for v in value]
  return None if value != value else value


def _mean(value: Any) -> float:
  numbers = [v for v in value if v == v] if isinstance(value, list) else [value]
  return sum(numbers) / len(numbers) if numbers else math.nan
