"""Assignment of rows to splits, from the row alone: the same for any number of parts."""

import dataclasses
from typing import Protocol

import numpy as np
import pandas as pd

from data_prep import spec as spec_lib
from mmoe_jax import data
from mmoe_jax.data.columns import Table
from mmoe_jax.data.times import times_of
from mmoe_jax.errors import require

TRAIN, VALIDATION, TEST = range(3)


class Splitter(Protocol):
  """Assigns rows to splits."""

  def __call__(self, table: Table, file: int) -> np.ndarray:
    """Returns the split (N,) of each row, an index of data.SPLITS; `file` numbers the files."""


@dataclasses.dataclass(frozen=True)
class Whole:
  """All rows belong to one split."""

  split: int

  def __call__(self, table: Table, file: int) -> np.ndarray:
    """Returns the split of each row."""
    return np.full(len(table), self.split, np.int8)


@dataclasses.dataclass(frozen=True)
class Shares:
  """Rows, or values of a column, are drawn by shares of validation and test.

  Each row's draw is a hash of seed, file and row number, or of seed and value.
  """

  validation: float
  test: float
  seed: int
  column: str = ""

  def __call__(self, table: Table, file: int) -> np.ndarray:
    """Returns the split of each row."""
    if self.column:
      factor = table.factor(self.column)
      hashed = pd.util.hash_array(np.array(factor.texts(), object), categorize=False)
      draws = uniform(hashed ^ _mix(np.uint64(self.seed)))[factor.codes]
    else:
      place = np.uint64(file) << np.uint64(48)
      rows = np.asarray(table.lines, np.uint64) - np.uint64(1 + table.headers)
      draws = uniform((rows + place) ^ _mix(np.uint64(self.seed)))
    return np.where(
      draws < self.test, TEST, np.where(draws < self.test + self.validation, VALIDATION, TRAIN)
    ).astype(np.int8)


@dataclasses.dataclass(frozen=True)
class Times:
  """Rows are split by time; a row without one is an error."""

  column: str
  validation_from: str
  test_from: str

  def __call__(self, table: Table, file: int) -> np.ndarray:
    """Returns the split of each row."""
    times = times_of(table, self.column)
    bounds = [spec_lib.parse_time(t, "split") for t in (self.validation_from, self.test_from)]
    missing = np.isnat(times)
    if missing.any():
      row = int(np.argmax(missing))
      require(False, f"{table.place(row, self.column)}: has no time; the split needs one")
    return ((times >= bounds[0]).astype(np.int8) + (times >= bounds[1])).astype(np.int8)


def uniform(keys: np.ndarray) -> np.ndarray:
  """Returns numbers in [0, 1) from uint64 keys, by SplitMix64's finaliser."""
  return (_mix(keys) >> np.uint64(11)) * 2.0**-53


def _mix(keys: np.ndarray) -> np.ndarray:
  with np.errstate(over="ignore"):
    x = np.asarray(keys, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def splitters_of(
  split: spec_lib.Split, files: dict[str, list[str]]
) -> list[tuple[list[str], Splitter]]:
  """Returns groups of files with the splitter of each.

  Args:
    split: the splits of a spec.
    files: `input`, or split -> files.

  Raises:
    UserError: if the files do not suit the method.
  """
  if split.method != "files":
    require(
      set(files) == {"input"},
      f"the spec splits by '{split.method}': give all files as --input, not as --train, "
      "--validation and --test",
    )
    if split.method == "time":
      return [(files["input"], Times(split.column, split.validation_from, split.test_from))]
    return [(files["input"], Shares(split.validation, split.test, split.seed, split.column))]
  require(
    "input" not in files and {"train", "test"} <= set(files),
    "the spec splits by 'files': give --train and --test (and --validation) instead of --input, or "
    "change split.method",
  )
  groups: list[tuple[list[str], Splitter]] = []
  for name, paths in files.items():
    whole: Splitter = Whole(data.SPLITS.index(name))
    if name == "train" and "validation" not in files:
      whole = Shares(split.validation, 0.0, split.seed)
    groups.append((paths, whole))
  return groups
