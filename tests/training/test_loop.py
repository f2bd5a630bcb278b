"""Training loop: results, resuming, selection, devices, refusals."""

import fcntl
import json
import os

import jax
import numpy as np
import pytest

from configs import census
from mmoe_jax import data
from mmoe_jax.errors import UserError
from mmoe_jax.training import loop, records
from mmoe_jax.training.run import compile_run
from mmoe_jax.training.step import TaskLosses
from mmoe_jax.workdir import checkpoint, contract

pytestmark = pytest.mark.usefixtures("_shared_programs")

KEY = jax.random.key(0)
TASKS = ("income_50k", "marital_stat")


def leaves_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def restored(workdir, config):
  """Returns the state in the last checkpoint."""
  schema, splits = data.load(
    config.data_dir, **config.data, budget=data.memory_budget(config.train.memory_gib)
  )
  run = loop.compile_run(config, schema, splits["train"])
  with checkpoint.Checkpoints(str(workdir), read_only=True) as checkpoints:
    return checkpoints.restore_state(run.state, run.state.best.variables).item


@pytest.mark.parametrize(
  ("count", "norm"),
  [
    *((2, "none"), (8, "batch")),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in ((2, "batch"), (8, "none"))),
  ],
)
def test_n_devices_equal_one(prepared, config, count, norm):
  config.model.expert_norm = norm
  config.train.batch_size = 512  # 2,003 rows: the last batch is mostly padding.
  schema, splits = data.load(config.data_dir, **config.data)
  # With SGD, because Adam amplifies rounding errors of tiny gradients to full steps.
  for group in ("dense", "embedding"):
    config.optimizer[group].name = "sgd"
    config.optimizer[group].learning_rate = 0.1
  ends = []
  for devices in (1, count):
    config.train.devices = devices
    run = compile_run(config, schema, splits["train"])
    state = run.state
    for epoch in (1, 2):
      state, losses = run.train_epoch(state, epoch)
    assert losses.losses.shape == losses.weights.shape == (4, 2)
    ends.append((state.params, state.batch_stats, losses))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-5), *ends
  )


def test_results_hold_the_contract(config, tmp_path):
  results = loop.train_and_evaluate(config, str(tmp_path / "w"))
  assert contract.read_results(str(tmp_path / "w")) == results
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
  # Labels depend on the features, so the loss falls.
  assert lines[-1]["loss"] < lines[0]["loss"]
  assert results["test"]["income_50k/auc"] > 0.7


def test_the_same_seed_gives_the_same_run_and_another_seed_another(config, tmp_path, monkeypatch):
  # Each run with its own program and start, as in separate processes.
  monkeypatch.setattr(loop, "compile_run", compile_run)
  runs = []
  for i, seed in enumerate((7, 7, 8)):
    config.seed = seed
    results = loop.train_and_evaluate(config, str(tmp_path / str(i)))
    runs.append(results["test"])
  assert runs[0] == runs[1]
  assert runs[0] != runs[2]


