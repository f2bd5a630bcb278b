"""Population: each member equals its separate run."""

import csv
import json
import types

import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mmoe_jax import data, parallel
from mmoe_jax.config import override
from mmoe_jax.errors import UserError
from mmoe_jax.evaluation.results_table import format_population
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.training import loop, population
from mmoe_jax.workdir import checkpoint, contract
from tests.frames import read_frame
from tests.workdir.tracking.test_trackers import Recorder

pytestmark = pytest.mark.usefixtures("_shared_programs")

AUC = "income_50k/auc"


def together(config, members, workdir, **kwargs):
  return population.train_population(config, members, str(workdir), **kwargs)


def assert_same_run(member, alone):
  """Compares to float error, because differently fused programs round differently."""
  assert (member["best_epoch"], member["epochs"]) == (alone["best_epoch"], alone["epochs"])
  for split in data.SPLITS:
    for name, value in alone[split].items():
      tolerance = 1e-3 if "/auc" in name else 1e-4
      assert member[split][name] == pytest.approx(value, abs=tolerance, rel=1e-3), name


VARIED = {
  "seed": (3, 2**32 - 1, 0),
  "optimizer.dense.learning_rate": (5e-3, 2e-2, 1e-3),
  "optimizer.embedding.weight_decay": (0.0, 0.1, 0.01),
  "optimizer.clip_norm": (0.0, 0.1, 10.0),
  "optimizer.dense.warmup_epochs": (0.0, 0.5, 1.0),
  "model.expert_dropout": (0.0, 0.3, 0.1),
  "model.embedding_init_std": (0.05, 0.5, 0.0),
  "train.average_decay": (0.9, 0.0, 0.99),
  "loss.task_weights": ((1.0, 1.0), (2.0, 0.5), (0.0, 1.0)),
}


# Three members on two devices: padding repeats the last one.
@pytest.mark.parametrize(
  ("count", "devices", "at_once"),
  [(2, 1, 2), *(pytest.param(3, 2, n, marks=pytest.mark.slow) for n in (1, 2))],
)
def test_each_member_equals_its_separate_run(config, tmp_path, count, devices, at_once):
  config.optimizer.dense.schedule = "cosine"
  config.train.epochs = 2
  members = [{key: values[m] for key, values in VARIED.items()} for m in range(count)]
  separate = [
    loop.train_and_evaluate(override(config, member), str(tmp_path / str(m)))
    for m, member in enumerate(members)
  ]
  config.train.devices = devices
  results = together(config, members, tmp_path / "all", at_once=at_once)
  for m, member in enumerate(members):
    assert_same_run(results[m], separate[m])
    assert results[m]["member"] == member
  for line, *records in zip(
    read_records(tmp_path / "all"), *map(read_records, runs(tmp_path, count)), strict=True
  ):
    for name in ("loss", "train/income_50k/loss", f"validation/{AUC}"):
      for m, record in enumerate(records):
        tolerance = 1e-3 if "auc" in name else 1e-4
        assert line[name][m] == pytest.approx(record[name], abs=tolerance)


def runs(folder, count):
  return [folder / str(m) for m in range(count)]


def read_records(workdir):
  return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


SEEDS = [{"seed": seed} for seed in range(3)]


@pytest.fixture(scope="module")
def trained(_config, tmp_path_factory):
  """Returns config, folder and results of a population of SEEDS on two devices, in `all`."""
  config = _config.copy_and_resolve_references()
  config.train.epochs, config.select.patience = 4, 1
  config.checkpoint.every_epochs = 1
  config.model.expert_dropout = 0.2
  config.train.devices = 2
  folder = tmp_path_factory.mktemp("trained")
  return config, folder, together(config, SEEDS, folder / "all", save_logits=("test",))


@pytest.fixture(scope="module")
def apart(trained):
  """Returns the work directory of a separate run of one of SEEDS, the one without a neighbour."""
  return train_apart(trained, 2)


def train_apart(trained, seed):
  config, folder, _ = trained
  loop.train_and_evaluate(
    override(config, {"train.devices": 1, "seed": seed}), str(folder / str(seed))
  )
  return folder / str(seed)


