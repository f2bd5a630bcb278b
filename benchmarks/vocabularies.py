"""Measures training with large embedding tables here and in PyTorch, in interleaved epochs.

  pip install -r benchmarks/requirements.txt
  python -m benchmarks.vocabularies --out runs/vocabularies

The model has 8 id features of equal size, embeddings of 16, 4 numbers, 8 experts and 2 tasks; ids
are uniform, so that few rows repeat within a batch: the worst case for memory. Each contender is a
process that trains one epoch while the others wait; the first epoch is not counted. Contenders that
update every row in every step train on fewer rows, and not at all at sizes above --dense_most.

The floor is what a step cannot avoid: the bytes of the batch's rows and their state, read and
written once, at the memory bandwidth of a copy. Writes table.json, table.md and vocabularies.png,
and with --results the result file vocabularies.json.
"""

import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks import plots, records
from benchmarks.contenders.process import Process
from benchmarks.contenders.tables_protocol import DIM, FEATURES, TASKS
from benchmarks.machine import describe_machine
from mmoe_jax import commands
from mmoe_jax.errors import require, require_known
from mmoe_jax.evaluation import tables
from mmoe_jax.files import write_atomically, write_json

# Name -> module, variant, whether every step touches all rows.
CONTENDERS = {
  "ours_dense_adam": ("tables_ours", "dense_adam", True),
  "ours_lazy_adam": ("tables_ours", "rows_adam", False),
  "ours_adagrad": ("tables_ours", "rows_adagrad", False),
  "ours_rowwise_adagrad": ("tables_ours", "rows_rowwise_adagrad", False),
  "pytorch_dense_adam": ("tables_torch", "dense_adam", True),
  "pytorch_sparse_adam": ("tables_torch", "sparse_adam", False),
  "pytorch_sparse_adagrad": ("tables_torch", "sparse_adagrad", False),
}
_STEPS, _DENSE_STEPS = 256, 16  # Per epoch, at least.


def write_arrays(path: str, table_rows: int, rows: int) -> None:
  """Writes the contenders' rows as an .npz file: random ids, numbers and labels."""
  rng = np.random.default_rng(0)
  size = table_rows // FEATURES
  ids = rng.integers(0, size, (rows, FEATURES), np.uint32)
  numbers = rng.normal(size=(rows, 4)).astype(np.float32)
  labels = rng.integers(0, 2, (rows, TASKS)).astype(np.float32)
  arrays = {"sizes": np.full(FEATURES, size), "ids": ids, "numbers": numbers, "labels": labels}
  np.savez(path, **arrays, test_ids=ids[:1], test_numbers=numbers[:1])


def measure(
  names: Sequence[str], table_rows: int, batch_size: int, rounds: int, python: str
) -> list[dict[str, Any]]:
  """Trains the contenders in interleaved epochs.

  Args:
    names: keys of CONTENDERS.
    table_rows: rows of all tables together.
    batch_size: rows per step.
    rounds: number of counted epochs.
    python: Python that has PyTorch.

  Returns:
    For each: `contender`, `table_rows`, `batch_size`, `rows_per_second` of each epoch, their
    `median`, `peak_bytes` of its process.
  """
  threads = len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory() as folder:
    started = {}
    for name in names:
      module, variant, is_dense = CONTENDERS[name]
      path = os.path.join(folder, f"{'dense' if is_dense else 'rows'}.npz")
      if not os.path.exists(path):
        write_arrays(path, table_rows, batch_size * (_DENSE_STEPS if is_dense else _STEPS))
      interpreter = python if "torch" in module else sys.executable
      command = [interpreter, "-m", f"benchmarks.contenders.{module}", path, str(batch_size), "0"]
      started[name] = Process([*command, os.path.join(folder, "none.npy")], threads, variant)
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds + 1):
      for name, process in started.items():
        answers[name].append(process.ask("epoch"))
    for process in started.values():
      process.close()
  points = []
  for name, epochs in answers.items():
    rates = [epoch["rows"] / epoch["seconds"] for epoch in epochs[1:]]
    point = {"contender": name, "table_rows": table_rows, "batch_size": batch_size}
    points.append(
      {**point, "rows_per_second": rates, "median": float(np.median(rates))}
      | {"peak_bytes": epochs[-1]["peak_bytes"]}
    )
  return points


