"""Compares training on many copies of Census, streamed from disk and in memory.

  python -m benchmarks.streaming --copies 64 --memory_gib 0.5 --out runs/streaming

Writes the prepared train rows --copies times to --out, trains one epoch in a separate process with
the budget and one without, in interleaved rounds, and reports rows/s and peak memory of each.
Writes `table.json`, and with --results the result file streaming.json; the copies are removed at
the end.
"""

import os
import shutil
import subprocess
import sys

import numpy as np
from absl import flags

from benchmarks import records
from benchmarks.machine import describe_machine
from mmoe_jax import commands
from mmoe_jax.errors import require
from mmoe_jax.files import write_json
from mmoe_jax.workdir import contract


def multiply(source: str, target: str, copies: int) -> int:
  """Writes prepared data with `copies` copies of its train rows; returns the number of rows."""
  os.makedirs(os.path.join(target, "train"))
  for name in ("validation", "test"):
    shutil.copytree(os.path.join(source, name), os.path.join(target, name))
  shutil.copy(os.path.join(source, "schema.json"), target)
  for name in os.listdir(os.path.join(source, "train")):
    array = np.load(os.path.join(source, "train", name))
    header = np.lib.format.header_data_from_array_1_0(array)
    header["shape"] = (copies * len(array), *array.shape[1:])
    # Not mapped, because mapped memory would count in the peak of child processes.
    with open(os.path.join(target, "train", name), "wb") as file:
      np.lib.format.write_array_header_1_0(file, header)
      for _ in range(copies):
        array.tofile(file)
  return header["shape"][0]


def train(workdir: str, *overrides: str) -> dict[str, float]:
  """Trains in a separate process; returns rows/s and peak bytes."""
  command = [sys.executable, "-m", "mmoe_jax.main", "--config", _CONFIG.value]
  command += ["--workdir", workdir, *overrides]
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
  _, status, used = os.wait4(process.pid, 0)
  require(os.waitstatus_to_exitcode(status) == 0, f"{' '.join(command)} failed")
  results = contract.read_results(workdir)
  return {
    "rows_per_second": results["rows_per_second"],
    "peak_bytes": used.ru_maxrss * 1024,
    "test": results["test"],
  }


def main(argv: list[str]) -> None:
  """Trains streamed and resident in interleaved rounds."""
  del argv
  require(_COPIES.value >= 1, f"--copies={_COPIES.value}: must be at least 1")
  require(_ROUNDS.value >= 1, f"--rounds={_ROUNDS.value}: must be at least 1")
  require(_MEMORY.value > 0, f"--memory_gib={_MEMORY.value}: must be above 0")
  require(not os.path.exists(_OUT.value), f"--out={_OUT.value}: exists already; use another")
  data = os.path.join(_OUT.value, "data")
  rows = multiply(_DATA_DIR.value, data, _COPIES.value)
  common = (f"--config.data_dir={data}", f"--config.train.epochs={_EPOCHS.value}")
  found: dict[str, list[dict[str, float]]] = {"resident": [], "streamed": []}
  for number in range(_ROUNDS.value):
    for name, memory in (("resident", 0.0), ("streamed", _MEMORY.value)):
      folder = os.path.join(_OUT.value, f"{name}_{number}")
      found[name].append(train(folder, *common, f"--config.train.memory_gib={memory}"))
      print(f"{name}: {found[name][-1]['rows_per_second']:,.0f} rows/s", flush=True)
  shutil.rmtree(data)
  rate = {n: np.array([f["rows_per_second"] for f in each]) for n, each in found.items()}
  table = {
    "machine": describe_machine(),
    "rows": rows,
    "memory_gib": _MEMORY.value,
    "runs": found,
    "ratio": float(np.median(rate["streamed"] / rate["resident"])),
  }
  write_json(os.path.join(_OUT.value, "table.json"), table)
  runs = [
    {"rows_are": name, "round": number, "rows_per_second": f["rows_per_second"]}
    | {"peak_bytes": f["peak_bytes"], **{f"test/{k}": v for k, v in f["test"].items()}}
    for name, each in found.items()
    for number, f in enumerate(each)
  ]
  settings = {"rows": rows, "copies": _COPIES.value, "memory_gib": _MEMORY.value}
  records.write(_RESULTS.value, "streaming", runs, settings=settings)
  peak = {n: max(f["peak_bytes"] for f in each) / 2**30 for n, each in found.items()}
  print(
    f"{rows:,} rows: streamed under {_MEMORY.value} GiB at {np.median(rate['streamed']):,.0f} "
    f"rows/s, {table['ratio']:.2f} of the resident {np.median(rate['resident']):,.0f}; peak of "
    f"the process {peak['streamed']:.2f} GiB against {peak['resident']:.2f}"
  )


if __name__ == "__main__":
  _CONFIG = flags.DEFINE_string("config", "configs/census.py", "FILE.py or FILE.py:ARG.")
  _DATA_DIR = flags.DEFINE_string("data_dir", "data/census", "Prepared data.")
  _COPIES = flags.DEFINE_integer("copies", 64, "Copies of Census.")
  _MEMORY = flags.DEFINE_float("memory_gib", 0.5, "Memory budget of streamed train rows, GiB.")
  _EPOCHS = flags.DEFINE_integer("epochs", 1, "Epochs of each training.")
  _ROUNDS = flags.DEFINE_integer("rounds", 1, "Number of rounds.")
  _OUT = flags.DEFINE_string("out", None, "Output folder, which must not exist.", required=True)
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  commands.run(main)
