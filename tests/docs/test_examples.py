"""Examples of the documentation run: a model, a loss, an epoch without the loop."""

import jax
import numpy as np
import pytest

from docs.examples import focal_loss, one_epoch, skip_mmoe
from mmoe_jax import data, models
from mmoe_jax.models import registry
from mmoe_jax.training import losses, run
from tests.models.test_models import KEY, SETTINGS, batch, schema_of
from tests.reference import fresh_rng


def train(config):
  """Trains an epoch; returns the losses of its steps."""
  schema, splits = data.load(config.data_dir, **config.data)
  compiled = run.compile_run(config, schema, splits["train"])
  return compiled.train_epoch(compiled.state, 1)[1].losses


def test_the_example_of_a_model_has_the_signature_of_all_models(monkeypatch):
  monkeypatch.setitem(registry.MODELS, "skip_mmoe", skip_mmoe.SkipMMoE)
  settings = SETTINGS | {"name": "skip_mmoe", "experts": 3, "skip_dropout": 0.5}
  schema = schema_of((5, 6), 2, 2)
  models.check_model(settings, schema)
  model, features = models.create_model(settings, schema), batch(fresh_rng(), (5, 6), 4, 2)
  variables = jax.jit(model.init)(KEY, features)
  apply = jax.jit(lambda v, f: model.apply(v, f, mutable=["intermediates"]))
  logits, sown = apply(variables, features)
  (gates_TxBxE,) = sown["intermediates"]["gates"]
  assert logits.shape == (4, 2)
  np.testing.assert_allclose(gates_TxBxE.sum(2), np.ones((2, 4)), rtol=1e-6)


@pytest.mark.slow
def test_the_example_of_a_model_trains(config, monkeypatch):
  monkeypatch.setitem(registry.MODELS, "skip_mmoe", skip_mmoe.SkipMMoE)
  for setting in ("gate_dropout", "exclusivity", "gate_hidden"):
    del config.model[setting]
  config.model.name, config.model.skip_dropout = "skip_mmoe", 0.5
  losses_SxT = train(config)
  assert losses_SxT[-1].mean() < losses_SxT[0].mean()


def test_the_example_of_a_loss_is_its_formula_without_effect_of_missing_labels():
  rng = fresh_rng()
  logits = np.float32(rng.normal(size=(20, 2)) * 5)
  labels = np.float32(rng.integers(0, 2, (20, 2)))
  p_y = 1 / (1 + np.exp(np.where(labels == 1, -1, 1) * np.float64(logits)))
  got = focal_loss.focal_loss(logits, labels)
  np.testing.assert_allclose(got, -((1 - p_y) ** 2) * np.log(p_y), rtol=1e-4, atol=1e-6)
  labels[0] = np.nan
  slopes = jax.grad(lambda z: focal_loss.focal_loss(z, labels).sum())(logits)
  assert not np.any(slopes[0])
  assert np.isfinite(slopes).all()


@pytest.mark.slow
def test_the_example_of_a_loss_trains(config, monkeypatch):
  monkeypatch.setitem(losses._OF_ONE_OUTPUT, "binary", focal_loss.focal_loss)
  losses_SxT = train(config)
  assert losses_SxT[-1].mean() < losses_SxT[0].mean()


@pytest.mark.slow
def test_the_example_of_an_epoch_returns_an_auc(prepared):
  assert 0.4 < one_epoch.train_one_epoch(prepared) <= 1
