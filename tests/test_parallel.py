"""Devices and hosts: any number of them gives the results of one."""

import json
import operator
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest

from configs import smoke
from mmoe_jax import parallel
from mmoe_jax.config import override
from mmoe_jax.errors import UserError
from mmoe_jax.parallel import heartbeat, hosts, programs
from mmoe_jax.training import loop
from mmoe_jax.workdir import checkpoint
from tests import ROOT
from tests.commands import command, environment

SUMMARY = ("devices:", "model:", "train rows:", "work directory:", "epoch ")  # What a run prints.


def test_device_count_is_all_or_as_many_as_asked_for():
  assert parallel.device_count(0, 64) == 8
  assert parallel.device_count(2, 64) == 2
  with pytest.raises(UserError, match="devices = 9: must be from 0 to 8"):
    parallel.device_count(9, 64)
  with pytest.raises(UserError, match="batch_size = 60: must be a multiple of 8"):
    parallel.device_count(0, 60)


@pytest.mark.parametrize("count", [1, 4])
def test_compiled_function_gets_its_shard_and_keeps_state_in_place(count):
  devices = parallel.Devices(count)

  def epoch(state, rows, key):
    shard = jax.lax.axis_index(devices.axis_name) if devices.axis_name else 0
    total = shard * rows["x"].sum()
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
  monkeypatch.setattr(programs, "_CPU_OPTIONS", {"xla_cpu_no_such_option": 1, **known})
  assert parallel.cpu_options.__wrapped__() == known


def test_shard_and_replicate_keep_values():
  devices = parallel.Devices(8)
  array = np.arange(32).reshape(2, 16)
  np.testing.assert_array_equal(devices.shard(array, axis=1), array)
  np.testing.assert_array_equal(devices.replicate(array), array)
  assert len(devices.shard(array, axis=1).sharding.device_set) == 8


def host_config(prepared, optimizer):
  """Returns settings under which only rounding depends on the devices: without dropout."""
  config = smoke.get_config()
  config.data_dir, config.train.devices = prepared, 1
  config.train.epochs, config.train.batch_size = 1, 512
  for group in ("dense", "embedding"):
    config.optimizer[group].name, config.optimizer[group].learning_rate = "sgd", 0.1
  config.optimizer.embedding.name = optimizer
  for part in ("embedding", "expert", "tower"):
    config.model[f"{part}_dropout"] = 0.0
  return config


def train_on_two_hosts(config, workdir, virtual_devices, **settings):
  """Trains in two processes; returns what each printed."""
  hosts = start_two_hosts(config, workdir, virtual_devices, **settings)
  outputs = [host.communicate(timeout=200)[0] for host in hosts]
  assert [host.returncode for host in hosts] == [0, 0]
  return outputs


def start_two_hosts(config, workdir, virtual_devices, **settings):
  """Starts two processes that train together."""
  words = [f"--config.{key}={value}" for key, value in settings.items()]
  return start_hosts(config, workdir, virtual_devices, 2, "main", words)


