"""Protocol of a tracker, and the numbers that trackers take from records and results."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from mmoe_jax.workdir import contract
from mmoe_jax.workdir.progress import mean

Record = Mapping[str, Any]


class TrackedRun(NamedTuple):
  """Run, or population, at the start of a process that trains it.

  Attributes:
    workdir: its work directory.
    epoch: number of finished epochs; above 0 if it resumes.
    records: records of these epochs, those of earlier processes.
  """

  workdir: str
  epoch: int
  records: Sequence[Record]

  @property
  def settings(self) -> dict[str, Any]:
    """Returns the content of config.json: all settings, and `members` of a population."""
    return contract.read_config(self.workdir)


class Tracker(Protocol):
  """Receiver of a run's settings, its metrics after each epoch, and its end.

  It is called on the first host only, in the thread that trains. A tracker that raises an error is
  disabled, with one warning; training continues.
  """

  def log_settings(self, run: TrackedRun) -> None:
    """Starts, or resumes, before the first epoch.

    Records of a resumed run end with its last checkpoint: later epochs, which a tracker may have
    received before a kill, are repeated.
    """

  def log_metrics(self, record: Record) -> None:
    """Takes an epoch's record: `epoch` and measurements, as in a line of metrics.jsonl."""

  def end(self, results: Mapping[str, Any] | None) -> None:
    """Ends with the content of results.json; None if training was interrupted or failed."""


def scalars(record: Record) -> dict[str, float]:
  """Returns the numbers of a record by name, without `epoch`.

  Lists over members are averaged, without undefined numbers; NaN if nothing remains.
  """
  numbers = {}
  for name, value in record.items():
    if name != "epoch" and (value is None or isinstance(value, int | float | list)):
      numbers[name] = mean(_none_to_nan(value))
  return numbers


def _none_to_nan(value: Any) -> Any:
  """Returns a number or a list of numbers with NaN, which is null in metrics.jsonl, restored."""
  if isinstance(value, list):
    return [_none_to_nan(each) for each in value]
  return math.nan if value is None else value


def final_numbers(results: Mapping[str, Any]) -> dict[str, float]:
  """Returns the defined numbers of results.json by path, such as `results/test/TASK/auc`."""
  return {f"results/{name}": value for name, value in _numbers(results)}


def _numbers(tree: Mapping[str, Any]) -> list[tuple[str, float]]:
  found = []
  for name, value in tree.items():
    if isinstance(value, Mapping):
      found += [(f"{name}/{path}", number) for path, number in _numbers(value)]
    elif isinstance(value, int | float) and math.isfinite(value):
      found.append((name, value))
  return found
