"""Runs on damaged or exchanged files: noticed, repaired where an older checkpoint is whole."""

import json
import os
import shutil

import numpy as np
import pytest

from configs import smoke
from mmoe_jax import data
from mmoe_jax.errors import UserError
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.training import loop
from mmoe_jax.workdir import checkpoint, contract

pytestmark = pytest.mark.usefixtures("_shared_programs")


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
  """Returns the config and work directory of a finished run."""
  config = smoke.get_config()
  config.data_dir, config.train.devices, config.train.batch_size = prepared, 1, 128
  workdir = str(tmp_path_factory.mktemp("run") / "w")
  loop.train_and_evaluate(config, workdir)
  return config, workdir


@pytest.fixture
def finished(trained, tmp_path):
  """Returns the config and work directory of copies of the run and its data."""
  config = trained[0].copy_and_resolve_references()
  config.data_dir = shutil.copytree(config.data_dir, str(tmp_path / "data"))
  return config, shutil.copytree(trained[1], str(tmp_path / "w"))


def damage(folder):
  """Overwrites the middle of the largest file below a folder."""
  paths = [os.path.join(parent, n) for parent, _, names in os.walk(folder) for n in names]
  path = max(paths, key=os.path.getsize)
  with open(path, "r+b") as file:
    file.seek(os.path.getsize(path) // 2)
    file.write(b"\xff" * 16)


def test_a_damaged_checkpoint_is_trained_again_from_the_one_before(finished, capfd):
  config, workdir = finished
  before = checkpoint.read_arrays(workdir)
  results = contract.read_results(workdir)
  last = os.path.join(workdir, "checkpoints", "3")
  damage(os.path.join(last, "state"))
  again = loop.train_and_evaluate(config, workdir)
  assert "checkpoints/3: damaged" in capfd.readouterr().err
  assert {s: again[s] for s in data.SPLITS} == {s: results[s] for s in data.SPLITS}
  after = checkpoint.read_arrays(workdir)
  for name, array in before.items():
    np.testing.assert_array_equal(array, after[name])
  Predictor(workdir)
  assert "warning" not in capfd.readouterr().err


def test_a_finished_run_writes_a_damaged_best_again(finished, capfd):
  config, workdir = finished
  damage(os.path.join(workdir, "checkpoints", "3", "best"))
  loop.train_and_evaluate(config, workdir)
  assert "'best' is damaged" in capfd.readouterr().err
  Predictor(workdir)
  assert "warning" not in capfd.readouterr().err


def test_a_run_resumes_on_the_same_data_only(finished):
  config, workdir = finished
  path = os.path.join(config.data_dir, "train", "labels.npy")
  labels = np.load(path)
  np.save(path, labels[::-1])
  with pytest.raises(UserError, match="changed or damaged since the data was prepared"):
    loop.train_and_evaluate(config, workdir)
  # As if these labels had been prepared.
  data.write_manifest(config.data_dir)
  with pytest.raises(UserError, match="holds a run on differently prepared data"):
    loop.train_and_evaluate(config, workdir)
  np.save(path, labels)
  data.write_manifest(config.data_dir)
  loop.train_and_evaluate(config, workdir)


@pytest.mark.parametrize("name", ["config.json", "schema.json"])
def test_a_run_does_not_resume_without_its_settings(finished, name):
  config, workdir = finished
  os.remove(os.path.join(workdir, name))
  with pytest.raises(UserError, match=name):
    loop.train_and_evaluate(config, workdir)
  assert not os.path.exists(os.path.join(workdir, name))


@pytest.mark.parametrize("change", ["edited", "removed"])
def test_a_changed_log_is_noticed(finished, capfd, change):
  config, workdir = finished
  path = os.path.join(workdir, "metrics.jsonl")
  with open(path, encoding="utf-8") as file:
    records = [json.loads(line) for line in file]
  records[1]["loss"] += 1
  os.remove(path)
  if change == "edited":
    with open(path, "w", encoding="utf-8") as file:
      file.writelines(json.dumps(record) + "\n" for record in records)
  loop.train_and_evaluate(config, workdir)
  assert "metrics.jsonl: changed or damaged" in capfd.readouterr().err


def test_a_work_directory_of_before_manifests_opens_with_a_line(finished, capfd):
  config, workdir = finished
  for epoch in ("2", "3"):
    shutil.rmtree(os.path.join(workdir, "checkpoints", epoch, "manifest"))
  path = os.path.join(workdir, "results.json")
  with open(path, encoding="utf-8") as file:
    content = json.load(file)
  del content["sha256"]
  with open(path, "w", encoding="utf-8") as file:
    json.dump(content, file)
  Predictor(workdir)
  assert contract.read_results(workdir) == content
  loop.train_and_evaluate(config, workdir)
  assert "cannot be verified" in capfd.readouterr().err
