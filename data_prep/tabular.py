"""Prepares any table by its spec: CSV or Parquet, local or in object storage, of any size.

  python -m data_prep.tabular --spec spec.toml --input rows.csv --out data/table
  python -m data_prep.tabular --spec spec.toml --train a.csv --test b.csv --out data/table

data_prep.inspect drafts a spec; docs/spec.md has every key.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context

from absl import flags
from tqdm import tqdm

from data_prep import parts, preparation, splitting, summaries
from data_prep.spec import read_spec
from mmoe_jax import commands
from mmoe_jax.data import locations, tables
from mmoe_jax.errors import UserError, require
from mmoe_jax.workdir import preemption


def main(argv: list[str]) -> None:
  """Prepares a table and prints what it contains."""
  del argv
  start = time.perf_counter()
  spec = read_spec(_SPEC.value)
  given = {"input": _INPUT, "train": _TRAIN, "validation": _VALIDATION, "test": _TEST}
  files = {name: locations.expand(flag.value) for name, flag in given.items() if flag.value}
  require(bool(files), "give the table's files as --input, or as --train and --test")
  groups = splitting.splitters_of(spec.split, files)
  size = sum(locations.stat(path)[0] for paths in files.values() for path in paths)
  with _executor(_SCHEDULER.value, _WORKERS.value, size) as (executor, workers):
    schema = preparation.prepare(
      spec, groups, _OUT.value, executor=executor, workers=workers, progress=_Progress()
    )
  print(summaries.format_schema(schema, _OUT.value))
  seconds = time.perf_counter() - start
  rows = sum(count["rows"] for count in schema.counts.values())
  print(f"prepared in {seconds:.1f} s, {rows / seconds:,.0f} rows/s")
  print(
    "train: python -m mmoe_jax.main --config configs/tabular.py:mmoe,data="
    f"{_OUT.value} --workdir runs/{os.path.basename(_OUT.value.rstrip('/'))}"
  )


class _Progress:
  """Progress bar of each pass: parts, rows, rows/s and time left."""

  def __init__(self) -> None:
    self._name, self._bar = "", None

  def __call__(self, name: str, done: int, parts: int, rows: int) -> None:
    if name != self._name:
      self._name, self._start = name, time.perf_counter()
      disable = parts < 2 or not sys.stderr.isatty()
      self._bar = tqdm(total=parts, desc=name, unit="part", disable=disable, file=sys.stderr)
    rate = rows / max(1e-9, time.perf_counter() - self._start)
    self._bar.set_postfix_str(f"{rows:,} rows, {rate:,.0f} rows/s", refresh=False)
    self._bar.update(done - self._bar.n)
    if done == parts:
      self._bar.close()


@contextlib.contextmanager
def _executor(scheduler: str, workers: int, size: int) -> Iterator[tuple[Executor | None, int]]:
  """Yields what runs the parts, and how many at a time.

  Small tables are prepared in this process, others in one process per core, or by a Dask cluster.
  """
  require(workers >= 0, f"--workers={workers}: must be at least 0 (0: one per core)")
  if scheduler:
    try:
      from distributed import Client
    except ImportError as error:
      raise UserError("--scheduler needs Dask: pip install 'distributed>=2024.8,<2027'") from error
    try:
      client = Client(scheduler, timeout="10s")
    except (OSError, TimeoutError, ValueError) as error:
      raise UserError(f"--scheduler={scheduler}: cannot be reached ({error})") from error
    with client:
      cores = sum(client.nthreads().values())
      require(cores > 0, f"--scheduler={scheduler}: has no workers")
      yield client.get_executor(), cores
    return
  workers = workers or (os.cpu_count() or 1 if size > tables.SMALL else 1)
  if workers == 1:
    yield None, 1
    return
  context = get_context("spawn")
  with ProcessPoolExecutor(workers, mp_context=context, initializer=parts.start_worker) as pool:
    try:
      yield pool, workers
    except preemption.Preempted:
      pool.shutdown(wait=False, cancel_futures=True)  # Workers end with this process.
      raise


if __name__ == "__main__":
  _SPEC = flags.DEFINE_string("spec", None, "Spec of the table, TOML.", required=True)
  _OUT = flags.DEFINE_string("out", None, "Folder for the arrays and schema.json.", required=True)
  _INPUT = flags.DEFINE_list("input", [], "Files with all rows, with commas between them.")
  _TRAIN = flags.DEFINE_list("train", [], "Files of train rows, for split.method = 'files'.")
  _VALIDATION = flags.DEFINE_list("validation", [], "Files of validation rows.")
  _TEST = flags.DEFINE_list("test", [], "Files of test rows.")
  _WORKERS = flags.DEFINE_integer("workers", 0, "Processes; 0: one per core for large tables.")
  _SCHEDULER = flags.DEFINE_string("scheduler", "", "Address of a Dask scheduler.")
  commands.run(main, resumes=True)
