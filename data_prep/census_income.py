"""Prepares UCI Census-Income (KDD): obtains and verifies the raw files, prepares them by a spec.

  python -m data_prep.census_income --out data/census

The spec is data_prep/census_income.toml; data_prep/README.md describes the columns, the tasks and
the result.
"""

import dataclasses
import os
import time

import msgspec
import numpy as np
import pandas as pd
from absl import flags

from data_prep import preparation, raw_files, splitting, summaries
from data_prep.spec import Spec, read_spec
from mmoe_jax import cache, commands, data, errors
from mmoe_jax.data import locations
from mmoe_jax.data.columns import Table

SPEC = os.path.join(os.path.dirname(__file__), "census_income.toml")


@dataclasses.dataclass(frozen=True)
class Halves:
  """Halves the test file into validation and test rows, the same rows as in MetaSpore's demo.

  Attributes:
    rows: number of rows of the file.
  """

  rows: int

  def __call__(self, table: Table, file: int) -> np.ndarray:
    """Returns the split of each row."""
    sample = pd.RangeIndex(self.rows).to_series().sample(frac=0.5, replace=False, random_state=1)
    is_validation = np.zeros(self.rows, bool)
    is_validation[sample.index] = True
    lines = np.asarray(table.lines) - 1
    return np.where(is_validation[lines], splitting.VALIDATION, splitting.TEST).astype(np.int8)


def prepare(
  train_path: str,
  test_path: str,
  out: str,
  max_bins: int = 128,
  sources: dict[str, str] | None = None,
) -> data.Schema:
  """Turns the two raw files into a folder of arrays and a schema.

  Args:
    train_path: raw train file.
    test_path: raw test file.
    out: output folder, see preparation.prepare.
    max_bins: maximum number of quantile bins of a continuous column.
    sources: raw file name -> sha256, stored in the schema.

  Returns:
    The schema, as saved in `schema.json`.

  Raises:
    UserError: for broken tables, or if `out` contains anything but prepared data.
    OSError: if a file cannot be read or written.
  """
  errors.require(1 <= max_bins <= 255, f"--max_bins={max_bins}: must be from 1 to 255")
  halves = Halves(_count_lines(test_path))
  groups = [([train_path], splitting.Whole(splitting.TRAIN)), ([test_path], halves)]
  return preparation.prepare(_with_bins(read_spec(SPEC), max_bins), groups, out, sources=sources)


def _with_bins(spec: Spec, max_bins: int) -> Spec:
  columns = {
    name: msgspec.structs.replace(column, bins=min(column.bins, max_bins))
    for name, column in spec.columns.items()
  }
  return msgspec.structs.replace(spec, columns=columns)


def _count_lines(path: str) -> int:
  """Returns the number of lines of a file; the last one may end without a line end."""
  lines, last = 0, b"\n"
  with locations.open_input(path) as file:
    while block := file.read(1 << 22):
      lines += block.count(b"\n")
      last = block[-1:]
  return lines + (last != b"\n")


def main(argv: list[str]) -> None:
  """Obtains the raw files and prepares them."""
  del argv
  paths = raw_files.obtain(_SOURCE.value, _CACHE.value or cache.folder())
  start = time.perf_counter()
  sources = {raw.name: raw.sha256 for raw in raw_files.RAW_FILES}
  schema = prepare(*paths, _OUT.value, _MAX_BINS.value, sources)
  print(summaries.format_schema(schema, _OUT.value))
  print(f"prepared in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
  _OUT = flags.DEFINE_string("out", None, "Folder for the arrays and schema.json.", required=True)
  _SOURCE = flags.DEFINE_string("source", None, "Folder or archive with the raw files.")
  _CACHE = flags.DEFINE_string("cache", None, "Folder for raw files; default ~/.cache/mmoe_jax.")
  _MAX_BINS = flags.DEFINE_integer("max_bins", 128, "Maximum number of quantile bins of a column.")
  commands.run(main)
