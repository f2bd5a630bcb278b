"""Rows drawn on the device against the NumPy generator and the engine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from data_prep import synthetic
from mmoe_jax.training import train_rows
from mmoe_jax.training.step import Batch, DrawnRows, TaskLosses, make_train_epoch
from studies import fresh_rows
from tests import reference

ROWS = 100_000


@functools.partial(jax.jit, static_argnums=2)
def drawn(task, key, rows):
  return fresh_rows.draw(task, key, rows)


def task_of(seed, correlation, **changes):
  _, splits = fresh_rows.splits(seed, correlation, rows=10, held_out=5)
  return splits["train"].arguments | changes


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 1.0])
def test_the_distribution_is_that_of_the_numpy_generator(correlation):
  seed = int(reference.fresh_rng().integers(2**31))
  task = task_of(seed, correlation)
  got = np.asarray(drawn(task, jax.random.key(seed), ROWS).labels, np.float64)
  _, expected = synthetic.generate(seed, ROWS, correlation)
  for k in range(2):
    # Six standard errors of each moment's difference; the moments' variances are the sample's.
    for power in (1, 2, 3, 4):
      a, b = got[:, k] ** power, expected[:, k] ** power
      assert abs(a.mean() - b.mean()) < 6 * np.sqrt((a.var() + b.var()) / ROWS)
    assert stats.ks_2samp(got[:, k], expected[:, k]).pvalue > 1e-6
  pearson = np.corrcoef(got.T)[0, 1]
  assert pearson == pytest.approx(synthetic.label_correlation(correlation), abs=0.02)
  products, others = got.prod(1), expected.prod(1)
  error = np.sqrt((products.var() + others.var()) / ROWS)
  assert abs(products.mean() - others.mean()) < 6 * error


def test_labels_are_the_formula_and_noise_has_its_variance():
  seed = int(reference.fresh_rng().integers(2**31))
  batch = drawn(task_of(seed, 0.5), jax.random.key(seed), ROWS)
  x = np.asarray(batch.features["numeric"], np.float64)
  s = x @ synthetic.weight_vectors(np.random.default_rng(seed), 0.5).T
  clean = s + sum(np.sin(a * s + b) for a, b in zip(synthetic.ALPHA, synthetic.BETA, strict=True))
  noise = np.asarray(batch.labels) - clean
  np.testing.assert_allclose(noise.mean(0), 0, atol=6 * 0.1 / np.sqrt(ROWS))
  np.testing.assert_allclose(noise.var(0), 0.01, rtol=6 * np.sqrt(2 / ROWS))
  assert abs(np.corrcoef(noise.T)[0, 1]) < 6 / np.sqrt(ROWS)
  assert abs(np.corrcoef(noise[:, 0], s[:, 0])[0, 1]) < 6 / np.sqrt(ROWS)
  assert stats.kstest(noise[:, 0] / 0.1, "norm").pvalue > 1e-6
  np.testing.assert_allclose(np.cov(x.T), np.eye(100), atol=0.03)
  assert stats.kstest(x[:500].ravel(), "norm").pvalue > 1e-6
  np.testing.assert_array_equal(batch.weights, 1)


def test_streams_and_keys_give_other_rows_of_the_same_task():
  task, key = task_of(1, 0.9), jax.random.key(5)
  first, again = (drawn(task, key, 4).labels for _ in range(2))
  np.testing.assert_array_equal(first, again)
  other = drawn(task | {"stream": np.uint32(1)}, key, 4).labels
  later = drawn(task, jax.random.key(6), 4).labels
  assert not np.isclose(first, other).any()
  assert not np.isclose(first, later).any()


def test_held_out_rows_are_those_of_the_same_tasks():
  _, splits = fresh_rows.splits(3, 0.7, rows=10, held_out=2000)
  weights = splits["train"].arguments["weights"]
  for name in ("validation", "test"):
    s = splits[name].features["numeric"] @ weights.T
    waves = sum(np.sin(a * s + b) for a, b in zip(synthetic.ALPHA, synthetic.BETA, strict=True))
    assert (splits[name].labels - s - waves).std() == pytest.approx(0.1, rel=0.06)
  assert not np.isclose(splits["validation"].labels, splits["test"].labels).any()


def collect(count, batch_size, key, **arguments):
  """Returns the rows (S, B, 3) and weights (S, B) of an epoch of drawn rows."""

  def draw(offset, key, rows):
    x_Bx3 = offset + jax.random.normal(key, (rows, 3))
    features = {"ids": jnp.zeros((rows, 0), jnp.uint8), "numeric": x_Bx3}
    return Batch(features, x_Bx3[:, :1], jnp.ones(rows))

  def step(state, batch, key):
    return state + 1, TaskLosses(batch.features["numeric"], batch.weights)

  rows = DrawnRows(jnp.float32(10), draw, count)
  return make_train_epoch(step, batch_size)(jnp.int32(0), rows, key, **arguments)


def test_an_epoch_never_draws_a_row_twice_and_counts_each_once():
  steps, (first, weights) = collect(1000, 64, jax.random.key(0))
  assert steps == 16
  assert weights.sum() == 1000
  np.testing.assert_array_equal(weights[-1], np.arange(64) < 1000 - 15 * 64)
  _, (second, _) = collect(1000, 64, jax.random.key(1))
  values = np.concatenate([first, second]).reshape(-1, 3)
  assert len(np.unique(values, axis=0)) == len(values) == 2048
  assert values.mean() == pytest.approx(10, abs=0.1)


def test_segments_of_an_epoch_draw_the_same_rows():
  key = jax.random.key(4)
  _, (whole, _) = collect(640, 64, key)
  parts = [collect(640, 64, key, first=f, steps=s)[1].losses for f, s in ((0, 3), (3, 7))]
  np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_one_row_for_the_initialisation_has_the_shapes():
  _, splits = fresh_rows.splits(3, 0.7, rows=10, held_out=5)
  features = train_rows.first_features(splits["train"])
  assert features["ids"].shape == (1, 0)
  assert features["numeric"].shape == (1, 100)
