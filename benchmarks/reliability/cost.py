"""Cost of safety: what a save adds to an epoch, and how soon a run resumes or leaves."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.reliability import jobs
from benchmarks.streaming import multiply
from configs import census
from mmoe_jax import data
from mmoe_jax.errors import require
from mmoe_jax.training.run import compile_run
from mmoe_jax.workdir import checkpoint, contract, logs, preemption

DIMS = (4, 64, 512)  # Widths of the embeddings: states of about 1, 4 and 30 MB.
STREAMED_ROWS = 20_000_000
_WAIT_SECONDS = 500.0


def of_saves(folder: str, data_dir: str, rounds: int) -> list[dict[str, float]]:
  """Returns for states of several sizes how much longer an epoch with a save takes.

  Args:
    folder: folder for checkpoints.
    data_dir: prepared Census data.
    rounds: pairs of an epoch with a save before it, which is written meanwhile, and one without.

  Returns:
    `bytes` of the state, medians of `epoch_s`, `call_s` (the save's, until training continues) and
    `ratio` of epochs with and without.
  """
  found = []
  for dim in DIMS:
    config = census.get_config()
    config.data_dir, config.model.embedding_dim, config.train.devices = data_dir, dim, 1
    schema, splits = data.load(data_dir, **config.data)
    rows = 80 * config.train.batch_size if dim > DIMS[0] else len(splits["train"])
    run = compile_run(config, schema, _first_rows(splits["train"], rows))
    state, epoch = run.train_epoch(run.state, 1)[0], 1
    size = sum(a.nbytes for a in jax.tree.leaves(jax.device_get(state)))
    times: dict[str, list[float]] = {"with": [], "without": [], "call": []}
    with checkpoint.Checkpoints(jobs.empty(folder)) as checkpoints:
      for number in range(2 * rounds + 1):  # The first save starts threads.
        kind = "without" if number % 2 else "with"
        epoch += 1
        start = time.perf_counter()
        if kind == "with":
          checkpoints.save(epoch, state, state.best.variables)
        call = time.perf_counter() - start
        state = jax.block_until_ready(run.train_epoch(state, epoch)[0])
        seconds = time.perf_counter() - start
        if number:
          times[kind].append(seconds)
        if number and kind == "with":
          times["call"].append(call)
        checkpoints.wait()
    shutil.rmtree(folder)
    ratios = np.array(times["with"]) / np.array(times["without"])
    found.append(
      {
        "bytes": size,
        "epoch_s": float(np.median(times["without"])),
        "call_s": float(np.median(times["call"])),
        "ratio": float(np.median(ratios)),
      }
    )
    print(f"save: {found[-1]}", flush=True)
  return found


def _first_rows(split: data.Split, rows: int) -> data.Split:
  features = {name: a[:rows] for name, a in split.features.items()}
  slices = {name: a[:rows] for name, a in split.slices.items()}
  return data.Split(features, split.labels[:rows], split.weights[:rows], slices)


def of_resuming(folder: str, data_dir: str, rounds: int) -> list[float]:
  """Returns the seconds from the start of census.py, after an epoch, to its first step.

  They include the evaluation of the validation rows after the epoch, and saved programs are used.
  """
  found = []
  for number in range(rounds + 1):  # The first one compiles.
    workdir = os.path.join(jobs.empty(folder), "work")
    _leave_after(_start(workdir, data_dir), workdir, lambda w: len(_records(w)) >= 1, 0.0)
    before = len(_records(workdir))
    start = time.time()
    process = _start(workdir, data_dir)
    _wait(process, workdir, lambda w, n=before: len(_records(w)) > n)
    record = _records(workdir)[before]
    logged = os.stat(os.path.join(workdir, "metrics.jsonl")).st_mtime
    process.kill()
    process.wait()
    if number:
      found.append(logged - start - record["seconds"])
  shutil.rmtree(folder)
  return found


def of_leaving(folder: str, data_dir: str, rounds: int, *settings: str) -> dict[str, Any]:
  """Returns `seconds` from SIGTERM to the end of census.py, and whether it resumed `identical`.

  Args:
    folder: folder for work directories.
    data_dir: prepared data.
    rounds: number of signals, each in a new run.
    *settings: further settings, for all runs.
  """
  whole = os.path.join(jobs.empty(os.path.join(folder, "whole")), "work")
  start = time.perf_counter()
  require(_start(whole, data_dir, *settings).wait() == 0, "the run failed")
  seconds = time.perf_counter() - start
  expected, rng, found, identical = jobs.of_run(os.path.dirname(whole)), random.Random(0), [], 0
  for _ in range(rounds):
    cut = os.path.join(jobs.empty(os.path.join(folder, "cut")), "work")
    wait = rng.uniform(0, 0.4) * seconds
    process = _start(cut, data_dir, *settings)
    found.append(_leave_after(process, cut, _has_begun, wait))
    require(_start(cut, data_dir, *settings).wait() == 0, "the run does not resume")
    identical += jobs.of_run(os.path.dirname(cut)) == expected
  shutil.rmtree(folder)
  return {"seconds": found, "identical": identical, "runs": rounds}


def of_leaving_a_long_epoch(folder: str, data_dir: str) -> dict[str, Any]:
  """Returns `seconds` from SIGTERM to the end within an epoch of streamed rows, and its `rows`."""
  copies = -(-STREAMED_ROWS // len(np.load(os.path.join(data_dir, "train", "labels.npy"))))
  source = os.path.join(jobs.empty(folder), "data")
  rows = multiply(data_dir, source, copies)
  workdir = os.path.join(folder, "work")
  process = _start(workdir, source, "--config.train.memory_gib=0.5", "--config.train.epochs=1")
  seconds = _leave_after(process, workdir, _has_begun, 10.0)
  unfinished = os.path.join(workdir, contract.CHECKPOINTS, "unfinished")
  names = os.listdir(unfinished) if os.path.isdir(unfinished) else []
  shutil.rmtree(folder)
  return {"seconds": seconds, "rows": rows, "saved": names}


def _start(workdir: str, data_dir: str, *settings: str) -> subprocess.Popen:
  words = [sys.executable, "-m", "mmoe_jax.main", "--config=configs/census.py"]
  words += [f"--workdir={workdir}", f"--config.data_dir={data_dir}", *settings]
  return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _leave_after(
  process: subprocess.Popen, workdir: str, condition: Callable[[str], bool], wait: float
) -> float:
  """Sends SIGTERM some seconds after a condition holds; returns the seconds to the end."""
  _wait(process, workdir, condition)
  time.sleep(wait)
  require(process.poll() is None, "the run ended before the signal")
  start = time.perf_counter()
  process.send_signal(signal.SIGTERM)
  status = process.wait()
  seconds = time.perf_counter() - start
  require(status == preemption.EXIT_STATUS, f"the run ended with {status}")
  return seconds


def _wait(process: subprocess.Popen, workdir: str, condition: Callable[[str], bool]) -> None:
  end = time.perf_counter() + _WAIT_SECONDS
  while not condition(workdir):
    require(process.poll() is None, "the run ended too soon")
    require(time.perf_counter() < end, "the run takes too long")
    time.sleep(0.02)


def _has_begun(workdir: str) -> bool:
  return os.path.exists(os.path.join(workdir, contract.CONFIG))


def _records(workdir: str) -> list[dict[str, Any]]:
  path = os.path.join(workdir, "metrics.jsonl")
  return logs.read_metrics(workdir) if os.path.exists(path) else []
