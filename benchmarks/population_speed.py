"""Compares a population with separate runs of its members, as whole processes.

  python -m benchmarks.population_speed --members 16 --out runs/population_speed

Both train the same seeds of a config, from start to results.json: the population, then one run per
seed. Writes `table.json` with the ratio and the largest differences between members and runs, and
with --results the result file population_speed.json.
"""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
from absl import flags

from benchmarks import records
from benchmarks.machine import describe_machine
from mmoe_jax import commands, errors
from mmoe_jax.data import SPLITS
from mmoe_jax.files import write_json
from mmoe_jax.workdir import contract


def _run(module: str, workdir: str, *arguments: str) -> float:
  command = [sys.executable, "-m", f"mmoe_jax.{module}", "--config", _CONFIG.value]
  command += ["--workdir", workdir, *arguments, *_OVERRIDE.value]
  start = time.perf_counter()
  process = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
  errors.require(process.returncode == 0, f"{' '.join(command)} failed")
  return time.perf_counter() - start


def main(argv: list[str]) -> None:
  """Trains both and compares them."""
  del argv
  errors.require(_MEMBERS.value >= 1, f"--members={_MEMBERS.value}: must be at least 1")
  together = os.path.join(_OUT.value, "population")
  separate = [os.path.join(_OUT.value, f"seed_{seed}") for seed in range(_MEMBERS.value)]
  for folder in (together, *separate):
    shutil.rmtree(folder, ignore_errors=True)
  population = _run("population", together, f"--seeds={_MEMBERS.value}")
  print(f"population of {_MEMBERS.value}: {population:.1f} s", flush=True)
  runs = []
  for seed, folder in enumerate(separate):
    runs.append(_run("main", folder, f"--config.seed={seed}"))
    print(f"seed {seed}: {runs[-1]:.1f} s", flush=True)
  results = contract.read_results(together)
  pairs = list(zip(results["members"], map(contract.read_results, separate), strict=True))
  differences = {}
  for kind in ("auc", "log_loss"):
    names = [n for n in pairs[0][1]["test"] if n.split("/")[1] == kind]
    differences[kind] = max(
      abs(member[split][name] - run[split][name])
      for member, run in pairs
      for split in SPLITS
      for name in names
    )
  table = {
    "machine": describe_machine(),
    "population_seconds": population,
    "runs_seconds": runs,
    "ratio": float(np.sum(runs) / population),
    "population_rows_per_second": results["rows_per_second"],
    "run_rows_per_second": float(np.median([run["rows_per_second"] for _, run in pairs])),
    "largest_difference": differences,
  }
  write_json(os.path.join(_OUT.value, "table.json"), table)
  rows_per_second = [table["population_rows_per_second"]]
  rows_per_second += [run["rows_per_second"] for _, run in pairs]
  measured = [
    {"process": "run" if i else "population", "seed": i - 1 if i else None, "seconds": seconds}
    | {"rows_per_second": rate}
    for i, (seconds, rate) in enumerate(zip([population, *runs], rows_per_second, strict=True))
  ]
  settings = {"config": _CONFIG.value, "members": _MEMBERS.value, "overrides": _OVERRIDE.value}
  settings["largest_difference"] = differences
  records.write(_RESULTS.value, "population_speed", measured, settings=settings)
  print(
    f"{np.sum(runs):.1f} s as separate runs, {population:.1f} s as a population: "
    f"{table['ratio']:.2f} times faster; largest differences {json.dumps(differences)}"
  )


if __name__ == "__main__":
  _CONFIG = flags.DEFINE_string("config", "configs/census.py", "FILE.py or FILE.py:ARG.")
  _OVERRIDE = flags.DEFINE_multi_string("override", [], "--config.KEY=VALUE for all.")
  _MEMBERS = flags.DEFINE_integer("members", 16, "Number of seeds, from 0 up.")
  _OUT = flags.DEFINE_string("out", None, "Output folder.", required=True)
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  commands.run(main)