def start_hosts(config, workdir, virtual_devices, count, module, words):
  """Starts processes that train together, by a command of mmoe_jax with these further words."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  keys = ("data_dir", "train.epochs", "train.batch_size")
  keys += tuple(
    f"optimizer.{g}.{k}" for g in ("dense", "embedding") for k in ("name", "learning_rate")
  )
  keys += tuple(f"model.{part}_dropout" for part in ("embedding", "expert", "tower"))
  first = command(f"mmoe_jax.{module}", "--config", "configs/smoke.py", "--workdir", workdir)
  first += [f"--config.{key}={operator.attrgetter(key)(config)}" for key in keys]
  words = [*first, *words]
  cluster = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
  cluster["MMOE_HEARTBEAT_SECONDS"] = "10"
  cluster["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={virtual_devices}"
  return [
    subprocess.Popen(
      words,
      cwd=ROOT,
      env=environment(**cluster, JAX_PROCESS_ID=str(i)),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(count)
  ]


@pytest.mark.slow
def test_two_hosts_equal_one(prepared, tmp_path):
  config = host_config(prepared, "sgd")
  one = loop.train_and_evaluate(config, str(tmp_path / "one"))
  outputs = train_on_two_hosts(config, tmp_path / "two", 1, **{"train.trackers": "jsonl,csv"})
  assert ["income_50k" in text for text in outputs] == [True, False]  # Only the first prints.
  two = json.loads((tmp_path / "two" / "results.json").read_text())
  for task in ("income_50k", "marital_stat"):
    assert two["test"][f"{task}/auc"] == pytest.approx(one["test"][f"{task}/auc"], abs=1e-4)
  assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 1
  assert len((tmp_path / "two" / "metrics.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_tables_sharded_over_two_hosts_equal_those_of_one_device(prepared, tmp_path):
  config = host_config(prepared, "sgd")
  config.optimizer.embedding.updates = "rows"
  loop.train_and_evaluate(config, str(tmp_path / "one"))
  settings = {"optimizer.embedding.updates": "rows", "model.embedding_shards": 4}
  train_on_two_hosts(config, tmp_path / "two", 2, **settings)
  tables = [checkpoint.read_arrays(str(tmp_path / name), "tables") for name in ("one", "two")]
  for name, table in tables[0].items():
    np.testing.assert_allclose(tables[1][name], table, rtol=1e-4, atol=1e-6)
  # One device restores, verifies and evaluates what four have saved.
  (tmp_path / "two" / "results.json").unlink()
  found = loop.train_and_evaluate(config, str(tmp_path / "two"))
  again = loop.train_and_evaluate(config, str(tmp_path / "one"))
  for name, value in again["test"].items():
    assert found["test"][name] == pytest.approx(value, abs=1e-4), name


def test_an_unused_accelerator_gives_a_warning(monkeypatch, capsys, tmp_path):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  (tmp_path / "nvidia0").touch()
  monkeypatch.setattr(hosts, "_ACCELERATORS", (str(tmp_path / "accel*"),))
  parallel.warn_of_unused_accelerator()
  assert capsys.readouterr().err == ""
  monkeypatch.setattr(hosts, "_ACCELERATORS", (str(tmp_path / "nvidia*"),))
  parallel.warn_of_unused_accelerator()
  assert "nvidia*), but JAX runs on the CPU; install" in capsys.readouterr().err
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  parallel.warn_of_unused_accelerator()
  assert capsys.readouterr().err == ""


def test_devices_are_described_by_number_and_kind():
  assert parallel.describe_devices(jax.devices()[:3]) == "3 x cpu"


@pytest.mark.slow
def test_two_hosts_that_stream_equal_one(prepared, tmp_path):
  config = host_config(prepared, "sgd")
  settings = {"train.memory_gib": 1e-4, "train.batch_size": 64}
  one = override(config, settings)
  one = loop.train_and_evaluate(one, str(tmp_path / "one"))
  train_on_two_hosts(config, tmp_path / "two", 2, **settings)
  two = json.loads((tmp_path / "two" / "results.json").read_text())
  assert two["notes"]["train"] == one["notes"]["train"]
  for split in ("train", "validation", "test"):
    for name, value in one[split].items():
      assert two[split][name] == pytest.approx(value, abs=1e-4), name


@pytest.mark.slow
def test_members_spread_over_two_hosts_are_those_of_one(prepared, tmp_path):
  config = host_config(prepared, "sgd")
  for count in (1, 2):
    hosts = start_hosts(config, tmp_path / str(count), 1, count, "population", ["--seeds=3"])
    assert [host.communicate(timeout=300) and host.returncode for host in hosts] == [0] * count
  one, two = (checkpoint.read_arrays(str(tmp_path / str(count))) for count in (1, 2))
  for name in one:
    np.testing.assert_array_equal(two[name], one[name], err_msg=name)
  results = [json.loads((tmp_path / str(n) / "results.json").read_text()) for n in (1, 2)]
  assert [len(each["members"]) for each in results] == [3, 3]
  for metrics in zip(*(each["members"] for each in results), strict=True):
    assert metrics[0]["test"] == metrics[1]["test"]
  assert results[0]["mean"] == results[1]["mean"]


@pytest.mark.slow
def test_two_hosts_stop_together_at_a_signal_to_one(prepared, tmp_path):
  config = host_config(prepared, "sgd")
  config.train.batch_size = 6  # 334 steps: two segments.
  train_on_two_hosts(config, tmp_path / "whole", 1)
  hosts = start_two_hosts(config, tmp_path / "cut", 1)
  folder = tmp_path / "cut" / "checkpoints"
  deadline = time.monotonic() + 120
  while time.monotonic() < deadline and not (tmp_path / "cut" / "metrics.jsonl").exists():
    time.sleep(0.01)
  hosts[1].send_signal(signal.SIGTERM)
  for host in hosts:
    host.communicate(timeout=60)
  assert [host.returncode for host in hosts] == [75, 75]
  assert [path.name for path in (folder / "unfinished").iterdir()] == ["0.167"]
  train_on_two_hosts(config, tmp_path / "cut", 1)
  whole, cut = (checkpoint.read_arrays(str(tmp_path / name)) for name in ("whole", "cut"))
  assert whole.keys() == cut.keys()
  for name in whole:
    np.testing.assert_array_equal(whole[name], cut[name], err_msg=name)


@pytest.mark.slow
def test_a_lost_host_is_named_by_the_other_one_and_the_job_starts_again(prepared, tmp_path):
  config = host_config(prepared, "sgd")
  config.train.epochs, config.train.batch_size = 4, 8
  train_on_two_hosts(config, tmp_path / "whole", 1)
  for victim, number in ((0, signal.SIGKILL), (1, signal.SIGSTOP)):
    workdir = tmp_path / f"without_{victim}"
    hosts = start_two_hosts(config, workdir, 1)
    log = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and log.read_text()):
      time.sleep(0.01)
    hosts[victim].send_signal(number)
    start = time.monotonic()
    _, errors = hosts[1 - victim].communicate(timeout=60)
    assert time.monotonic() - start < 15
    hosts[victim].kill()
    hosts[victim].communicate()
    assert hosts[1 - victim].returncode == heartbeat.LOST
    lines = [line for line in errors.splitlines() if not line.startswith(SUMMARY)]
    assert len(lines) == 1, errors
    assert lines[0].startswith(f"error: process {victim} (")
    assert f"pid {hosts[victim].pid})" in lines[0]
    train_on_two_hosts(config, workdir, 1)
    whole, cut = (checkpoint.read_arrays(str(path)) for path in (tmp_path / "whole", workdir))
    for name in whole:
      np.testing.assert_array_equal(whole[name], cut[name], err_msg=name)


@pytest.mark.parametrize("text", ["soon", "0", "4.5"])
def test_a_heartbeat_that_is_no_number_of_seconds_is_refused(monkeypatch, text):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
  monkeypatch.setenv("JAX_PROCESS_ID", "0")
  monkeypatch.setenv("MMOE_HEARTBEAT_SECONDS", text)
  with pytest.raises(UserError, match="MMOE_HEARTBEAT_SECONDS"):
    parallel.initialize()
