"""Times a population against its members' runs one after another, as whole processes.

  python -m benchmarks.population_speed --members 16 --out runs/population_speed

Both train the same seeds of a config, from start-up to results.json, in turns: the population, then
a run for each seed. Leaves `table.json`, with the ratio and how far the members' results are from
those of their runs.
"""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
from absl import flags

from benchmarks import studies
from mmoe_jax import errors, workdirs
from mmoe_jax.data import SPLITS


def _run(module: str, workdir: str, *arguments: str) -> float:
  command = [sys.executable, "-m", f"mmoe_jax.{module}", "--config", _CONFIG.value]
  command += ["--workdir", workdir, *arguments, *_OVERRIDE.value]
  start = time.perf_counter()
  process = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
  errors.require(process.returncode == 0, f"{' '.join(command)} failed")
  return time.perf_counter() - start


def main(argv: list[str]) -> None:
  """The command line."""
  del argv
  errors.require(_MEMBERS.value >= 1, f"--members={_MEMBERS.value}: must be at least 1")
  together = os.path.join(_OUT.value, "population")
  alone = [os.path.join(_OUT.value, f"seed_{seed}") for seed in range(_MEMBERS.value)]
  for folder in (together, *alone):
    shutil.rmtree(folder, ignore_errors=True)
  population = _run("population", together, f"--seeds={_MEMBERS.value}")
  print(f"population of {_MEMBERS.value}: {population:.1f} s", flush=True)
  runs = []
  for seed, folder in enumerate(alone):
    runs.append(_run("main", folder, f"--config.seed={seed}"))
    print(f"seed {seed} alone: {runs[-1]:.1f} s", flush=True)
  results = workdirs.read_results(together)
  pairs = list(zip(results["members"], map(workdirs.read_results, alone), strict=True))
  apart = {}
  for kind in ("auc", "log_loss"):
    names = [n for n in pairs[0][1]["test"] if n.split("/")[1] == kind]
    apart[kind] = max(
      abs(member[split][name] - run[split][name])
      for member, run in pairs
      for split in SPLITS
      for name in names
    )
  table = {
    "machine": studies.machine(),
    "population_seconds": population,
    "runs_seconds": runs,
    "ratio": float(np.sum(runs) / population),
    "population_rows_per_second": results["rows_per_second"],
    "run_rows_per_second": float(np.median([run["rows_per_second"] for _, run in pairs])),
    "largest_difference": apart,
  }
  studies.write_json(os.path.join(_OUT.value, "table.json"), table)
  print(
    f"{np.sum(runs):.1f} s one after another, {population:.1f} s together: "
    f"{table['ratio']:.2f} times faster; largest differences {json.dumps(apart)}"
  )


if __name__ == "__main__":
  _CONFIG = flags.DEFINE_string("config", "configs/census.py", "FILE.py or FILE.py:ARG.")
  _OVERRIDE = flags.DEFINE_multi_string("override", [], "--config.KEY=VALUE for all.")
  _MEMBERS = flags.DEFINE_integer("members", 16, "How many seeds, from 0 up.")
  _OUT = flags.DEFINE_string("out", None, "Where everything goes.", required=True)
  errors.run(main)