def test_members_are_bitwise_identical_to_separate_runs(trained, apart):
  # Training amplifies a rounding difference to the third digit of the loss within some epochs.
  found = checkpoint.read_arrays(str(trained[1] / "all"))
  for seed, workdir in ((1, train_apart(trained, 1)), (2, apart)):
    alone = checkpoint.read_arrays(str(workdir))
    assert alone.keys() == found.keys()
    for name, value in alone.items():
      np.testing.assert_array_equal(found[name][seed], value, err_msg=name)


@pytest.mark.slow
def test_members_on_one_device_are_bitwise_identical_to_separate_runs(config, tmp_path):
  config.model.expert_dropout = 0.2
  together(config, SEEDS[:2], tmp_path / "all")
  found = checkpoint.read_arrays(str(tmp_path / "all"))
  for seed in range(2):
    config.seed = seed
    loop.train_and_evaluate(config, str(tmp_path / str(seed)))
    for name, value in checkpoint.read_arrays(str(tmp_path / str(seed))).items():
      np.testing.assert_array_equal(found[name][seed], value, err_msg=name)


@pytest.mark.slow
def test_members_differ_and_do_not_depend_on_their_neighbours_or_devices(config, tmp_path):
  seeds = [{"seed": seed} for seed in range(5)]
  config.model.expert_dropout = 0.2
  config.train.devices = 4
  five = together(config, seeds, tmp_path / "five")
  config.train.devices = 1
  two = together(config, seeds[3:], tmp_path / "two")
  assert len({r["test"][AUC] for r in five}) == 5
  for a, b in zip(five[3:], two, strict=True):
    assert_same_run(a, b)


