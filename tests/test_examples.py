"""Examples run: a loss, an epoch without the loop; tests/test_library.py has the model."""

import jax
import numpy as np
import pytest

from examples import one_epoch, own_loss
from mmoe_jax import data
from mmoe_jax.training import losses, run
from tests.reference import fresh_rng


def train(config):
  """Trains an epoch; returns the losses of its steps."""
  schema, splits = data.load(config.data_dir, **config.data)
  compiled = run.compile_run(config, schema, splits["train"])
  return compiled.train_epoch(compiled.state, 1)[1].losses


def test_the_example_of_a_loss_is_its_formula_without_effect_of_missing_labels():
  rng = fresh_rng()
  logits = np.float32(rng.normal(size=(20, 2)) * 5)
  labels = np.float32(rng.integers(0, 2, (20, 2)))
  p_y = 1 / (1 + np.exp(np.where(labels == 1, -1, 1) * np.float64(logits)))
  got = own_loss.focal_loss(logits, labels)
  np.testing.assert_allclose(got, -((1 - p_y) ** 2) * np.log(p_y), rtol=1e-4, atol=1e-6)
  labels[0] = np.nan
  slopes = jax.grad(lambda z: own_loss.focal_loss(z, labels).sum())(logits)
  assert not np.any(slopes[0])
  assert np.isfinite(slopes).all()


@pytest.mark.slow
def test_the_example_of_a_loss_trains(config, monkeypatch):
  monkeypatch.setitem(losses._OF_ONE_OUTPUT, "binary", own_loss.focal_loss)
  losses_SxT = train(config)
  assert losses_SxT[-1].mean() < losses_SxT[0].mean()


@pytest.mark.slow
def test_the_example_of_an_epoch_returns_an_auc(prepared):
  assert 0.4 < one_epoch.train_one_epoch(prepared) <= 1
