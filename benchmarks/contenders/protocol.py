"""Protocol between the race and its contenders: one word per line in, one line of JSON out."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

MARK = "\x1e"  # Starts each answer, because libraries print to standard output, too.
LEARNING_RATE = 2e-3
DIM, EXPERTS, EXPERT_UNITS, TOWER_UNITS = 4, 8, 16, 8


class Task(NamedTuple):
  """Input of all contenders.

  Attributes:
    sizes: number of ids of each of F features.
    ids: (N, F) of train rows.
    numbers: (N, D) of train rows.
    labels: (N, T) of train rows.
    test_ids: ids of test rows.
    test_numbers: numbers of test rows.
    batch_size: rows per step.
    seed: seed of shuffling and initialisation.
  """

  sizes: list[int]
  ids: np.ndarray
  numbers: np.ndarray
  labels: np.ndarray
  test_ids: np.ndarray
  test_numbers: np.ndarray
  batch_size: int
  seed: int


class Contender(Protocol):
  """A model in training."""

  parameters: int

  def train_epoch(self) -> int:
    """Trains on all rows once, in a new order, until results are ready; returns the rows."""

  def scores(self) -> np.ndarray:
    """Returns (N, T) scores of the test rows, higher for likelier labels 1."""


def serve(create: Callable[[Task], Contender]) -> None:
  """Answers `epoch` and `scores` on standard input until it ends.

  Arguments of the process: file of arrays, batch size, seed, file for the scores.
  """
  arrays, batch_size, seed, scores = sys.argv[1:5]
  loaded = np.load(arrays)
  given = {name: loaded[name] for name in Task._fields if name in loaded}
  given["sizes"] = given["sizes"].tolist()
  start = time.perf_counter()
  contender = create(Task(**given, batch_size=int(batch_size), seed=int(seed)))
  _answer(parameters=contender.parameters, seconds=time.perf_counter() - start)
  for line in sys.stdin:
    if line.strip() == "epoch":
      start = time.perf_counter()
      rows = contender.train_epoch()
      seconds = time.perf_counter() - start
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
      _answer(rows=rows, seconds=seconds, peak_bytes=peak)
    else:
      np.save(scores, contender.scores())
      _answer()


def threads() -> int:
  """Returns the number of threads that a contender may use, from $CONTENDER_THREADS."""
  return int(os.environ.get("CONTENDER_THREADS", len(os.sched_getaffinity(0))))


def _answer(**entries: Any) -> None:
  print(MARK + json.dumps(entries), flush=True)
