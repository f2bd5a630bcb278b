"""Batch ensembles of all models: against NumPy, in training, prediction and export."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from scipy.special import expit, logit

from mmoe_jax import data, models
from mmoe_jax.errors import UserError
from mmoe_jax.export import model as exported
from mmoe_jax.export.bundle import export
from mmoe_jax.models.batch_ensemble import MEMBERS
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.prediction.row_metrics import evaluate
from mmoe_jax.training import loop, losses, population
from mmoe_jax.training.run import compile_run
from tests import reference
from tests.census_rows import COLUMNS
from tests.frames import read_frame
from tests.models import reference_models
from tests.models.test_models import KEY, batch, schema_of
from tests.models.test_zoo import NUMBERS, SIZES, random_params, settings_of

COUNT = 3


def with_members(name, tasks=2, **more):
  """Returns the settings of a small model, and its batch ensemble."""
  settings = settings_of(name, **more)
  schema = schema_of(SIZES, NUMBERS, tasks)
  return settings, models.create_model({**settings, "batch_ensemble": COUNT}, schema)


def params_of_member(params, m):
  """Returns the parameters of the model that a member is, in float64."""
  heads = params[MEMBERS]["heads"]
  merged = {k: v for k, v in params.items() if k != MEMBERS}
  for name, part in heads.items():
    merged[name] = {**merged.get(name, {}), **jax.tree.map(lambda a: a[m], part)}
  return jax.tree.map(lambda a: np.asarray(a, np.float64), merged)


def float32(params):
  return jax.tree.map(np.float32, params)


@pytest.mark.parametrize("name", models.MODELS)
def test_the_score_is_the_mean_of_members_that_scale_the_input(name):
  rng = reference.fresh_rng()
  settings, model = with_members(name)
  features = batch(rng, SIZES, 5, NUMBERS)
  params = random_params(rng, model, features)
  each, gates = [], []
  for m in range(COUNT):
    scale_D = np.asarray(params[MEMBERS]["input_scale"][m], np.float64)

    def embed(tables, task=None, scale_D=scale_D):
      tables = tables if task is None else {k: v[task] for k, v in tables.items()}
      return scale_D * reference.embed(tables, SIZES, (4, 4), features["ids"], features["numeric"])

    z, g, _ = reference_models.MODELS[name](params_of_member(params, m), settings, 2, embed)
    each.append(z)
    gates.append(g)
  variables = {"params": params, "batch_stats": {}}
  logits, seen = jax.jit(lambda v: model.apply(v, features, mutable=["intermediates"]))(variables)
  np.testing.assert_allclose(logits, logit(np.mean(expit(each), 0)), atol=1e-5, rtol=1e-5)
  if gates[0] is None:
    assert not seen
  else:
    np.testing.assert_allclose(seen["intermediates"]["gates"][0], np.mean(gates, 0), atol=1e-5)


def test_in_training_each_member_has_logits_dropout_statistics_and_a_loss():
  rng = reference.fresh_rng()
  _, model = with_members("mmoe", expert_norm="batch", expert_dropout=0.5)
  features = batch(rng, SIZES, 50, NUMBERS)
  variables = jax.jit(model.init)(KEY, features)
  params = variables["params"]
  scale_MxD = np.asarray(params[MEMBERS]["input_scale"])
  assert set(np.unique(scale_MxD)) == {-1.0, 1.0}
  kernel = params[MEMBERS]["heads"]["towers"]["Dense_1"]["kernel"]
  assert kernel.shape[:2] == (COUNT, 2)
  assert len(np.unique(np.asarray(kernel[:, 0, 0]))) == COUNT
  assert "Dense_1" not in params["towers"]

  # Members that are equal in everything still drop different units.
  same = jax.tree.map(lambda a: np.repeat(a[:1], COUNT, axis=0), params[MEMBERS])
  arguments = ({**variables, "params": {**params, MEMBERS: same}}, features)
  rngs = {"dropout": KEY, "shared": KEY}
  apply = jax.jit(lambda v, f: model.apply(v, f, True, rngs, ("batch_stats", "losses")))
  logits_MxBxO, updates = apply(*arguments)
  assert logits_MxBxO.shape == (COUNT, 50, 2)
  assert np.abs(np.diff(logits_MxBxO, axis=0)).max() > 1e-3
  stats = jax.tree.leaves(updates["batch_stats"])
  assert {a.shape[0] for a in stats} == {COUNT}

  labels_BxT = rng.integers(0, 2, (50, 2)).astype(np.float32)
  labels_BxT[3, 1] = np.nan
  loss_BxT = losses.mean_of_members(losses.binary_cross_entropy)(logits_MxBxO, labels_BxT)
  z = np.asarray(logits_MxBxO, np.float64)
  exact = np.mean(np.logaddexp(0, z) - np.where(labels_BxT == 1, z, 0), 0)
  np.testing.assert_allclose(loss_BxT, np.where(np.isnan(labels_BxT), 0, exact), rtol=1e-5)


def test_members_that_are_equal_are_the_model():
  rng = reference.fresh_rng()
  settings, model = with_members("ple", tower_norm="layer")
  features = batch(rng, SIZES, 9, NUMBERS)
  params = random_params(rng, model, features)
  params[MEMBERS] = jax.tree.map(lambda a: np.repeat(a[:1], COUNT, axis=0), params[MEMBERS])
  params[MEMBERS]["input_scale"] = np.ones_like(params[MEMBERS]["input_scale"])
  alone = models.create_model(settings, schema_of(SIZES, NUMBERS, 2))
  expected = jax.jit(alone.apply)({"params": float32(params_of_member(params, 0))}, features)
  got = jax.jit(model.apply)({"params": params, "batch_stats": {}}, features)
  np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)


def test_tasks_of_unequal_outputs_have_separate_output_layers():
  rng = reference.fresh_rng()
  schema = schema_of(SIZES, NUMBERS, 2)
  many = dataclasses.replace(schema.tasks[1], kind="multiclass", classes=("x", "y", "z"))
  schema = dataclasses.replace(schema, tasks=(schema.tasks[0], many))
  settings = settings_of("mmoe", batch_ensemble=COUNT)
  model = models.create_model(settings, schema)
  features = batch(rng, SIZES, 4, NUMBERS)
  params = random_params(rng, model, features)
  assert sorted(params[MEMBERS]["heads"]) == ["head_0", "head_1"]
  logits = jax.jit(model.apply)({"params": params, "batch_stats": {}}, features)
  alone = models.create_model({**settings, "batch_ensemble": 1}, schema)
  each, apply = [], jax.jit(alone.apply)
  for m in range(COUNT):
    scaled = {**features, "input_scale": params[MEMBERS]["input_scale"][m]}
    one = {"params": float32(params_of_member(params, m))}
    z = np.asarray(apply(one, scaled), np.float64)
    odds = np.exp(z[:, 1:])
    each.append(np.hstack([expit(z[:, :1]), odds / odds.sum(1, keepdims=True)]))
  mean, got = np.mean(each, 0), np.asarray(logits, np.float64)
  np.testing.assert_allclose(expit(got[:, :1]), mean[:, :1], rtol=1e-5)
  odds = np.exp(got[:, 1:] - got[:, 1:].max(1, keepdims=True))
  np.testing.assert_allclose(odds / odds.sum(1, keepdims=True), mean[:, 1:], rtol=1e-5)


@pytest.fixture(scope="module")
def ensemble_run(_config, tmp_path_factory):
  """Returns the work directory of a run with row-wise updates, its config and its results."""
  config = _config.copy_and_resolve_references()
  config.model.batch_ensemble, config.train.average_decay = COUNT, 0.9
  config.optimizer.embedding.updates, config.train.epochs = "rows", 2
  workdir = str(tmp_path_factory.mktemp("ensemble") / "run")
  return workdir, config, loop.train_and_evaluate(config, workdir)


def test_a_run_is_evaluated_scored_and_exported_alike(ensemble_run, raw, tmp_path):
  workdir, config, results = ensemble_run
  predictor = Predictor(workdir)
  rows = np.load(os.path.join(config.data_dir, "test", "rows.npy"))
  frame = read_frame(raw[1], COLUMNS).iloc[rows]
  metrics = evaluate(predictor, frame)
  del metrics["notes"]
  assert metrics == pytest.approx(results["test"], abs=1e-6, nan_ok=True)
  assert results["gates"]["gates/income_50k/used_experts"] > 0
  out = str(tmp_path / "exported")
  export(predictor, out, ["stablehlo"])
  with open(os.path.join(out, "model.json")) as file:
    assert json.load(file)["model"] == f"MMoE, a batch ensemble of {COUNT}"
  scores = exported.Model(out)(frame.head(20).to_dict("records"))
  expected = predictor(frame.head(20))
  for task in expected.columns:
    np.testing.assert_allclose(scores[task], expected[task], atol=1e-6)


def test_every_member_learns(config):
  config.model.batch_ensemble = COUNT
  schema, splits = data.load(config.data_dir, **config.data)
  run = compile_run(config, schema, splits["train"])
  before = jax.device_get(run.state.params[MEMBERS])
  state, _ = run.train_epoch(run.state, 1)
  after = jax.device_get(state.params[MEMBERS])
  for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
    changes = np.abs(new - old).reshape(COUNT, -1).max(1)
    assert (changes > 1e-3).all()
    assert len(set(changes.tolist())) == COUNT


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["gradnorm", "pcgrad"])
def test_task_weightings_and_populations_of_batch_ensembles(config, tmp_path, weighting):
  from configs import census

  config.model.batch_ensemble, config.train.epochs = COUNT, 1
  config.loss.weighting = {"name": weighting, **census.WEIGHTINGS[weighting]}
  population.train_population(config, [{"seed": 0}, {"seed": 1}], str(tmp_path / "both"))
  config.seed = 1
  alone = loop.train_and_evaluate(config, str(tmp_path / "alone"))
  with open(tmp_path / "both" / "results.json") as file:
    member = json.load(file)["members"][1]
  assert member["test"] == pytest.approx(alone["test"], abs=2e-3, nan_ok=True)


@pytest.mark.parametrize("members", [0, 2.0, "8", 5000, True])
def test_numbers_of_members_that_are_refused(members):
  schema = schema_of(SIZES, NUMBERS, 2)
  with pytest.raises(
    UserError, match=r"config\.model\.batch_ensemble = .*: must be a whole number"
  ):
    models.check_model(settings_of("mmoe", batch_ensemble=members, embedding_dim_of={}), schema)


def test_a_model_without_towers_is_refused():
  class Linear(models.Model):
    @models.base.nn.compact
    def __call__(self, features, train=False):
      return models.base.nn.Dense(2)(features["numeric"])

  model = Linear(SIZES, (1, 1), (4, 4))
  ensemble = models.BatchEnsemble(model, 2, schema_of(SIZES, NUMBERS, 2).tasks)
  with pytest.raises(UserError, match="last part is mmoe_jax"):
    ensemble.init(KEY, batch(reference.fresh_rng(), SIZES, 2, NUMBERS))
