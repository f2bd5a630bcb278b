"""A run: what it must be, however it is cut, resumed or spread over devices."""

import fcntl
import json
import os

import jax
import numpy as np
import pytest

from configs import census
from mmoe_jax import checkpoint, data, stream, train
from mmoe_jax.errors import UserError

KEY = jax.random.key(0)
TASKS = ("income_50k", "marital_stat")


def leaves_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def restored(workdir, config):
  """The raw arrays of the last checkpoint, by whatever names they have there."""
  schema, splits = data.load(config.data_dir, **config.data, budget=stream.budget(config))
  run = train._create_run(config, schema, splits["train"])
  with checkpoint.Checkpoints(str(workdir), read_only=True) as saver:
    return saver.restore_state(run.state)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("count", [2, 8])
def test_n_devices_equal_one(prepared, config, count, norm):
  config.model.expert_norm = norm
  config.train.batch_size = 512  # 2,003 rows: the last batch is mostly padding.
  schema, splits = data.load(config.data_dir, **config.data)
  # With SGD: Adam blows a rounding error in a tiny gradient up to a whole step.
  for group in ("dense", "embedding"):
    config.optimizer[group].name = "sgd"
    config.optimizer[group].learning_rate = 0.1
  ends = []
  for devices in (1, count):
    config.train.devices = devices
    run = train._create_run(config, schema, splits["train"])
    state = run.state
    for epoch in (1, 2):
      state, losses = run.train_epoch(state, epoch)
    assert losses.shape == (4, 2)
    ends.append((state.params, state.batch_stats, losses))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-5), *ends
  )