@pytest.mark.parametrize(
  "stops", [(1, 2), *(pytest.param(s, marks=pytest.mark.slow) for s in ((1,), (3,)))]
)
def test_a_resumed_run_is_bitwise_identical(config, tmp_path, stops, monkeypatch):
  config.train.epochs = 4
  config.checkpoint.every_epochs = 1
  config.model.expert_dropout = 0.2
  config.model.tower_norm = "batch"
  config.train.average_decay = 0.99
  config.optimizer.dense.schedule = "cosine"
  loop.train_and_evaluate(config, str(tmp_path / "whole"))
  save = checkpoint.Checkpoints.save
  for stop in stops:

    def dying(self, epoch, *arguments, stop=stop):
      if epoch > stop:
        raise KeyboardInterrupt
      save(self, epoch, *arguments)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", dying)
    with pytest.raises(KeyboardInterrupt):
      loop.train_and_evaluate(config, str(tmp_path / "cut"))
  monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
  loop.train_and_evaluate(config, str(tmp_path / "cut"))
  whole, cut = (restored(tmp_path / name, config) for name in ("whole", "cut"))
  leaves_equal(whole, cut)
  metrics = [
    [json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    for name in ("whole", "cut")
  ]
  for a, b in zip(*metrics, strict=True):
    assert {k: a[k] for k in a if "second" not in k} == {k: b[k] for k in b if "second" not in k}


def test_a_finished_run_started_again_only_evaluates(config, tmp_path):
  first = loop.train_and_evaluate(config, str(tmp_path / "w"))
  again = loop.train_and_evaluate(config, str(tmp_path / "w"))
  for split in data.SPLITS:
    assert first[split] == again[split]
  assert len((tmp_path / "w" / "metrics.jsonl").read_text().splitlines()) == 3


def test_early_stopping_keeps_the_best_variables(config, tmp_path):
  config.train.epochs = 30
  config.select.patience = 2
  for group in ("dense", "embedding"):
    config.optimizer[group].learning_rate = 0.05  # Overfits 2,003 rows within an epoch.
  results = loop.train_and_evaluate(config, str(tmp_path / "w"))
  assert results["epochs"] < 30
  assert results["epochs"] == results["best_epoch"] + 2
  lines = [json.loads(x) for x in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
  measured = [x["validation/income_50k/auc"] for x in lines]
  assert np.argmax(measured) + 1 == results["best_epoch"]
  assert results["validation"]["income_50k/auc"] == pytest.approx(max(measured), abs=1e-6)


def test_the_best_variables_are_kept_without_early_stopping(config, tmp_path):
  # torch-rechub restores them only on an early stop.
  config.train.epochs = 6
  config.select.patience = 0
  for group in ("dense", "embedding"):
    config.optimizer[group].learning_rate = 0.05
  results = loop.train_and_evaluate(config, str(tmp_path / "w"))
  lines = [json.loads(x) for x in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
  measured = [x["validation/income_50k/auc"] for x in lines]
  assert results["best_epoch"] < 6
  assert results["validation"]["income_50k/auc"] == pytest.approx(max(measured), abs=1e-6)


@pytest.mark.parametrize(
  ("metric", "tasks"),
  [
    ("log_loss", TASKS[1:]),
    *(pytest.param(m, (), marks=pytest.mark.slow) for m in ("auc", "log_loss")),
  ],
)
def test_selection_follows_the_named_measure(config, tmp_path, metric, tasks):
  config.select.metric, config.select.tasks = metric, tasks
  config.train.epochs = 6
  config.select.patience = 0
  results = loop.train_and_evaluate(config, str(tmp_path / "w"))
  lines = [json.loads(x) for x in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
  names = [f"validation/{t}/{metric}" for t in tasks or TASKS]
  measured = [np.mean([x[name] for name in names]) for x in lines]
  best = np.argmin(measured) if metric == "log_loss" else np.argmax(measured)
  assert results["best_epoch"] == best + 1


def test_test_rows_do_not_affect_training(config, prepared, tmp_path):
  first = loop.train_and_evaluate(config, str(tmp_path / "a"))
  load = data.load

  def flipped(*args, **kwargs):
    schema, splits = load(*args, **kwargs)
    splits["test"].labels[:] = 1 - splits["test"].labels
    return schema, splits

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(data, "load", flipped)
    second = loop.train_and_evaluate(config, str(tmp_path / "b"))
  for split in ("train", "validation"):
    assert first[split] == second[split]
  assert first["best_epoch"] == second["best_epoch"]
  assert second["test"]["income_50k/auc"] == pytest.approx(
    1 - first["test"]["income_50k/auc"], abs=1e-6
  )


def test_a_loss_that_is_not_finite_stops_naming_epoch_and_task(config, tmp_path):
  for group in ("dense", "embedding"):
    config.optimizer[group].name = "sgd"
    config.optimizer[group].learning_rate = 1e30
  with pytest.raises(UserError, match=r"task '\w+' is not finite in epoch 1, step 2 of 16"):
    loop.train_and_evaluate(config, str(tmp_path / "w"))
  assert os.listdir(tmp_path / "w" / "checkpoints") == []


def test_the_first_loss_that_is_not_finite_is_named():
  losses = np.ones((5, 2))
  losses[2, 1] = losses[3, 0] = np.nan
  with pytest.raises(UserError, match="the loss of task 'b' is not finite in epoch 7, step 3 of 5"):
    records.mean_losses(TaskLosses(losses, np.ones((5, 2))), 7, "ab")


def test_the_loss_of_an_epoch_is_a_mean_over_labelled_rows():
  losses = np.array([[1.0, 0.4], [3.0, 0.0], [2.0, 0.6]])
  weights = np.array([[64.0, 64.0], [64.0, 0.0], [10.0, 32.0]])
  means = records.mean_losses(TaskLosses(losses, weights), 1, "ab")
  np.testing.assert_allclose(means, [(64 + 192 + 20) / 138, (25.6 + 19.2) / 96])
  unlabelled = records.mean_losses(TaskLosses(losses * 0, weights * 0), 1, "ab")
  np.testing.assert_array_equal(unlabelled, 0)


def test_an_update_that_breaks_after_the_last_loss_is_not_kept(config, tmp_path):
  config.train.batch_size = 2048  # One step per epoch: its loss is computed before its update.
  config.train.epochs = 1
  for group in ("dense", "embedding"):
    config.optimizer[group].name = "sgd"
    config.optimizer[group].learning_rate = 1e38
  with pytest.raises(UserError, match=r"the output for task '\w+' is not finite after epoch 1"):
    loop.train_and_evaluate(config, str(tmp_path / "w"))
  assert os.listdir(tmp_path / "w" / "checkpoints") == []


@pytest.mark.slow
def test_one_task_and_three_tasks_train(config, tmp_path):
  for tasks in (("education",), ("education", "marital_stat", "income_50k")):
    config.data.tasks = tasks
    config.select.tasks = ()
    results = loop.train_and_evaluate(config, str(tmp_path / str(len(tasks))))
    assert results["test"][f"{tasks[0]}/auc"] > 0.4


def test_a_one_class_split_gives_null_with_a_reason(config, tmp_path, monkeypatch):
  load = data.load

  def one_class(*args, **kwargs):
    schema, splits = load(*args, **kwargs)
    splits["test"].labels[:, 0] = 0
    return schema, splits

  monkeypatch.setattr(data, "load", one_class)
  results = loop.train_and_evaluate(config, str(tmp_path / "w"))
  assert results["test"]["income_50k/auc"] is None
  assert results["notes"]["test/income_50k/auc"] == "no positive row"


def test_a_work_directory_takes_one_process(config, tmp_path):
  config.train.epochs = 0
  loop.train_and_evaluate(config, str(tmp_path / "w"))
  with open(tmp_path / "w" / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is training there"):
      loop.train_and_evaluate(config, str(tmp_path / "w"))


def test_sample_weights_change_the_loss_that_is_minimised(config, tmp_path):
  plain = loop.train_and_evaluate(config, str(tmp_path / "a"))
  config.loss.sample_weight = True
  weighted = loop.train_and_evaluate(config, str(tmp_path / "b"))
  assert plain["test"] != weighted["test"]


def test_a_work_directory_of_another_run_is_refused_and_unharmed(config, tmp_path):
  loop.train_and_evaluate(config, str(tmp_path / "w"))
  before = {p: p.read_bytes() for p in (tmp_path / "w").glob("*.json*")}
  config.model.experts = 5
  with pytest.raises(UserError, match=r"holds a run with config\.model\.experts=4, not 5; use"):
    loop.train_and_evaluate(config, str(tmp_path / "w"))
  config.seed = 3
  with pytest.raises(UserError, match=r"config\.seed=0, not 3; config\.model\.experts=4, not 5;"):
    loop.train_and_evaluate(config, str(tmp_path / "w"))
  assert before == {p: p.read_bytes() for p in (tmp_path / "w").glob("*.json*")}


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("train.batch_size", 0, "batch_size = 0: must be from 1"),
    ("train.epochs", -1, "epochs = -1: must be from 0 to 1,000,000"),
    ("train.devices", 99, "devices = 99: must be from 0 to 8"),
    ("train.average_decay", 1.0, r"must be in \[0, 1\)"),
    ("train.warm_start", "nowhere", r"nowhere: contains no schema\.json"),
    ("checkpoint.every_epochs", 0, "every_epochs = 0: must be at least 1"),
    ("select.metric", "auk", "did you mean 'auc'"),
    ("select.tasks", ("income",), "did you mean 'income_50k'"),
    ("select.patience", -1, "patience = -1: must be at least 0"),
    ("loss.task_weights", (1.0,), "must be empty or have 2 numbers"),
    ("loss.task_weights", (0.0, 0.0), "not all 0"),
    ("loss.task_weights", ("a", "b"), "must be a tuple of numbers"),
    ("model.expert_hidden", ("a",), "must be a tuple of whole numbers"),
    ("optimizer.dense.learning_rate", float("nan"), "must be a number >= 0"),
    ("data.tasks", ("income_50k,education",), "write several as"),
    ("data_dir", "nowhere", "nowhere: contains no prepared data"),
  ],
)
def test_impossible_settings_are_named_and_write_nothing(config, tmp_path, key, value, message):
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=message):
    loop.train_and_evaluate(config, str(tmp_path / "w"))
  assert not (tmp_path / "w").exists()


def test_devices_must_divide_the_batch(config, tmp_path):
  config.train.devices, config.train.batch_size = 8, 100
  with pytest.raises(UserError, match="batch_size = 100: must be a multiple of 8"):
    loop.train_and_evaluate(config, str(tmp_path / "w"))


def test_esmm_refuses_tasks_of_which_one_does_not_imply_the_one_before(prepared, tmp_path):
  config = census.get_config("esmm,tasks=income_50k+marital_stat")
  config.data_dir, config.train.epochs, config.train.devices = prepared, 1, 1
  with pytest.raises(UserError, match="train rows have 'marital_stat' without 'income_50k'"):
    loop.train_and_evaluate(config, str(tmp_path / "w"))
  config.data.tasks = ("education", "bachelors")
  results = loop.train_and_evaluate(config, str(tmp_path / "w"))
  assert results["test"]["bachelors/auc"] > 0


def test_gates_are_logged_with_warnings(config, tmp_path, capsys):
  results = loop.train_and_evaluate(config, str(tmp_path / "w"))
  lines = [json.loads(x) for x in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
  best = lines[results["best_epoch"] - 1]
  assert results["gates"] == {k: v for k, v in best.items() if k.startswith("gates/")}
  assert 1 <= results["gates"]["gates/income_50k/effective_experts"] <= 4
  config.model.experts = 2
  config.model.exclusivity = 1.0  # One expert per task: gates have no choice.
  results = loop.train_and_evaluate(config, str(tmp_path / "alone"))
  assert "the gate of 'income_50k' has collapsed" in results["warnings"][0]
  assert "warning: the gate of 'income_50k' has collapsed" in capsys.readouterr().err


@pytest.mark.parametrize(
  "method",
  [
    pytest.param(m, marks=[] if m in ("gradnorm",) else pytest.mark.slow)
    for m in sorted(census.WEIGHTINGS)
  ],
)
def test_every_task_weighting_trains(config, tmp_path, method):
  config.loss.weighting = {"name": method, **census.WEIGHTINGS[method]}
  results = loop.train_and_evaluate(config, str(tmp_path / "w"))
  assert results["test"]["income_50k/auc"] > 0.7
  lines = [json.loads(x) for x in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
  weights = [line["train/income_50k/weight"] for line in lines]
  assert (len(set(weights)) > 1) == (method in ("uncertainty", "gradnorm", "dwa"))
