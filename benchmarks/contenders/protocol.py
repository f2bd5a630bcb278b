"""How the benchmark and a contender talk: a word a line in, a line of JSON out."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

_MARK = "\x1e"  # Before each answer: libraries print to standard output what they like.
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
  contender = create(Task(**given, batch_size=int(batch_size), seed=int(seed)))
  _say(parameters=contender.parameters)
  for line in sys.stdin:
    if line.strip() == "epoch":
      start = time.perf_counter()
      rows = contender.train_epoch()
      _say(rows=rows, seconds=time.perf_counter() - start)
    else:
      np.save(scores, contender.scores())
      _say()


def _say(**what: Any) -> None:
  print(_MARK + json.dumps(what), flush=True)


class Process:
  """A contender at the other end.

  Attributes:
    hello: what it said once it was ready.
  """

  def __init__(self, command: Sequence[str]):
    self._command = command
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    self.hello = self._answer()

  def ask(self, word: str) -> dict[str, Any]:
    """Its answer; raises RuntimeError when the process has ended."""
    self._process.stdin.write(word + "\n")
    self._process.stdin.flush()
    return self._answer()

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait(30)

  def _answer(self) -> dict[str, Any]:
    for line in self._process.stdout:
      if line.startswith(_MARK):
        return json.loads(line[1:])
    raise RuntimeError(f"{' '.join(self._command)} ended with status {self._process.wait()}")
