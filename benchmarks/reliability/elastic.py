"""Devices: a run that is stopped on some of them and resumes on others, in every order.

Runs in a process with 8 virtual devices. All random draws for rows are enabled, and rows have
their survey weights, so that a row left out, or used twice, changes the losses.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.reliability import jobs
from configs import smoke
from mmoe_jax import cache
from mmoe_jax.errors import require
from mmoe_jax.training import loop, train_rows
from mmoe_jax.workdir import contract, logs, preemption

COUNTS = (1, 2, 4, 8)
_QUESTION = 5  # Of those whether to stop: the third segment of the first epoch is done.
_NEVER = 10**9
_SEGMENT_STEPS = 8


def _config(data_dir: str, memory_gib: float) -> Any:
  config = smoke.get_config()
  config.data_dir = data_dir
  config.train.epochs, config.train.batch_size = 2, 64
  config.train.memory_gib = memory_gib
  config.train.trackers = "jsonl"
  config.loss.sample_weight = True
  for part in ("embedding", "expert", "tower", "gate"):
    config.model[f"{part}_dropout"] = 0.2
  return config


def _train(config: Any, devices: int, workdir: str, question: int = _NEVER) -> dict[str, Any]:
  """Trains until the end, or until the answer to a question whether to stop is yes."""
  config.train.devices = devices
  asked = iter(range(1, _NEVER))
  must_stop = lambda: next(asked) >= question
  with (
    mock.patch.object(preemption, "requested", new=must_stop),
    mock.patch.object(train_rows, "SEGMENT_STEPS", _SEGMENT_STEPS),
  ):
    try:
      return loop.train_and_evaluate(config, workdir)
    except preemption.Preempted:
      return {}


def measure(folder: str, data_dir: str, memory_gib: float) -> list[dict[str, Any]]:
  """Returns for each pair of device counts how its run differs from an uninterrupted one.

  Args:
    folder: folder for work directories.
    data_dir: prepared data.
    memory_gib: 0 for rows in memory, otherwise for streamed ones.

  Returns:
    `from`, `to`, `auc`: largest difference of AUCs on test rows from a run on one device; `loss`:
    largest relative difference of an epoch's loss; `identical`: whether results are bitwise
    identical with those of an uninterrupted run on the devices of `to`.
  """
  config = _config(data_dir, memory_gib)
  whole, digests = {}, {}
  for count in COUNTS:
    workdir = os.path.join(jobs.empty(os.path.join(folder, str(count))), "work")
    whole[count] = _describe(_train(config, count, workdir), workdir)
    digests[count] = jobs.of_run(os.path.dirname(workdir))
  found = []
  for before, after in itertools.product(COUNTS, COUNTS):
    workdir = os.path.join(jobs.empty(os.path.join(folder, "cut")), "work")
    require(not _train(config, before, workdir, _QUESTION), "the run was not stopped")
    names = os.listdir(os.path.join(workdir, contract.CHECKPOINTS, "unfinished"))
    require(len(names) == 1, f"{workdir}: was not stopped within an epoch")
    own = _describe(_train(config, after, workdir), workdir)
    differs = _compare(whole[1], own)
    cut = jobs.of_run(os.path.dirname(workdir))
    # config.json has the devices of the start.
    is_same = all(cut[k] == digests[after][k] for k in cut if k != contract.CONFIG)
    found.append({"from": before, "to": after, **differs, "identical": is_same})
    print(f"{before} -> {after} devices: {found[-1]}", flush=True)
  shutil.rmtree(folder)
  return found


def _describe(results: Mapping[str, Any], workdir: str) -> dict[str, Any]:
  aucs = {k: v for k, v in results["test"].items() if k.endswith("/auc")}
  return {"aucs": aucs, "losses": [r["loss"] for r in logs.read_metrics(workdir)]}


def _compare(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
  auc = max(abs(one["aucs"][k] - other["aucs"][k]) for k in one["aucs"])
  return {"auc": auc, "loss": float(np.max(np.abs(np.divide(other["losses"], one["losses"]) - 1)))}


def summarise(found: list[dict[str, Any]]) -> dict[str, Any]:
  """Returns the largest differences, and whether equal numbers of devices are identical."""
  return {
    "orders": len(found),
    "auc": max(f["auc"] for f in found),
    "loss": max(f["loss"] for f in found),
    "identical_on_the_same": all(f["identical"] for f in found if f["from"] == f["to"]),
  }


def run(folder: str, inputs: str) -> dict[str, Any]:
  """Measures rows in memory and streamed rows in a process with 8 devices."""
  words = [sys.executable, "-m", "benchmarks.reliability.elastic", folder, inputs]
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(max(COUNTS)), "JAX_PLATFORMS": "cpu"}
  process = subprocess.run(words, env=env, stdout=subprocess.PIPE, text=True, check=False)
  require(process.returncode == 0, f"{' '.join(words)} failed")
  return json.loads(process.stdout.splitlines()[-1])


def require_equal(found: Mapping[str, Any]) -> None:
  """Raises UserError unless AUCs are equal within 1e-4, and results on the same devices."""
  for name, pairs in found.items():
    total = summarise(pairs)
    require(total["auc"] <= 1e-4, f"{name} rows: AUCs differ by {total['auc']:.2g}")
    require(total["identical_on_the_same"], f"{name} rows: the same devices, another result")


if __name__ == "__main__":
  cache.keep_programs()
  _FOLDER, _INPUTS = sys.argv[1:]
  _DATA = os.path.join(_INPUTS, "census")
  _FOUND = {
    "resident": measure(_FOLDER, _DATA, 0.0),
    "streamed": measure(_FOLDER, _DATA, jobs.streamed_gib(_INPUTS)),
  }
  print(json.dumps(_FOUND))