def test_each_member_stops_by_its_own_patience_and_all_are_one_tracked_run(config, tmp_path):
  config.train.trackers = "jsonl,csv"
  config.train.epochs, config.select.patience = 12, 2
  rates = (0.05, 3e-4)  # The first overfits 2,003 rows within an epoch.
  members = [
    {"optimizer.dense.learning_rate": r, "optimizer.embedding.learning_rate": r} for r in rates
  ]
  own = Recorder()
  results = together(config, members, tmp_path / "p", trackers=[own])
  assert results[0]["epochs"] == results[0]["best_epoch"] + 2 < results[1]["epochs"]
  alone = loop.train_and_evaluate(override(config, members[0]), str(tmp_path / "alone"))
  assert_same_run(results[0], alone)
  lines = [json.loads(x) for x in (tmp_path / "p" / "metrics.jsonl").read_text().splitlines()]
  assert lines[results[0]["epochs"]]["active"] == [False, True]
  assert lines[results[0]["epochs"]]["loss"][0] is None
  assert own.calls[0] == ("settings", 0)
  assert own.calls[1:-1] == [("metrics", line["epoch"]) for line in lines]
  assert [member["epochs"] for member in own.calls[-1][1]["members"]] == [
    result["epochs"] for result in results
  ]
  with open(tmp_path / "p" / "metrics.csv", encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
  assert float(rows[0]["loss"]) == pytest.approx(sum(lines[0]["loss"]) / 2)
  assert float(rows[-1]["loss"]) == lines[-1]["loss"][1]  # The one that still trains.


def test_a_member_that_diverges_is_named_and_leaves_the_others_alone(config, tmp_path):
  members = [{"optimizer.dense.learning_rate": 5e-3}, {"optimizer.dense.learning_rate": 1e35}]
  results = together(config, members, tmp_path / "p")
  assert "not finite" in results[1]["error"]
  assert "test" not in results[1]
  alone = loop.train_and_evaluate(override(config, members[0]), str(tmp_path / "alone"))
  assert_same_run(results[0], alone)
  # Also when the population resumes.
  (tmp_path / "p" / "results.json").unlink()
  again = together(config, members, tmp_path / "p")
  assert again[1]["error"] == results[1]["error"]
  assert "not finite" in format_population(contract.read_results(str(tmp_path / "p")), "p")


@pytest.mark.parametrize("stop", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_is_bitwise_identical(trained, tmp_path, stop, monkeypatch):
  config, folder, whole = trained
  save = checkpoint.Checkpoints.save

  def dying(self, epoch, state, best, log=None):
    if epoch > stop:
      raise KeyboardInterrupt
    save(self, epoch, state, best, log)

  monkeypatch.setattr(checkpoint.Checkpoints, "save", dying)
  with pytest.raises(KeyboardInterrupt):
    together(config, SEEDS, tmp_path / "cut")
  monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
  assert together(config, SEEDS, tmp_path / "cut") == whole
  a, b = (checkpoint.read_arrays(str(path)) for path in (folder / "all", tmp_path / "cut"))
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.slow
def test_a_work_directory_takes_one_population(config, tmp_path):
  config.train.epochs = 1
  together(config, [{"seed": 0}, {"seed": 1}], tmp_path / "p")
  with pytest.raises(UserError, match=r"holds a run with config\.members"):
    together(config, [{"seed": 0}, {"seed": 2}], tmp_path / "p")
  with pytest.raises(UserError, match=r"holds a run with config\.members"):
    loop.train_and_evaluate(config, str(tmp_path / "p"))


def test_saved_logits_and_predictions_of_a_member_are_those_of_its_metrics(trained, raw):
  config, folder, results = trained
  _, splits = data.load(config.data_dir, **config.data)
  logits = np.load(folder / "all" / "logits_test.npy")
  labels = np.asarray(splits["test"].labels)
  assert logits.shape == (3, *labels.shape)
  for m, result in enumerate(results):
    for t, task in enumerate(("income_50k", "marital_stat")):
      area = roc_auc_score(labels[:, t], logits[m, :, t])
      assert area == pytest.approx(result["test"][f"{task}/auc"], abs=1e-6)
  rows = np.load(f"{config.data_dir}/test/rows.npy")
  predictor = Predictor(str(folder / "all"), member=2)
  frame = read_frame(raw[1], predictor.schema.columns)
  scores = predictor(frame).to_numpy()[rows]
  np.testing.assert_allclose(np.log(scores / (1 - scores)), logits[2], atol=1e-4)


def test_the_mean_of_members_is_scored_and_measured(trained, raw):
  config, folder, results = trained
  logits = np.load(folder / "all" / "logits_test.npy")
  each = 1 / (1 + np.exp(-logits.astype(np.float64)))
  _, splits = data.load(config.data_dir, **config.data)
  labels = np.asarray(splits["test"].labels)
  found = contract.read_results(str(folder / "all"))["mean"]
  assert found["members"] == [0, 1, 2]
  for t, task in enumerate(("income_50k", "marital_stat")):
    mean = each[:, :, t].mean(0)
    area = roc_auc_score(labels[:, t], mean)
    assert found["test"][f"{task}/auc"] == pytest.approx(area, abs=1e-6)
    expected = -np.where(labels[:, t] == 1, np.log(mean), np.log(1 - mean)).mean()
    assert found["test"][f"{task}/log_loss"] == pytest.approx(expected, abs=1e-5)
    assert found["test"][f"{task}/auc"] != results[0]["test"][f"{task}/auc"]
  rows = np.load(f"{config.data_dir}/test/rows.npy")
  predictor = Predictor(str(folder / "all"), "mean")
  frame = read_frame(raw[1], predictor.schema.columns)
  scores = predictor(frame).iloc[rows]
  names = ["income_50k", "marital_stat", "income_50k/std", "marital_stat/std"]
  assert list(scores) == predictor.columns == names
  for t, task in enumerate(("income_50k", "marital_stat")):
    np.testing.assert_allclose(scores[task], each[:, :, t].mean(0), atol=1e-6)
    np.testing.assert_allclose(scores[f"{task}/std"], each[:, :, t].std(0), atol=1e-6)
  table = format_population(contract.read_results(str(folder / "all")), "w")
  assert f"{found['test']['income_50k/auc']:.4f}" in table.split("of mean scores")[1]


def test_predicting_needs_a_member_that_is_there(trained, apart):
  workdir = str(trained[1] / "all")
  with pytest.raises(UserError, match=r"a population of 3 members; choose one by --member=0 to 2"):
    Predictor(workdir)
  with pytest.raises(UserError, match="--member=3: must be from 0 to 2"):
    Predictor(workdir, member=3)
  with pytest.raises(UserError, match=r"--member=0: .*is not a population"):
    Predictor(str(apart), member=0)


def test_members_may_have_data_of_their_own(config, tmp_path):
  schema, splits = data.load(config.data_dir, **config.data)

  def first(split, rows):
    features = {k: a[:rows] for k, a in split.features.items()}
    slices = {k: a[:rows] for k, a in split.slices.items()}
    return data.Split(features, split.labels[:rows], split.weights[:rows], slices)

  def last(split, rows):
    features = {k: a[-rows:] for k, a in split.features.items()}
    slices = {k: a[-rows:] for k, a in split.slices.items()}
    return data.Split(features, split.labels[-rows:], split.weights[-rows:], slices)

  own = [{k: cut(s, 400) for k, s in splits.items()} for cut in (first, last)]
  members = [{"seed": 5}, {"seed": 5}]
  both = together(config, members, tmp_path / "both", splits=own, schema=schema)
  swapped = together(config, members, tmp_path / "swapped", splits=own[::-1], schema=schema)
  assert both[0]["test"][AUC] != both[1]["test"][AUC]
  for a, b in zip(both, swapped[::-1], strict=True):
    assert_same_run(a, b)


@pytest.mark.parametrize(
  ("members", "message"),
  [
    ([], "at least one member"),
    ([{"seed": 0}, {}], "must set the same keys"),
    ([{"seed": -1}], "seed = -1: must be from 0"),
    ([{"model.experts": 4}], r"config\.model\.experts = 4: members may differ in the seed, in fl"),
    ([{"model.experts": 4.0}], r"config\.model\.experts = 4\.0: members may differ in the seed"),
    ([{"train.memory_gib": 0.5}], r"config\.train\.memory_gib: members share it"),
    ([{"model.gate_hidden": (8,)}], r"other settings need a separate population"),
    ([{"optimizer.dense.learning_rat": 0.1}], "did you mean 'learning_rate'"),
    ([{"optimizer.dense.learning_rate": -0.1}], "must be a number >= 0"),
    ([{"model.expert_dropout": 1.0}], r"must be a rate in \[0, 1\)"),
    ([{"loss.task_weights": (1.0,)}], "must be empty or have 2 numbers"),
  ],
)
def test_impossible_members_are_named_and_write_nothing(config, tmp_path, members, message):
  with pytest.raises(UserError, match=message):
    together(config, members, tmp_path / "p")
  assert not (tmp_path / "p").exists()


def test_members_at_once_are_as_many_as_memory_holds():
  analysis = types.SimpleNamespace(
    argument_size_in_bytes=100, output_size_in_bytes=100, temp_size_in_bytes=50
  )
  assert parallel.members_at_once(analysis, 1000, 64) == 12  # (0.8 · 1000 − 200) / 50
  assert parallel.members_at_once(analysis, 1000, 8) == 8
  with pytest.raises(UserError, match="64 members per device need 250 of its 300 bytes"):
    parallel.members_at_once(analysis, 300, 64)


@pytest.mark.parametrize(("count", "devices"), [(1, 1), (5, 1), (5, 2), (8, 8), (3, 8)])
def test_shard_and_unshard_are_inverse(count, devices):
  members = parallel.Members(count, devices)
  tree = {"a": np.arange(count * 6).reshape(count, 2, 3), "b": np.arange(count)}
  jax.tree.map(np.testing.assert_array_equal, members.unshard(members.shard(tree)), tree)
  shared = members.replicate(np.int32(2))
  doubled = members.compile(
    lambda state, own, shared: (state + own["b"] * shared, own["a"].sum()),
    *(members.shard(np.zeros(count, int)), members.shard(tree), shared),
  )
  state, sums = doubled(members.shard(np.zeros(count, int)), members.shard(tree), shared)
  np.testing.assert_array_equal(members.unshard(state), 2 * np.arange(count))
  np.testing.assert_array_equal(members.unshard(sums), tree["a"].sum((1, 2)))
