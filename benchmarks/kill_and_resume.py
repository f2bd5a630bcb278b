"""Kills a run at random times, resumes it, and compares it with an uninterrupted run.

  python -m benchmarks.kill_and_resume --config configs/census.py --kills 3 --out runs/killed

With `--signal TERM` the run saves and exits with 75, see docs/usage.md#resuming.
Fails unless all arrays of the last checkpoints (parameters, optimizer state, best variables) are
bitwise identical.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from absl import flags

from mmoe_jax import commands, errors
from mmoe_jax.workdir import checkpoint, contract, preemption


def _start(workdir: str) -> subprocess.Popen:
  command = [sys.executable, "-m", "mmoe_jax.main", "--config", _CONFIG.value]
  command += ["--workdir", workdir, *_OVERRIDE.value]
  return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _finish(workdir: str) -> float:
  start = time.perf_counter()
  errors.require(_start(workdir).wait() == 0, f"the run in {workdir} failed")
  return time.perf_counter() - start


def _arrays(workdir: str) -> dict[str, np.ndarray]:
  """Returns the arrays of the last checkpoint, large tables included."""
  found = checkpoint.read_arrays(workdir)
  last = os.path.join(workdir, "checkpoints", str(contract.saved_epochs(workdir)[-1]))
  if os.path.isdir(os.path.join(last, "tables")):
    found |= checkpoint.read_arrays(workdir, "tables")
  return found


def main(argv: list[str]) -> None:
  """Runs, kills, resumes and compares."""
  del argv
  rng = random.Random(_SEED.value)
  whole, killed = (os.path.join(_OUT.value, name) for name in ("whole", "killed"))
  for folder in (whole, killed):
    shutil.rmtree(folder, ignore_errors=True)
  seconds = _finish(whole)
  print(f"uninterrupted: {seconds:.1f} s")
  for i in range(_KILLS.value):
    process = _start(killed)
    # A resumed run is shorter, so later kills come earlier.
    wait = rng.uniform(0.3, 0.8) * seconds * (1 - i / (_KILLS.value + 1))
    time.sleep(wait)
    errors.require(process.poll() is None, f"the run ended within {wait:.1f} s; use another --seed")
    sent = time.perf_counter()
    process.send_signal(signal.Signals[f"SIG{_SIGNAL.value}"])
    status, ended = process.wait(), time.perf_counter() - sent
    expected = -signal.SIGKILL if _SIGNAL.value == "KILL" else preemption.EXIT_STATUS
    errors.require(status == expected, f"the run ended with status {status}, not {expected}")
    folder = os.path.join(killed, "checkpoints")
    found = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    within = os.path.join(folder, "unfinished")
    found += sorted(os.listdir(within)) if os.path.isdir(within) else []
    print(
      f"kill {i + 1} after {wait:.1f} s, ended {ended:.1f} s later; checkpoints: "
      f"{', '.join(found) or 'none'}",
      flush=True,
    )
  errors.require(bool(found), "no kill followed a checkpoint; use another --seed")
  _finish(killed)
  a, b = _arrays(whole), _arrays(killed)
  errors.require(a.keys() == b.keys(), "the checkpoints contain different arrays")
  differ = [k for k in a if a[k].tobytes() != b[k].tobytes()]
  errors.require(not differ, f"{len(differ)} of {len(a)} arrays differ, first {differ[:1]}")
  size = sum(array.nbytes for array in a.values())
  print(f"bitwise identical: {len(a)} arrays, {size:,} bytes")


if __name__ == "__main__":
  _CONFIG = flags.DEFINE_string("config", "configs/census.py", "FILE.py or FILE.py:ARG.")
  _OVERRIDE = flags.DEFINE_multi_string("override", [], "--config.KEY=VALUE for both runs.")
  _KILLS = flags.DEFINE_integer("kills", 3, "Number of kills.")
  _SIGNAL = flags.DEFINE_enum("signal", "KILL", ["KILL", "TERM", "INT"], "Signal of the kills.")
  _SEED = flags.DEFINE_integer("seed", 0, "Seed of the times.")
  _OUT = flags.DEFINE_string("out", None, "Output folder of the two runs.", required=True)
  commands.run(main)
