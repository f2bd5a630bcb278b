"""Training loop with row-wise updates: resuming, best tables, prediction, sharding, refusals."""

import json
import os

import jax
import numpy as np
import pytest

from configs import census
from mmoe_jax import data, models, parallel
from mmoe_jax.errors import UserError
from mmoe_jax.evaluation import evaluate
from mmoe_jax.files import write_json
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.training import loop, population, table_updates
from mmoe_jax.training.run import compile_run
from mmoe_jax.workdir import checkpoint, contract

pytestmark = pytest.mark.usefixtures("_shared_programs")
OTHERS = [m for m in models.MODELS if m not in ("mmoe", "single_task", "l2_constrained", "esmm")]


@pytest.fixture
def by_rows(config):
  """Returns a config with row-wise updates of its small tables."""
  config.optimizer.embedding.updates = "rows"
  config.optimizer.embedding.name = "rowwise_adagrad"
  config.optimizer.embedding.learning_rate = 0.05
  return config


def train_and_stop(config, workdir, stop, monkeypatch):
  """Trains until a kill before the checkpoint after epoch `stop`."""
  save = checkpoint.Checkpoints.save

  def dying(self, epoch, *arguments):
    if epoch > stop:
      raise KeyboardInterrupt
    save(self, epoch, *arguments)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, "save", dying)
    with pytest.raises(KeyboardInterrupt):
      loop.train_and_evaluate(config, workdir)


def last_arrays(workdir):
  """Returns the arrays of the last checkpoint, tables included."""
  return checkpoint.read_arrays(workdir) | checkpoint.read_arrays(workdir, "tables")


@pytest.mark.parametrize(
  "shards", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["one device", "two devices"]
)
def test_a_resumed_run_is_bitwise_identical(by_rows, tmp_path, monkeypatch, shards):
  by_rows.train.average_decay, by_rows.model.expert_dropout = 0.9, 0.2
  by_rows.checkpoint.every_epochs = 1
  by_rows.train.devices = by_rows.model.embedding_shards = shards
  whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
  results = loop.train_and_evaluate(by_rows, whole)
  for stop in (1, 2):
    train_and_stop(by_rows, cut, stop, monkeypatch)
  assert loop.train_and_evaluate(by_rows, cut)["test"] == results["test"]
  a, b = last_arrays(whole), last_arrays(cut)
  assert any("table_" in name for name in a)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.slow
def test_a_run_moves_to_another_number_of_devices(by_rows, tmp_path, monkeypatch):
  by_rows.checkpoint.every_epochs = 1
  by_rows.train.devices = by_rows.model.embedding_shards = 1
  one = loop.train_and_evaluate(by_rows, str(tmp_path / "one"))["test"]
  by_rows.train.devices = by_rows.model.embedding_shards = 2
  train_and_stop(by_rows, str(tmp_path / "moved"), 1, monkeypatch)
  by_rows.train.devices = by_rows.model.embedding_shards = 4
  moved = loop.train_and_evaluate(by_rows, str(tmp_path / "moved"))["test"]
  a, b = (last_arrays(str(tmp_path / name)) for name in ("one", "moved"))
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=5e-3, atol=5e-4, err_msg=name)
  assert one["income_50k/auc"] == pytest.approx(moved["income_50k/auc"], abs=2e-3)


