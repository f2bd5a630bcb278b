"""MLflow and Weights & Biases in their offline modes, and W&B's server as a fake module."""

import glob
import os
import struct
import sys
import time
import types

import pytest

from mmoe_jax.files import write_json
from mmoe_jax.workdir import contract
from mmoe_jax.workdir.tracking import identities
from tests.workdir.tracking.test_trackers import Recorder, write

# Warnings inside of these packages are not ours.
pytestmark = pytest.mark.filterwarnings("default")

RESULTS = {"epochs": 3, "test": {"a/auc": 0.75}}


def records(*epochs):
  return [{"epoch": epoch, "loss": 1 / epoch, "gates/a~b": 0.5} for epoch in epochs]


@pytest.fixture
def workdir(tmp_path):
  """Returns the work directory of a run with settings."""
  write_json(
    str(tmp_path / "w" / contract.CONFIG), {"seed": 7, "model": {"name": "mmoe", "x": "y" * 9000}}
  )
  return tmp_path / "w"


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
  """Returns MLflow with its store in a temporary database."""
  module = pytest.importorskip("mlflow", reason="an optional requirement")
  uri = f"sqlite:///{tmp_path}/mlflow.db"
  monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
  for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
    monkeypatch.setenv(name, "0")
  yield module
  module.set_tracking_uri(None)


def histories(client, run_id, *names):
  return [[(m.step, m.value) for m in client.get_metric_history(run_id, name)] for name in names]


def test_mlflow_continues_the_run_and_has_each_epoch_once(workdir, mlflow, capfd):
  # Epochs 1 to 3 are logged, but only 1 is in a checkpoint.
  write(workdir, "jsonl,mlflow", records(1, 2, 3))
  client, run_id = mlflow.MlflowClient(), identities.read(str(workdir), "mlflow")["run_id"]
  run = client.get_run(run_id)
  assert (run.info.status, run.info.run_name) == ("FAILED", "w")
  assert (run.data.params["seed"], run.data.params["model.name"]) == ("7", "mmoe")
  write(workdir, "jsonl,mlflow", records(2, 3, 4), epoch=1, results=RESULTS)
  run = client.get_run(run_id)
  assert run.info.status == "FINISHED"
  loss, gates = histories(client, run_id, "loss", "gates/a_b")
  assert loss == [(e, 1 / e) for e in (1, 2, 3, 4)]
  assert len(gates) == 4
  assert run.data.metrics["results/test/a/auc"] == 0.75
  assert identities.read(str(workdir), "mlflow")["run_id"] == run_id
  assert len(client.search_runs([run.info.experiment_id])) == 1
  assert "failed" not in capfd.readouterr().err


def test_mlflow_receives_the_epochs_that_it_misses(workdir, mlflow):
  write(workdir, "jsonl", records(1, 2))
  write(workdir, "jsonl,mlflow", records(3), epoch=2)
  run_id = identities.read(str(workdir), "mlflow")["run_id"]
  assert histories(mlflow.MlflowClient(), run_id, "loss") == [[(e, 1 / e) for e in (1, 2, 3)]]


def test_an_mlflow_server_that_is_away_is_one_warning(workdir, mlflow, monkeypatch, capfd):
  monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
  own = Recorder()
  write(workdir, "jsonl,mlflow", records(1, 2), own=[own])
  err = capfd.readouterr().err
  assert err.count("warning: tracker 'mlflow' failed (") == 1
  assert [name for name, _ in own.calls] == ["settings", "metrics", "metrics", "end"]


def read_log(path):
  """Yields the records of a log in LevelDB's format, which W&B's files have after seven bytes."""
  with open(path, "rb") as file:
    content = file.read()
  start, record, block = 7, b"", 32768
  while start + 7 <= len(content):
    if block - start % block < 7:  # The rest of a block that holds no header.
      start += block - start % block
      continue
    size, kind = struct.unpack_from("<HB", content, start + 4)
    record += content[start + 7 : start + 7 + size]
    start += 7 + size
    if kind in (1, 4):  # A whole record, or the last part of one.
      yield record
      record = b""


def read_wandb(path):
  """Returns the history and the summary in a file that W&B has finished."""
  from wandb.proto import wandb_internal_pb2

  history, summary = [], {}
  for data in read_log(path):
    record = wandb_internal_pb2.Record.FromString(data)
    if record.HasField("history"):
      items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
      history.append((int(items["epoch"]), float(items["loss"])))
    for item in record.summary.update:
      summary[item.key or "/".join(item.nested_key)] = item.value_json
    if record.HasField("exit"):
      return history, summary
  return None


def wait_for_wandb(workdir):
  """Returns the content of each process's file, which W&B's service writes a little later."""
  paths = sorted(glob.glob(f"{workdir}/wandb/offline-run-*/run-*.wandb"))
  deadline = time.monotonic() + 30
  while None in (found := [read_wandb(path) for path in paths]):
    assert time.monotonic() < deadline
    time.sleep(0.1)
  return [os.path.basename(path) for path in paths], found


def test_wandb_continues_the_run_and_has_each_epoch_once(workdir, monkeypatch, capfd):
  pytest.importorskip("wandb", reason="an optional requirement")
  monkeypatch.setenv("WANDB_MODE", "offline")
  write(workdir, "jsonl,wandb", records(1, 2))
  write(workdir, "jsonl,wandb", records(2, 3), epoch=1, results=RESULTS)
  names, [(first, _), (second, summary)] = wait_for_wandb(workdir)
  assert names == [f"run-{identities.read(str(workdir), 'wandb')['id']}.wandb"] * 2
  assert first == [(1, 1.0), (2, 0.5)]
  # The newest folder is complete: W&B may not have saved all of the earlier one before a kill.
  assert second == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
  assert summary["results/test/a/auc"] == "0.75"
  assert "failed" not in capfd.readouterr().err


class FakeRun:
  """W&B run of a server that has two epochs."""

  id, offline, step, url = "abc", False, 3, "https://server/abc"

  def __init__(self):
    self.epochs, self.summary, self.exit_code = [], {}, None

  def log(self, values, step):
    self.epochs.append(step)

  def finish(self, exit_code):
    self.exit_code = exit_code


def test_wandb_with_a_server_sends_what_it_misses(workdir, monkeypatch):
  run, settings = FakeRun(), {}

  def init(**given):
    settings.update(given)
    return run

  fake = types.SimpleNamespace(init=init, Settings=dict)
  monkeypatch.setitem(sys.modules, "wandb", fake)
  identities.save(str(workdir), "wandb", {"id": "abc"})
  write(workdir, "jsonl", records(1, 2, 3))
  write(workdir, "jsonl,wandb", records(4), epoch=3, results=RESULTS)
  assert (settings["id"], settings["resume"], settings["config"]["seed"]) == ("abc", "allow", 7)
  assert run.epochs == [3, 4]
  assert run.summary == {"results/epochs": 3, "results/test/a/auc": 0.75}
  assert run.exit_code == 0
