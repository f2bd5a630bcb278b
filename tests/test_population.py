"""Populations: a member is the run it would have been alone, whatever stands beside it."""

import json
import types

import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mmoe_jax import checkpoint, data, parallel, population, predict, report, train, workdirs
from mmoe_jax.config import override
from mmoe_jax.errors import UserError

AUC = "income_50k/auc"


def together(config, members, workdir, **kwargs):
  return population.train_population(config, members, str(workdir), **kwargs)


def assert_same_run(member, alone):
  """To float error: programs that fuse differently round differently."""
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


@pytest.mark.parametrize("at_once", [1, 2])
def test_each_member_equals_its_solo_run(config, tmp_path, at_once):
  config.optimizer.dense.schedule = "cosine"
  members = [{key: values[m] for key, values in VARIED.items()} for m in range(3)]
  config.train.devices = 2  # Three members on two devices: one device has a stand-in.
  results = together(config, members, tmp_path / "all", at_once=at_once)
  config.train.devices = 1
  for m, member in enumerate(members):
    alone = train.train_and_evaluate(override(config, member), str(tmp_path / str(m)))
    assert_same_run(results[m], alone)
    assert results[m]["member"] == member
    lines = [json.loads(x) for x in (tmp_path / "all" / "metrics.jsonl").read_text().splitlines()]
    solo = [json.loads(x) for x in (tmp_path / str(m) / "metrics.jsonl").read_text().splitlines()]
    for line, record in zip(lines, solo, strict=True):
      for name in ("loss", "train/income_50k/loss", f"validation/{AUC}"):
        assert line[name][m] == pytest.approx(record[name], abs=1e-3 if "auc" in name else 1e-4)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("count", [2, 3])
def test_seeds_train_together_as_they_do_alone_to_the_bit(config, tmp_path, devices, count):
  # Anything less is seen in the third digit of a loss after some epochs of the real data.
  config.model.expert_dropout = 0.2
  config.train.devices = devices
  together(config, [{"seed": seed} for seed in range(count)], tmp_path / "all")
  config.train.devices = 1
  found = checkpoint.read_raw(str(tmp_path / "all"))
  for seed in range(count):
    config.seed = seed
    train.train_and_evaluate(config, str(tmp_path / str(seed)))
    alone = checkpoint.read_raw(str(tmp_path / str(seed)))
    assert alone.keys() == found.keys()
    for name, value in alone.items():
      np.testing.assert_array_equal(found[name][seed], value, err_msg=name)


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


def test_each_member_stops_by_its_own_patience(config, tmp_path):
  config.train.epochs, config.select.patience = 12, 2
  rates = (0.05, 3e-4)  # The first overfits 2,003 rows at once.
  members = [
    {"optimizer.dense.learning_rate": r, "optimizer.embedding.learning_rate": r} for r in rates
  ]
  results = together(config, members, tmp_path / "p")
  assert results[0]["epochs"] == results[0]["best_epoch"] + 2 < results[1]["epochs"]
  alone = train.train_and_evaluate(override(config, members[0]), str(tmp_path / "alone"))
  assert_same_run(results[0], alone)
  lines = [json.loads(x) for x in (tmp_path / "p" / "metrics.jsonl").read_text().splitlines()]
  assert lines[results[0]["epochs"]]["active"] == [False, True]
  assert lines[results[0]["epochs"]]["loss"][0] is None


def test_a_member_that_diverges_is_named_and_leaves_the_others_alone(config, tmp_path):
  members = [{"optimizer.dense.learning_rate": 5e-3}, {"optimizer.dense.learning_rate": 1e35}]
  results = together(config, members, tmp_path / "p")
  assert "not finite" in results[1]["error"]
  assert "test" not in results[1]
  alone = train.train_and_evaluate(override(config, members[0]), str(tmp_path / "alone"))
  assert_same_run(results[0], alone)
  # Also when the population is picked up again.
  (tmp_path / "p" / "results.json").unlink()
  again = together(config, members, tmp_path / "p")
  assert again[1]["error"] == results[1]["error"]
  assert "not finite" in report.population_table(workdirs.read_results(str(tmp_path / "p")), "p")


@pytest.mark.parametrize("stop", [1, 2])
def test_resumed_equals_uninterrupted_bit_for_bit(config, tmp_path, stop, monkeypatch):
  config.train.epochs, config.select.patience = 4, 1
  config.model.expert_dropout = 0.2
  config.train.devices = 2
  members = [{"seed": 0}, {"seed": 1}, {"seed": 2}]
  whole = together(config, members, tmp_path / "whole")
  save = checkpoint.Checkpoints.save

  def dying(self, epoch, state, best):
    if epoch > stop:
      raise KeyboardInterrupt
    save(self, epoch, state, best)

  monkeypatch.setattr(checkpoint.Checkpoints, "save", dying)
  with pytest.raises(KeyboardInterrupt):
    together(config, members, tmp_path / "cut")
  monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
  assert together(config, members, tmp_path / "cut") == whole
  a, b = (checkpoint.read_raw(str(tmp_path / name)) for name in ("whole", "cut"))
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