def bandwidth() -> float:
  """Returns the bytes per second that a copy reads and writes, of arrays beyond any cache."""
  source = np.ones(1 << 26, np.float32)
  target = np.empty_like(source)
  seconds = []
  for _ in range(5):
    start = time.perf_counter()
    np.copyto(target, source)
    seconds.append(time.perf_counter() - start)
  return 2 * source.nbytes / float(np.median(seconds))


def floor(bytes_per_second: float) -> float:
  """Returns the rows/s that moving a batch's table rows and row-wise state would allow."""
  per_id = 2 * (DIM * 4 + 4)  # A vector and its accumulator, read and written.
  return bytes_per_second / (FEATURES * per_id)


def markdown(points: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> str:
  """Formats a table of rows/s, and one of peak memory, per batch size."""
  parts = []
  for batch_size in dict.fromkeys(p["batch_size"] for p in points):
    chosen = [p for p in points if p["batch_size"] == batch_size]
    sizes = list(dict.fromkeys(p["table_rows"] for p in chosen))
    header = (f"batches of {batch_size:,}: rows/s", *(f"{s:,} table rows" for s in sizes))
    for key, scale, digits in (("median", 1, 0), ("peak_bytes", 2**30, 2)):
      lines = []
      for name in dict.fromkeys(p["contender"] for p in chosen):
        found = {p["table_rows"]: p[key] / scale for p in chosen if p["contender"] == name}
        cells = [f"{found[s]:,.{digits}f}" if s in found else tables.DASH for s in sizes]
        lines.append([name, *cells])
      if key == "peak_bytes":
        header = ("peak memory of the process, GiB", *header[1:])
        lines.insert(0, ["the tables", *(f"{s * DIM * 4 / 2**30:,.2f}" for s in sizes)])
      parts.append(tables.markdown(header, lines))
  parts.append(
    f"The floor is {machine['floor']:,.0f} rows/s, at {machine['bandwidth'] / 1e9:.1f} GB/s of a "
    f"copy. {machine['cores']} cores of {machine['processor']}, jax {machine['jax']}, "
    f"{machine['device']}."
  )
  return "\n\n".join(parts) + "\n"


def main(argv: list[str]) -> None:
  """Measures each size and batch size."""
  del argv
  require(_ROUNDS.value >= 1, f"--rounds={_ROUNDS.value}: must be at least 1")
  for name in _CONTENDERS.value:
    require_known(name, CONTENDERS, "a name in --contenders")
  numbers = {"sizes": _SIZES.value, "batches": _BATCHES.value}
  for flag, texts in numbers.items():
    is_good = bool(texts) and all(text.isdigit() and int(text) >= 16 for text in texts)
    require(is_good, f"--{flag}={','.join(texts)}: must be whole numbers of at least 16")
  rate = bandwidth()
  machine = {**describe_machine(), "bandwidth": rate, "floor": floor(rate)}
  os.makedirs(_OUT.value, exist_ok=True)
  points: list[dict[str, Any]] = []
  for batch_size in map(int, _BATCHES.value):
    for size in map(int, _SIZES.value):
      names = [n for n in _CONTENDERS.value if size <= _DENSE_MOST.value or not CONTENDERS[n][2]]
      points += measure(names, size, batch_size, _ROUNDS.value, _PYTHON.value)
      write_json(os.path.join(_OUT.value, "table.json"), {"machine": machine, "points": points})
  measured = {"bandwidth": rate, "floor": floor(rate), "rounds": _ROUNDS.value}
  records.write(_RESULTS.value, "vocabularies", points, settings=measured)
  text = markdown(points, machine)
  write_atomically(os.path.join(_OUT.value, "table.md"), text)
  plots.vocabularies(os.path.join(_OUT.value, "vocabularies.png"), points)
  print(text)


if __name__ == "__main__":
  _CONTENDERS = flags.DEFINE_list("contenders", list(CONTENDERS), "Contenders.")
  _SIZES = flags.DEFINE_list(
    "sizes", ["8000", "80000", "800000", "8000000", "80000000"], "Rows of all tables together."
  )
  _BATCHES = flags.DEFINE_list("batches", ["1024", "8192"], "Rows per step.")
  _ROUNDS = flags.DEFINE_integer("rounds", 5, "Counted epochs of each.")
  _DENSE_MOST = flags.DEFINE_integer("dense_most", 8_000_000, "Most table rows of dense updates.")
  _PYTHON = flags.DEFINE_string("python", sys.executable, "Python with PyTorch.")
  _OUT = flags.DEFINE_string("out", None, "Folder for the results.", required=True)
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  commands.run(main)
