"""Progress of training for people: a summary at the start, then a bar or one line per epoch."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import tqdm

_METRICS = ("/auc", "/mse", "/accuracy")


def print_summary(
  devices: str, model: str, parameters: int, rows: int, workdir: str, members: int = 1
) -> None:
  """Prints what is about to be trained, to standard error.

  Args:
    devices: description of the devices, see parallel.describe_devices.
    model: name of the model.
    parameters: number of parameters of one run.
    rows: number of train rows.
    workdir: the work directory.
    members: number of members of a population; 1 for a single run.
  """
  runs = f"{members} members of " if members > 1 else ""
  print(
    f"devices: {devices}\n"
    f"model: {runs}{model}, {parameters:,} parameters\n"
    f"train rows: {rows:,}\n"
    f"work directory: {workdir}",
    file=sys.stderr,
    flush=True,
  )


class Progress:
  """Shows finished epochs: a bar on a terminal, otherwise one line per epoch on standard error."""

  def __init__(self, first_epoch: int, epochs: int):
    """Starts after `first_epoch` of `epochs` epochs."""
    self._first, self._epochs, self._start = first_epoch, epochs, time.perf_counter()
    self._bar = None
    if sys.stderr is not None and sys.stderr.isatty():
      self._bar = tqdm.tqdm(total=epochs, initial=first_epoch, unit="epoch", dynamic_ncols=True)

  def close(self) -> None:
    """Ends the bar."""
    if self._bar is not None:
      self._bar.close()

  def update(self, record: Mapping[str, Any]) -> None:
    """Shows an epoch's record, see RunLog.write; lists over members are averaged."""
    epoch = record["epoch"]
    metrics = {
      name.removeprefix("validation/"): f"{mean(value):.4f}"
      for name, value in record.items()
      if name == "loss" or (name.startswith("validation/") and name.endswith(_METRICS))
    }
    if self._bar is not None:
      self._bar.set_postfix(metrics, refresh=False)
      self._bar.update()
      return
    elapsed_s = time.perf_counter() - self._start
    left_s = elapsed_s / max(1, epoch - self._first) * (self._epochs - epoch)
    cells = [f"epoch {epoch}/{self._epochs}", *(f"{k} {v}" for k, v in metrics.items())]
    if "rows_per_second" in record:
      cells.append(f"{record['rows_per_second']:,.0f} rows/s")
    cells.append(f"{format_duration(left_s)} left")
    print("  ".join(cells), file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
  """Formats seconds as 45 s, 12 min or 3.4 h."""
  if seconds < 90:
    return f"{seconds:.0f} s"
  return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def mean(value: float | list[float]) -> float:
  """Returns a number, or the mean of a list without its NaN; NaN if nothing remains."""
  numbers = [v for v in value if v == v] if isinstance(value, list) else [value]
  return sum(numbers) / len(numbers) if numbers else math.nan