def test_the_best_tables_are_those_of_the_best_epoch(by_rows, tmp_path):
  by_rows.train.epochs, by_rows.select.patience = 30, 3
  by_rows.optimizer.embedding.learning_rate = 1.0  # Overfits soon.
  by_rows.optimizer.dense.learning_rate = 0.05
  by_rows.checkpoint.every_epochs = 4  # The best epoch is saved whenever it is.
  workdir = str(tmp_path / "w")
  results = loop.train_and_evaluate(by_rows, workdir)
  best, last = results["best_epoch"], results["epochs"]
  assert best < last
  saved = contract.saved_epochs(workdir)
  assert {best, last} <= set(saved)
  assert len(saved) <= 3
  lines = [json.loads(x) for x in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
  measured = lines[best - 1]["validation/income_50k/auc"]
  assert results["validation"]["income_50k/auc"] == pytest.approx(measured, abs=1e-6)
  # Prediction, the same run again and a warm start find the same variables.
  schema, splits = data.load(by_rows.data_dir, **by_rows.data)
  predictor = Predictor(workdir)
  evaluated = evaluate.make_evaluate(predictor.model, schema.tasks)
  batch = evaluate.make_eval_batch(splits["test"])
  found = jax.jit(evaluated)(predictor.variables, batch)
  expected = results["test"]["income_50k/auc"]
  assert float(found["income_50k/auc"]) == pytest.approx(expected, abs=1e-6)
  assert loop.train_and_evaluate(by_rows, workdir)["test"] == results["test"]
  for updates, name in (("rows", "adam"), ("dense", "adam")):
    by_rows.train.warm_start, by_rows.train.epochs = workdir, 0
    by_rows.optimizer.embedding.updates = updates
    by_rows.optimizer.embedding.name = name
    warm = loop.train_and_evaluate(by_rows, str(tmp_path / updates))
    assert warm["test"]["income_50k/auc"] == pytest.approx(expected, abs=1e-6)


def test_a_warm_start_by_rows_from_a_dense_run(config, tmp_path):
  first = loop.train_and_evaluate(config, str(tmp_path / "a"))
  config.train.warm_start, config.train.epochs = str(tmp_path / "a"), 1
  ftrl = {"name": "ftrl", "learning_rate": 1e-6, "beta": 1.0, "l1": 0.0, "l2": 0.0}
  config.optimizer.dense.learning_rate = 1e-9
  for updates in ("rows", "dense"):
    config.optimizer.embedding = type(config)({**ftrl, "updates": updates})
    second = loop.train_and_evaluate(config, str(tmp_path / updates))
    # FTRL computes weights from its state, which must start from the warm ones.
    found, expected = second["test"]["income_50k/auc"], first["test"]["income_50k/auc"]
    assert found == pytest.approx(expected, abs=1e-4)


def test_evaluation_of_sharded_tables_does_not_gather_them(by_rows):
  by_rows.train.devices = by_rows.model.embedding_shards = 4
  schema, splits = data.load(by_rows.data_dir, **by_rows.data)
  run = compile_run(by_rows, schema, splits["train"])
  batch = run.place(evaluate.make_eval_batch(splits["validation"]))
  text = parallel.jit(run.learner.evaluate).lower(run.state.variables, batch).compile().as_text()
  table = run.state.params["embedding"]["table_4"]
  assert len(table) == 4 * table.addressable_shards[0].data.shape[0]
  assert f"f32[{len(table)},4]" not in text


def test_large_tables_are_updated_by_rows_and_it_is_said(config, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(table_updates, "LARGE", 0)
  assert config.optimizer.embedding.updates == "auto"
  config.train.epochs = 1
  loop.train_and_evaluate(config, str(tmp_path / "w"))
  printed = capsys.readouterr().err
  assert "a step updates only the rows it reads, by lazy Adam" in printed
  with open(tmp_path / "w" / contract.CONFIG, encoding="utf-8") as file:
    assert json.load(file)["optimizer"]["embedding"]["updates"] == "rows"
  # A setting that needs all rows leaves the choice at dense, with a warning.
  config.optimizer.embedding.weight_decay = 0.01
  loop.train_and_evaluate(config, str(tmp_path / "v"))
  assert "warning: every step updates all rows of large" in capsys.readouterr().err


def test_an_older_run_resumes_with_dense_updates(config, tmp_path):
  workdir = str(tmp_path / "w")
  config.optimizer.embedding.updates = "dense"
  results = loop.train_and_evaluate(config, workdir)
  path = os.path.join(workdir, contract.CONFIG)
  with open(path, encoding="utf-8") as file:
    settings = json.load(file)
  now = json.loads(json.dumps(settings))
  del settings["optimizer"]["embedding"]["updates"], settings["model"]["embedding_shards"]
  os.remove(path)
  write_json(path, settings)
  contract.require_same(workdir, now)  # As an older version wrote it.
  write_json(path, now)
  config.optimizer.embedding.updates = "auto"
  assert loop.train_and_evaluate(config, workdir)["test"] == results["test"]


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"optimizer.embedding.updates": "row"}, r"updates is 'row', .*did you mean 'rows'"),
    ({"optimizer.embedding.weight_decay": 0.1}, r"weight_decay = 0\.1: changes every row"),
    ({"model.embedding_shards": 3}, r"embedding_shards = 3: must be 0, 1 or 1"),
    ({"model.embedding_shards": -1}, r"embedding_shards = -1: must be a whole number"),
    ({"optimizer.dense.name": "rowwise_adagrad"}, r"dense\.name is 'rowwise_adagrad'"),
  ],
)
def test_impossible_settings_are_refused(by_rows, settings, message):
  schema, splits = data.load(by_rows.data_dir, **by_rows.data)
  for key, value in settings.items():
    with by_rows.unlocked():
      by_rows.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=message):
    compile_run(by_rows, schema, splits["train"])


