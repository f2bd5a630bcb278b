"""Kills a run at random moments, resumes it, and compares it with one that was left alone.

  python -m benchmarks.kill_and_resume --config configs/census.py --kills 3 --out runs/killed

Fails unless every array of the last checkpoints (parameters, optimizer state, best weights) is
the same to the bit.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
from absl import flags

from mmoe_jax import errors


def _start(workdir: str) -> subprocess.Popen:
  command = [sys.executable, "-m", "mmoe_jax.main", "--config", _CONFIG.value]
  command += ["--workdir", workdir, *_OVERRIDE.value]
  return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _finish(workdir: str) -> float:
  start = time.perf_counter()
  errors.require(_start(workdir).wait() == 0, f"the run in {workdir} failed")
  return time.perf_counter() - start


def _arrays(workdir: str) -> dict[str, np.ndarray]:
  """All arrays of the last checkpoint by path, read without the package's own code."""
  folder = os.path.join(os.path.abspath(workdir), "checkpoints")
  last = max(os.listdir(folder), key=int)
  tree = ocp.PyTreeCheckpointer().restore(os.path.join(folder, last, "state"))
  flat = {}

  def walk(prefix: str, node: object) -> None:
    if isinstance(node, dict):
      for key, value in node.items():
        walk(f"{prefix}/{key}", value)
    elif isinstance(node, list | tuple):
      for i, value in enumerate(node):
        walk(f"{prefix}/{i}", value)
    elif node is not None:
      flat[prefix] = np.asarray(node)

  walk("", tree)
  return flat


def main(argv: list[str]) -> None:
  """The command line."""
  del argv
  rng = random.Random(_SEED.value)
  whole, killed = (os.path.join(_OUT.value, name) for name in ("whole", "killed"))
  for folder in (whole, killed):
    shutil.rmtree(folder, ignore_errors=True)
  seconds = _finish(whole)
  print(f"left alone: {seconds:.1f} s")
  for i in range(_KILLS.value):
    process = _start(killed)
    wait = rng.uniform(0.2, 0.9) * seconds * (1 - i / (_KILLS.value + 1))
    time.sleep(wait)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = os.path.join(killed, "checkpoints")
    there = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    print(f"kill {i + 1} after {wait:.1f} s, running: {running}; checkpoints: {there}")
  _finish(killed)
  a, b = _arrays(whole), _arrays(killed)
  errors.require(a.keys() == b.keys(), "the checkpoints hold different arrays")
  differ = [k for k in a if a[k].tobytes() != b[k].tobytes()]
  errors.require(not differ, f"{len(differ)} of {len(a)} arrays differ, first {differ[:1]}")
  size = sum(array.nbytes for array in a.values())
  print(f"bit-identical: {len(a)} arrays, {size:,} bytes")


if __name__ == "__main__":
  _CONFIG = flags.DEFINE_string("config", "configs/census.py", "FILE.py or FILE.py:ARG.")
  _OVERRIDE = flags.DEFINE_multi_string("override", [], "--config.KEY=VALUE for both runs.")
  _KILLS = flags.DEFINE_integer("kills", 3, "How often to kill.")
  _SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
  _OUT = flags.DEFINE_string("out", None, "Where the two runs go.", required=True)
  errors.run(main)
