"""Signals to commands as a batch system sends them: exit status 75, and nothing is repeated."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mmoe_jax.workdir import checkpoint, contract
from tests import ROOT
from tests.commands import environment, run
from tests.training.test_preemption import with_streamed_rows

WAITING = """
import threading, time
from mmoe_jax import commands
from mmoe_jax.workdir import preemption

def main(argv):
  with preemption.deferred():
    print("ready", flush=True)
    while not preemption.requested():
      time.sleep(0.01)
    print("requested", flush=True)
    {then}

commands.run(main, resumes=True)
"""
# Trains a run, then the same one until a signal in the second block of epoch 2.
TRAINING = """
import os, signal, sys, time
from absl import flags
from mmoe_jax import commands, main
from mmoe_jax.training import loop, train_rows
from mmoe_jax.workdir import preemption

def both(argv):
  loop.train_and_evaluate(main._CONFIG.value, main._WORKDIR.value + "_whole")
  blocks = train_rows.Streamed.blocks

  def with_signal(self, epoch, first=0):
    for i, block in enumerate(blocks(self, epoch, first)):
      if (epoch, i) == (2, 1):
        os.kill(os.getpid(), signal.SIGTERM)
        while not preemption.requested():
          time.sleep(0.01)
      yield block

  train_rows.Streamed.blocks = with_signal
  main.main(argv)

commands.run(both, resumes=True)
"""


def start(code: str, *arguments: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-c", code, *arguments],
    cwd=ROOT,
    env=environment(),
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_a_safe_point(number):
  with start(WAITING.format(then="preemption.stop_if_requested()")) as process:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.send_signal(number)  # As `timeout` sends it: not a second one.
    out, error = process.communicate(timeout=30)
  assert (process.returncode, out) == (75, "requested\n")
  assert error.split("\n") == [
    "",
    "stopping after the part in hand; a second signal ends at once",
    "",
    "interrupted; the same command resumes",
    "",
  ]


def test_a_second_signal_ends_at_once():
  with start(WAITING.format(then="threading.Event().wait()")) as process:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "requested\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
  assert process.returncode == 128 + signal.SIGTERM
  assert error.strip().endswith("ended at once; the same command resumes from the last save")


@pytest.mark.slow
def test_a_run_that_is_stopped_within_an_epoch_resumes_bitwise_identical(config, tmp_path):
  with_streamed_rows(config)
  workdir = str(tmp_path / "w")
  words = ["--config=configs/smoke.py", f"--workdir={workdir}", "--config.train.devices=1"]
  words += [f"--config.data_dir={config.data_dir}", "--config.train.batch_size=64"]
  words += [f"--config.train.memory_gib={config.train.memory_gib}", "--config.train.epochs=3"]
  with start(TRAINING, *words) as process:
    _, error = process.communicate(timeout=120)
  assert process.returncode == 75, error
  assert error.strip().endswith("interrupted; the same command resumes")
  assert os.listdir(os.path.join(workdir, "checkpoints", "unfinished")) == ["1.14"]
  resumed = run("mmoe_jax.main", *words)
  assert resumed.returncode == 0, resumed.stderr
  assert "epoch 2/3" in resumed.stderr
  assert "epoch 1/3" not in resumed.stderr
  assert contract.read_results(workdir)["epochs"] == 3
  whole, cut = checkpoint.read_arrays(f"{workdir}_whole"), checkpoint.read_arrays(workdir)
  assert whole.keys() == cut.keys()
  for name in whole:
    np.testing.assert_array_equal(whole[name], cut[name], err_msg=name)
