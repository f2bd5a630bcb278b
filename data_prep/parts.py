"""Parts of a table as jobs: the tables of a part, and running a function on all parts."""

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any

import numpy as np

from data_prep import spec as spec_lib
from data_prep import splitting
from mmoe_jax.data import tables
from mmoe_jax.data.columns import Table
from mmoe_jax.workdir import preemption


@dataclasses.dataclass(frozen=True)
class PartJob:
  """Everything that a worker needs for one part.

  Attributes:
    spec: the spec.
    part: the part.
    splitter: assigns its rows to splits.
    schema_path: file of the schema, for the second pass.
    folders: split -> folder of the shard, local or remote, for the second pass.
    rows: rows of each split that the first pass found, for the second pass.
  """

  spec: spec_lib.Spec
  part: tables.Part
  splitter: splitting.Splitter
  schema_path: str = ""
  folders: Mapping[str, str] = dataclasses.field(default_factory=dict)
  rows: tuple[int, ...] = ()


class Runner:
  """Runs a function on every job, a bounded number at a time."""

  def __init__(self, executor: Executor | None, workers: int, reader: Callable[..., Any]):
    """Takes an executor, or None for this process, where `reader` reads the parts."""
    self._executor, self._workers, self._reader = executor, workers, reader

  def __call__(
    self, function: Callable[..., Any], jobs: Sequence[Any]
  ) -> Iterator[tuple[int, Any]]:
    """Yields the index of a job and its result, in the order in which they finish."""
    if self._executor is None:
      for i, job in enumerate(jobs):
        yield i, function(job, self._reader)
      return
    running: dict[Future, int] = {}
    waiting = iter(enumerate(jobs))
    try:
      while True:
        for i, job in waiting:
          running[self._executor.submit(function, job)] = i
          if len(running) >= 2 * self._workers:
            break
        if not running:
          return
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
          yield running.pop(future), future.result()
    finally:
      for future in running:
        future.cancel()


def start_worker() -> None:
  """Prepares a worker process: signals are its parent's matter, and it ends with its parent."""
  for number in preemption.SIGNALS:  # A terminal sends them to all processes.
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def end_with_parent() -> None:
    parent.join()
    os._exit(preemption.EXIT_STATUS)

  threading.Thread(target=end_with_parent, daemon=True).start()


def read(part: tables.Part, columns: tuple[str, ...], plain: tuple[str, ...]) -> list[Table]:
  """Reads a part at once; see tables.read."""
  return list(tables.read(part, columns, plain))


def tables_of(
  job: PartJob, reader: Callable[..., Any] | None
) -> Iterator[tuple[Table, np.ndarray]]:
  """Yields the tables of a part, with the split of each row."""
  needed = spec_lib.needed_columns(job.spec, spec_lib.to_tasks(job.spec))
  plain = job.spec.of_role("number")
  reading = reader or tables.read
  missing = {name: c.missing for name, c in job.spec.columns.items() if c.missing}
  for table in reading(job.part, needed, plain):
    table.missing = missing
    yield table, job.splitter(table, table.file)
