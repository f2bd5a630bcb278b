"""What contenders are given and how they answer: a word a line in, a line of JSON out."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

MARK = "\x1e"  # Before each answer: libraries print to standard output what they like.
LEARNING_RATE = 2e-3
DIM, EXPERTS, EXPERT_UNITS, TOWER_UNITS = 4, 8, 16, 8


class Task(NamedTuple):
  """What all contenders are given.

  Attributes:
    sizes: number of ids of each of F features.
    ids, numbers, labels: of N train rows: (N, F), (N, D) and (N, T).
    test_ids, test_numbers: of the test rows.
    batch_size: rows of a step.
    seed: of shuffling and initialisation.
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
    """Trains on all rows once, in a new order, to the very end; returns how many rows it was."""

  def scores(self) -> np.ndarray:
    """(N, T) scores of the test rows: the higher, the likelier is the label to be 1."""


def serve(create: Callable[[Task], Contender]) -> None:
  """Answers `epoch` and `scores` on standard input until it ends.

  The command line is the file of arrays, the batch size, the seed and a file for the scores.
  """
  arrays, batch_size, seed, scores = sys.argv[1:5]
  loaded = np.load(arrays)
  given = {name: loaded[name] for name in Task._fields if name in loaded}
  given["sizes"] = given["sizes"].tolist()
  start = time.perf_counter()
  contender = create(Task(**given, batch_size=int(batch_size), seed=int(seed)))
  _say(parameters=contender.parameters, seconds=time.perf_counter() - start)
  for line in sys.stdin:
    if line.strip() == "epoch":
      start = time.perf_counter()
      rows = contender.train_epoch()
      _say(rows=rows, seconds=time.perf_counter() - start)
    else:
      np.save(scores, contender.scores())
      _say()


def _say(**what: Any) -> None:
  print(MARK + json.dumps(what), flush=True)
