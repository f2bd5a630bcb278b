"""Losses against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmoe_jax import data
from mmoe_jax.training import losses
from tests import reference


def test_cross_entropy_equals_numpy_and_survives_extreme_logits():
  rng = reference.fresh_rng()
  z = rng.normal(size=(40, 3)) * 5
  y = rng.integers(0, 2, (40, 3))
  p = 1 / (1 + np.exp(-z))
  expected = -(y * np.log(p) + (1 - y) * np.log(1 - p))
  got = losses.binary_cross_entropy(np.float32(z), np.int8(y))
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
  far = losses.binary_cross_entropy(np.float32([[1e4, -1e4]]), np.int8([[0, 0]]))
  np.testing.assert_allclose(far, [[1e4, 0]])


def test_rows_without_a_label_have_no_weight_for_that_task():
  labels = np.float32([[1, np.nan], [0, 1], [np.nan, 0]])
  weights = losses.label_weights(labels, np.float32([1, 2, 4]))
  np.testing.assert_array_equal(weights, [[1, 0], [2, 2], [0, 4]])


def test_weighted_mean_is_by_task_and_zero_without_weight():
  values, weights = np.float32([[1, 5], [3, 7]]), np.float32([[1, 0], [3, 0]])
  np.testing.assert_allclose(losses.weighted_mean(values, weights), [2.5, 0])


def test_a_loss_that_is_not_finite_stays_visible():
  values, weights = np.float32([[np.inf, 1], [3, np.nan]]), np.ones((2, 2), np.float32)
  assert not np.isfinite(losses.weighted_mean(values, weights)).any()


BINARY = data.Task("b", "b", ("1",), ("0",))
CLASSES = data.Task("c", "c", kind="multiclass", classes=tuple("pqrst"))
NUMBER = data.Task("n", "n", kind="regression")


def test_softmax_cross_entropy_equals_numpy_and_survives_extreme_logits():
  rng = reference.fresh_rng()
  z = rng.normal(size=(50, 5)) * 5
  y = rng.integers(0, 5, 50)
  expected = -np.log(reference.softmax(z)[np.arange(50), y])
  got = losses.softmax_cross_entropy(np.float32(z), np.float32(y))
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
  far = losses.softmax_cross_entropy(np.float32([[1e4, -1e4], [1e4, -1e4]]), np.float32([1, 0]))
  np.testing.assert_allclose(far, [2e4, 0])


def test_squared_error_equals_numpy():
  rng = reference.fresh_rng()
  z, y = rng.normal(size=(2, 40, 3))
  got = losses.squared_error(np.float32(z), np.float32(y))
  np.testing.assert_allclose(got, (z - y) ** 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tasks", [(BINARY, CLASSES, NUMBER), (CLASSES, NUMBER, CLASSES, BINARY)])
def test_each_task_has_the_loss_of_its_kind_on_its_own_outputs(tasks):
  rng = reference.fresh_rng()
  logits = rng.normal(size=(30, sum(t.outputs for t in tasks)))
  sizes = {"binary": 2, "multiclass": 5}
  labels = np.stack(
    [
      rng.normal(size=30) if t.kind == "regression" else rng.integers(0, sizes[t.kind], 30)
      for t in tasks
    ],
    1,
  )
  missing = rng.random(labels.shape) < 0.3
  got = losses.elementwise(tasks)(np.float32(logits), np.float32(np.where(missing, np.nan, labels)))
  start = 0
  for t, task in enumerate(tasks):
    z, y = logits[:, start : start + task.outputs], labels[:, t]
    start += task.outputs
    if task.kind == "binary":
      expected = np.logaddexp(0, np.where(y == 1, -z[:, 0], z[:, 0]))
    elif task.kind == "regression":
      expected = (z[:, 0] - y) ** 2
    else:
      expected = -np.log(reference.softmax(z)[np.arange(30), y.astype(int)])
    expected = np.where(missing[:, t], 0, expected)
    np.testing.assert_allclose(got[:, t], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [(BINARY,) * 3, (NUMBER,) * 3, (BINARY, CLASSES, NUMBER)])
def test_missing_labels_have_no_gradient_and_spoil_none(kind):
  rng = reference.fresh_rng()
  logits = jnp.float32(rng.normal(size=(8, sum(t.outputs for t in kind))))
  labels = np.ones((8, 3), np.float32)
  labels[2:5] = np.nan
  labels[6, 1] = np.nan
  value, grads = jax.value_and_grad(lambda z: losses.elementwise(kind)(z, labels).sum())(logits)
  assert np.isfinite(value)
  np.testing.assert_array_equal(grads[2:5], 0)
  middle = slice(1, 1 + kind[1].outputs)
  np.testing.assert_array_equal(grads[6, middle], 0)
  assert (np.asarray(grads)[[0, 1, 5, 7]] != 0).all()


def test_penalties_are_weighted_means_over_rows():
  rng = reference.fresh_rng()
  rows, weights = rng.normal(size=20), rng.random(20)
  weights[:5] = 0  # Filler rows.
  rows[:5] = 1e6
  total = losses.penalty(
    {"a": (jnp.float32(rows),), "b": (jnp.float32(2.0),)}, jnp.float32(weights)
  )
  np.testing.assert_allclose(total, (rows * weights).sum() / weights.sum() + 2, rtol=1e-5)
  assert losses.penalty({}, jnp.float32(weights)) == 0