@pytest.mark.parametrize("name", ["single_task", "l2_constrained"])
def test_models_without_shared_tables_are_refused(by_rows, name):
  by_rows.model = census.get_config(name).model
  schema, splits = data.load(by_rows.data_dir, **by_rows.data)
  with pytest.raises(UserError, match=f"config.model.name = '{name}'"):
    compile_run(by_rows, schema, splits["train"])


def test_populations_refuse_row_wise_updates(by_rows, tmp_path):
  with pytest.raises(UserError, match="a population keeps the best tables of each member"):
    population.train_population(by_rows, [{"seed": 0}], str(tmp_path / "w"))


@pytest.mark.parametrize(
  "name",
  [
    *("shared_bottom", "ple"),
    *(pytest.param(m, marks=pytest.mark.slow) for m in OTHERS if m not in ("shared_bottom", "ple")),
  ],
)
def test_every_other_model_trains_by_rows(by_rows, name):
  by_rows.model = census.get_config(name).model
  schema, splits = data.load(by_rows.data_dir, **by_rows.data)
  run = compile_run(by_rows, schema, splits["train"])
  before = np.asarray(run.state.params["embedding"]["table_4"])
  state, losses = run.train_epoch(run.state, 1)
  assert np.isfinite(losses.losses).all()
  assert np.abs(np.asarray(state.params["embedding"]["table_4"]) - before).max() > 1e-3


def test_bfloat16_tables_are_trained_saved_and_scored(by_rows, tmp_path, monkeypatch):
  by_rows.model.embedding_dtype = "bfloat16"
  by_rows.checkpoint.every_epochs = 1
  whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
  results = loop.train_and_evaluate(by_rows, whole)
  train_and_stop(by_rows, cut, 1, monkeypatch)
  assert loop.train_and_evaluate(by_rows, cut)["test"] == results["test"]
  tables = checkpoint.read_arrays(whole, "tables")
  assert {str(table.dtype) for table in tables.values()} == {"bfloat16"}
  variables = Predictor(whole).variables["params"]["embedding"]
  assert {str(table.dtype) for table in variables.values()} == {"bfloat16"}
  by_rows.optimizer.embedding.updates = "dense"
  by_rows.optimizer.embedding.name = "adagrad"
  with pytest.raises(UserError, match=r"embedding_dtype = 'bfloat16': only with updated rows"):
    loop.train_and_evaluate(by_rows, str(tmp_path / "other"))
