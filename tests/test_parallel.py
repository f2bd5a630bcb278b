"""Devices and hosts: however many there are, the result is that of one."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from mmoe_jax import parallel
from mmoe_jax.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_device_count_is_all_or_as_many_as_asked_for():
  assert parallel.device_count(0, 64) == 8
  assert parallel.device_count(2, 64) == 2
  with pytest.raises(UserError, match="devices is 9; there are 8"):
    parallel.device_count(9, 64)
  with pytest.raises(UserError, match="60, which 8 devices do not divide"):
    parallel.device_count(0, 60)


@pytest.mark.parametrize("count", [1, 4])
def test_compiled_function_gets_its_shard_and_keeps_state_in_place(count):
  devices = parallel.Devices(count)

  def epoch(state, data, key, shard):
    total = shard.astype(np.float32) * data["x"].sum()
    if devices.axis_name:
      total = jax.lax.psum(total, devices.axis_name)
    return state + total, key

  state, data = devices.replicate((np.float32(1), {"x": np.ones(3, np.float32)}))
  compiled = devices.compile(epoch, state, data, jax.random.key(0))
  for step in range(1, 3):
    state, _ = compiled(state, data, jax.random.key(0))
    assert float(state) == 1 + step * 3 * sum(range(count))


def test_options_that_this_xla_does_not_know_are_left_out(monkeypatch):
  known = {"xla_cpu_multi_thread_eigen": False}
  monkeypatch.setattr(parallel, "_CPU_OPTIONS", {"xla_cpu_no_such_option": 1, **known})
  assert parallel.cpu_options.__wrapped__() == known


def test_spread_and_replicate_keep_values():
  devices = parallel.Devices(8)
  array = np.arange(32).reshape(2, 16)
  np.testing.assert_array_equal(devices.spread(array, axis=1), array)
  np.testing.assert_array_equal(devices.replicate(array), array)
  assert len(devices.spread(array, axis=1).sharding.device_set) == 8


def test_two_hosts_equal_one(prepared, tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  command = [sys.executable, "-m", "mmoe_jax.main", "--config", "configs/smoke.py"]
  command += [f"--config.data_dir={prepared}", "--config.train.batch_size=256"]
  for group in ("dense", "embedding"):
    command += [f"--config.optimizer.{group}.name=sgd"]
    command += [f"--config.optimizer.{group}.learning_rate=0.1"]
  # Dropout draws for each device anew; without it, only rounding differs.
  for rate in ("embedding_dropout", "expert_dropout", "tower_dropout"):
    command += [f"--config.model.{rate}=0.0"]
  alone = {**os.environ, "XLA_FLAGS": ""}
  together = {**alone, "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
  hosts = [
    subprocess.Popen(
      [*command, "--workdir", str(tmp_path / "two")],
      cwd=ROOT,
      env={**together, "JAX_PROCESS_ID": str(i)},
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )
    for i in range(2)
  ]
  said = [host.communicate(timeout=200)[0] for host in hosts]
  assert [host.returncode for host in hosts] == [0, 0]
  assert ["income_50k" in text for text in said] == [True, False]  # The first host speaks.
  subprocess.run(
    [*command, "--workdir", str(tmp_path / "one")],
    cwd=ROOT,
    env=alone,
    check=True,
    stdout=subprocess.DEVNULL,
  )
  ends = []
  for name in ("one", "two"):
    results = json.loads((tmp_path / name / "results.json").read_text())
    ends.append([results["test"][f"{t}/auc"] for t in ("income_50k", "marital_stat")])
    assert len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) == 3
  np.testing.assert_allclose(*ends, atol=1e-4)