def test_results_hold_the_contract(config, tmp_path):
  results = train.train_and_evaluate(config, str(tmp_path / "w"))
  assert json.loads((tmp_path / "w" / "results.json").read_text()) == results
  views = ("", "_16_and_over", "_weighted", "_weighted_16_and_over")
  names = {
    f"{task}/{metric}{view}"
    for task in TASKS
    for metric in ("auc", "log_loss", "pcoc")
    for view in views
  }
  for split in data.SPLITS:
    assert set(results[split]) == names
    assert all(np.isfinite(v) for v in results[split].values())
  assert results["epochs"] == 3
  assert 1 <= results["best_epoch"] <= 3
  assert results["rows_per_second"] > 0
  assert results["wall_seconds"] > 0
  assert results["parameters"] > 0
  assert results["notes"] == {}
  held = set(os.listdir(tmp_path / "w"))
  assert {"config.json", "schema.json", "metrics.jsonl", "checkpoints", "results.json"} <= held
  assert any(name.startswith("events.out.tfevents") for name in held)
  lines = [json.loads(x) for x in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
  assert [x["epoch"] for x in lines] == [1, 2, 3]
  # It learns: the made labels depend on the features.
  assert lines[-1]["loss"] < lines[0]["loss"]
  assert results["test"]["income_50k/auc"] > 0.7


def test_the_same_seed_gives_the_same_run_and_another_seed_another(config, tmp_path):
  runs = []
  for i, seed in enumerate((7, 7, 8)):
    config.seed = seed
    results = train.train_and_evaluate(config, str(tmp_path / str(i)))
    runs.append(results["test"])
  assert runs[0] == runs[1]
  assert runs[0] != runs[2]


@pytest.mark.parametrize("stops", [(1,), (1, 2), (3,)])
def test_resumed_equals_uninterrupted_bit_for_bit(config, tmp_path, stops, monkeypatch):
  config.train.epochs = 4
  config.model.expert_dropout = 0.2
  config.model.tower_norm = "batch"
  config.train.average_decay = 0.99
  config.optimizer.dense.schedule = "cosine"
  train.train_and_evaluate(config, str(tmp_path / "whole"))
  save = checkpoint.Checkpoints.save
  for stop in stops:

    def dying(self, epoch, state, best, stop=stop):
      if epoch > stop:
        raise KeyboardInterrupt
      save(self, epoch, state, best)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", dying)
    with pytest.raises(KeyboardInterrupt):
      train.train_and_evaluate(config, str(tmp_path / "cut"))
  monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
  train.train_and_evaluate(config, str(tmp_path / "cut"))
  whole, cut = (restored(tmp_path / name, config) for name in ("whole", "cut"))
  leaves_equal(whole, cut)
  metrics = [
    [json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    for name in ("whole", "cut")
  ]
  for a, b in zip(*metrics, strict=True):
    assert {k: a[k] for k in a if "second" not in k} == {k: b[k] for k in b if "second" not in k}


def test_a_finished_run_started_again_only_evaluates(config, tmp_path):
  first = train.train_and_evaluate(config, str(tmp_path / "w"))
  again = train.train_and_evaluate(config, str(tmp_path / "w"))
  for split in data.SPLITS:
    assert first[split] == again[split]
  assert len((tmp_path / "w" / "metrics.jsonl").read_text().splitlines()) == 3


def test_patience_stops_and_the_best_weights_are_what_is_kept(config, tmp_path):
  config.train.epochs = 30
  config.select.patience = 2
  for group in ("dense", "embedding"):
    config.optimizer[group].learning_rate = 0.05  # Overfits 2,003 rows at once.
  results = train.train_and_evaluate(config, str(tmp_path / "w"))
  assert results["epochs"] < 30
  assert results["epochs"] == results["best_epoch"] + 2
  lines = [json.loads(x) for x in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
  measured = [x["validation/income_50k/auc"] for x in lines]
  assert np.argmax(measured) + 1 == results["best_epoch"]
  assert results["validation"]["income_50k/auc"] == pytest.approx(max(measured), abs=1e-6)


def test_best_weights_are_kept_also_when_patience_never_fires(config, tmp_path):
  # torch-rechub restores them only on an early stop.
  config.train.epochs = 12
  config.select.patience = 0
  for group in ("dense", "embedding"):
    config.optimizer[group].learning_rate = 0.05
  results = train.train_and_evaluate(config, str(tmp_path / "w"))
  lines = [json.loads(x) for x in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
  measured = [x["validation/income_50k/auc"] for x in lines]
  assert results["best_epoch"] < 12
  assert results["validation"]["income_50k/auc"] == pytest.approx(max(measured), abs=1e-6)


@pytest.mark.parametrize(
  ("metric", "tasks"), [("auc", ()), ("log_loss", ()), ("log_loss", TASKS[1:])]
)
def test_selection_follows_the_named_measure(config, tmp_path, metric, tasks):
  config.select.metric, config.select.tasks = metric, tasks
  config.train.epochs = 6
  config.select.patience = 0
  results = train.train_and_evaluate(config, str(tmp_path / "w"))
  lines = [json.loads(x) for x in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
  names = [f"validation/{t}/{metric}" for t in tasks or TASKS]
  measured = [np.mean([x[name] for name in names]) for x in lines]
  best = np.argmin(measured) if metric == "log_loss" else np.argmax(measured)
  assert results["best_epoch"] == best + 1


def test_test_rows_decide_nothing(config, prepared, tmp_path):
  first = train.train_and_evaluate(config, str(tmp_path / "a"))
  load = data.load

  def flipped(*args, **kwargs):
    schema, splits = load(*args, **kwargs)
    splits["test"].labels[:] = 1 - splits["test"].labels
    return schema, splits

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(data, "load", flipped)
    second = train.train_and_evaluate(config, str(tmp_path / "b"))
  for split in ("train", "validation"):
    assert first[split] == second[split]
  assert first["best_epoch"] == second["best_epoch"]
  assert second["test"]["income_50k/auc"] == pytest.approx(
    1 - first["test"]["income_50k/auc"], abs=1e-6
  )


def test_a_loss_that_is_not_finite_stops_with_epoch_and_task(config, tmp_path):
  for group in ("dense", "embedding"):
    config.optimizer[group].name = "sgd"
    config.optimizer[group].learning_rate = 1e30
  with pytest.raises(UserError, match=r"task '\w+' is not finite in epoch 1, step 2 of 16"):
    train.train_and_evaluate(config, str(tmp_path / "w"))
  assert os.listdir(tmp_path / "w" / "checkpoints") == []


def test_the_first_loss_that_is_not_finite_is_the_one_that_is_named():
  losses = np.ones((5, 2))
  losses[2, 1] = losses[3, 0] = np.nan
  with pytest.raises(UserError, match="the loss of task 'b' is not finite in epoch 7, step 3 of 5"):
    train.require_finite_losses(losses, 7, "ab")


def test_an_update_that_breaks_after_the_last_loss_is_not_kept(config, tmp_path):
  config.train.batch_size = 2048  # One step an epoch: its loss comes before its update.
  config.train.epochs = 1
  for group in ("dense", "embedding"):
    config.optimizer[group].name = "sgd"
    config.optimizer[group].learning_rate = 1e38
  with pytest.raises(UserError, match=r"the output for task '\w+' is not finite after epoch 1"):
    train.train_and_evaluate(config, str(tmp_path / "w"))
  assert os.listdir(tmp_path / "w" / "checkpoints") == []


def test_one_task_and_three_tasks_train(config, tmp_path):
  for tasks in (("education",), ("education", "marital_stat", "income_50k")):
    config.data.tasks = tasks
    config.select.tasks = ()
    results = train.train_and_evaluate(config, str(tmp_path / str(len(tasks))))
    assert results["test"][f"{tasks[0]}/auc"] > 0.4


def test_a_one_class_split_gives_null_with_a_reason(config, tmp_path, monkeypatch):
  load = data.load

  def one_class(*args, **kwargs):
    schema, splits = load(*args, **kwargs)
    splits["test"].labels[:, 0] = 0
    return schema, splits

  monkeypatch.setattr(data, "load", one_class)
  results = train.train_and_evaluate(config, str(tmp_path / "w"))
  assert results["test"]["income_50k/auc"] is None
  assert results["notes"]["test/income_50k/auc"] == "no positive row"


def test_warm_start_takes_the_best_weights_of_another_run(config, tmp_path):
  first = train.train_and_evaluate(config, str(tmp_path / "a"))
  config.train.warm_start = str(tmp_path / "a")
  config.train.epochs = 0
  second = train.train_and_evaluate(config, str(tmp_path / "b"))
  assert first["test"] == second["test"]
  config.train.epochs = 1
  third = train.train_and_evaluate(config, str(tmp_path / "c"))
  lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
  assert (
    json.loads((tmp_path / "c" / "metrics.jsonl").read_text())["loss"]
    < json.loads(lines[0])["loss"]
  )
  assert third["epochs"] == 1


def test_warm_start_refuses_a_run_of_other_tasks(config, tmp_path):
  config.train.epochs = 0
  train.train_and_evaluate(config, str(tmp_path / "a"))
  config.data.tasks = ("marital_stat", "income_50k")
  config.train.warm_start = str(tmp_path / "a")
  with pytest.raises(UserError, match="has other tasks"):
    train.train_and_evaluate(config, str(tmp_path / "b"))


def test_a_warm_started_run_goes_on_without_the_run_it_came_from(config, tmp_path):
  train.train_and_evaluate(config, str(tmp_path / "a"))
  config.train.warm_start = str(tmp_path / "a")
  first = train.train_and_evaluate(config, str(tmp_path / "b"))
  (tmp_path / "a").rename(tmp_path / "gone")
  assert train.train_and_evaluate(config, str(tmp_path / "b"))["test"] == first["test"]


def test_a_work_directory_takes_one_process_and_one_number_of_devices(config, tmp_path):
  config.train.epochs = 1
  train.train_and_evaluate(config, str(tmp_path / "w"))
  config.train.devices = 2
  with pytest.raises(UserError, match=r"config\.train\.devices=1, not 2"):
    train.train_and_evaluate(config, str(tmp_path / "w"))
  config.train.devices = 1
  with open(tmp_path / "w" / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is training there"):
      train.train_and_evaluate(config, str(tmp_path / "w"))


def test_sample_weights_change_the_loss_that_is_minimised(config, tmp_path):
  plain = train.train_and_evaluate(config, str(tmp_path / "a"))
  config.loss.sample_weight = True
  weighted = train.train_and_evaluate(config, str(tmp_path / "b"))
  assert plain["test"] != weighted["test"]


def test_a_work_directory_of_another_run_is_refused_and_unharmed(config, tmp_path):
  train.train_and_evaluate(config, str(tmp_path / "w"))
  before = {p: p.read_bytes() for p in (tmp_path / "w").glob("*.json*")}
  config.model.experts = 5
  with pytest.raises(UserError, match=r"holds a run with config\.model\.experts=4, not 5"):
    train.train_and_evaluate(config, str(tmp_path / "w"))
  assert before == {p: p.read_bytes() for p in (tmp_path / "w").glob("*.json*")}


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("train.batch_size", 0, "batch_size is 0"),
    ("train.epochs", -1, "epochs is -1"),
    ("train.devices", 99, "devices is 99; there are 8"),
    ("train.average_decay", 1.0, r"must be in \[0, 1\)"),
    ("train.warm_start", "nowhere", r"nowhere: no schema\.json here"),
    ("checkpoint.every_epochs", 0, "every_epochs is 0"),
    ("select.metric", "auk", "did you mean 'auc'"),
    ("select.tasks", ("income",), "did you mean 'income_50k'"),
    ("select.patience", -1, "patience is -1"),
    ("loss.task_weights", (1.0,), "has 1 numbers for 2 tasks"),
    ("loss.task_weights", (0.0, 0.0), "not all 0"),
    ("loss.task_weights", ("a", "b"), "weights are numbers"),
    ("model.expert_hidden", ("a",), "a whole number of units"),
    ("optimizer.dense.learning_rate", float("nan"), "must be a number of at least 0"),
    ("data.tasks", ("income_50k,education",), "write several as"),
    ("data_dir", "nowhere", "nowhere: no prepared data here"),
  ],
)
def test_impossible_settings_are_named_and_write_nothing(config, tmp_path, key, value, message):
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=message):
    train.train_and_evaluate(config, str(tmp_path / "w"))
  assert not (tmp_path / "w").exists()


def test_devices_must_divide_the_batch(config, tmp_path):
  config.train.devices, config.train.batch_size = 8, 100
  with pytest.raises(UserError, match="batch_size is 100, which 8 devices do not divide"):
    train.train_and_evaluate(config, str(tmp_path / "w"))


def test_esmm_refuses_tasks_of_which_one_does_not_imply_the_one_before(prepared, tmp_path):
  config = census.get_config("esmm,tasks=income_50k+marital_stat")
  config.data_dir, config.train.epochs, config.train.devices = prepared, 1, 1
  with pytest.raises(UserError, match="train rows have 'marital_stat' without 'income_50k'"):
    train.train_and_evaluate(config, str(tmp_path / "w"))
  config.data.tasks = ("education", "bachelors")
  results = train.train_and_evaluate(config, str(tmp_path / "w"))
  assert results["test"]["bachelors/auc"] > 0


def test_gates_are_logged_and_warned_of(config, tmp_path, capsys):
  results = train.train_and_evaluate(config, str(tmp_path / "w"))
  lines = [json.loads(x) for x in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
  best = lines[results["best_epoch"] - 1]
  assert results["gates"] == {k: v for k, v in best.items() if k.startswith("gates/")}
  assert 1 <= results["gates"]["gates/income_50k/effective_experts"] <= 4
  config.model.experts = 2
  config.model.exclusivity = 1.0  # An expert a task: each gate has nothing to choose.
  results = train.train_and_evaluate(config, str(tmp_path / "alone"))
  assert "the gate of 'income_50k' has collapsed" in results["warnings"][0]
  assert "warning: the gate of 'income_50k' has collapsed" in capsys.readouterr().err


@pytest.mark.parametrize("method", sorted(census.WEIGHTINGS))
def test_every_task_weighting_trains(config, tmp_path, method):
  config.loss.weighting = {"name": method, **census.WEIGHTINGS[method]}
  results = train.train_and_evaluate(config, str(tmp_path / "w"))
  assert results["test"]["income_50k/auc"] > 0.7
  lines = [json.loads(x) for x in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
  weights = [line["train/income_50k/weight"] for line in lines]
  assert (len(set(weights)) > 1) == (method in ("uncertainty", "gradnorm", "dwa"))