def test_a_work_directory_takes_one_population(config, tmp_path):
  config.train.epochs = 1
  together(config, [{"seed": 0}, {"seed": 1}], tmp_path / "p")
  with pytest.raises(UserError, match=r"holds a run with config\.members"):
    together(config, [{"seed": 0}, {"seed": 2}], tmp_path / "p")
  with pytest.raises(UserError, match=r"holds a run with config\.members"):
    train.train_and_evaluate(config, str(tmp_path / "p"))


def test_saved_logits_and_predictions_of_a_member_are_those_of_its_metrics(config, raw, tmp_path):
  config.train.epochs = 1
  results = together(config, [{"seed": s} for s in range(3)], tmp_path / "p", save_logits=("test",))
  _, splits = data.load(config.data_dir, **config.data)
  logits = np.load(tmp_path / "p" / "logits_test.npy")
  labels = np.asarray(splits["test"].labels)
  assert logits.shape == (3, *labels.shape)
  for m, result in enumerate(results):
    for t, task in enumerate(("income_50k", "marital_stat")):
      area = roc_auc_score(labels[:, t], logits[m, :, t])
      assert area == pytest.approx(result["test"][f"{task}/auc"], abs=1e-6)
  rows = np.load(f"{config.data_dir}/test/rows.npy")
  predictor = predict.Predictor(str(tmp_path / "p"), member=2)
  frame = predict.read_table(raw[1], predictor.schema.columns)
  scores = predictor(frame).to_numpy()[rows]
  np.testing.assert_allclose(np.log(scores / (1 - scores)), logits[2], atol=1e-4)


def test_predicting_needs_a_member_that_is_there(config, tmp_path):
  config.train.epochs = 0
  together(config, [{"seed": 0}, {"seed": 1}], tmp_path / "p")
  with pytest.raises(UserError, match=r"a population of 2 members; name one, --member=0 to 1"):
    predict.Predictor(str(tmp_path / "p"))
  with pytest.raises(UserError, match="--member=2: there are 2 members, 0 to 1"):
    predict.Predictor(str(tmp_path / "p"), member=2)
  train.train_and_evaluate(config, str(tmp_path / "w"))
  with pytest.raises(UserError, match=r"--member=0: .*is no population"):
    predict.Predictor(str(tmp_path / "w"), member=0)


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
    ([{"seed": 0}, {}], "differ in which keys"),
    ([{"seed": -1}], "seed is -1"),
    ([{"model.experts": 4}], r"config\.model\.experts=4: members may differ in the seed, in fl"),
    ([{"model.experts": 4.0}], r"config\.model\.experts=4\.0: members may differ in the seed"),
    ([{"model.gate_hidden": (8,)}], r"needs a population of its own"),
    ([{"optimizer.dense.learning_rat": 0.1}], "did you mean 'learning_rate'"),
    ([{"optimizer.dense.learning_rate": -0.1}], "must be a number of at least 0"),
    ([{"model.expert_dropout": 1.0}], "at least 0 and below 1"),
    ([{"loss.task_weights": (1.0,)}], "has 1 numbers for 2 tasks"),
  ],
)
def test_impossible_members_are_named_and_write_nothing(config, tmp_path, members, message):
  with pytest.raises(UserError, match=message):
    together(config, members, tmp_path / "p")
  assert not (tmp_path / "p").exists()


def test_vary_is_every_combination():
  assert population.parse_vary([]) == [{}]
  got = population.parse_vary(["a.b=1,2e-3", "c=4"])
  assert got == [{"a.b": 1.0, "c": 4.0}, {"a.b": 2e-3, "c": 4.0}]
  for text in ("a.b", "a.b=", "a.b=x"):
    with pytest.raises(UserError, match=r"--vary a\.b"):
      population.parse_vary([text])


def test_members_at_once_are_as_many_as_memory_holds():
  analysis = types.SimpleNamespace(
    argument_size_in_bytes=100, output_size_in_bytes=100, temp_size_in_bytes=50
  )
  assert parallel.members_at_once(analysis, 1000, 64) == 12  # (0.8 · 1000 − 200) / 50
  assert parallel.members_at_once(analysis, 1000, 8) == 8
  with pytest.raises(UserError, match="64 members on a device need 250 bytes of its 300"):
    parallel.members_at_once(analysis, 300, 64)


@pytest.mark.parametrize(("count", "devices"), [(1, 1), (5, 1), (5, 2), (8, 8), (3, 8)])
def test_spread_and_gather_are_inverse(count, devices):
  members = parallel.Members(count, devices)
  tree = {"a": np.arange(count * 6).reshape(count, 2, 3), "b": np.arange(count)}
  jax.tree.map(np.testing.assert_array_equal, members.gather(members.spread(tree)), tree)
  shared = members.share(np.int32(2))
  doubled = members.compile(
    lambda state, own, shared: (state + own["b"] * shared, own["a"].sum()),
    *(members.spread(np.zeros(count, int)), members.spread(tree), shared),
  )
  state, sums = doubled(members.spread(np.zeros(count, int)), members.spread(tree), shared)
  np.testing.assert_array_equal(members.gather(state), 2 * np.arange(count))
  np.testing.assert_array_equal(members.gather(sums), tree["a"].sum((1, 2)))
