"""Losses against float64 NumPy."""

import numpy as np

from mmoe_jax import losses
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


def test_rows_without_a_label_weigh_nothing_for_that_task_alone():
  labels = np.int8([[1, -1], [0, 1], [-1, 0]])
  weights = losses.label_weights(labels, np.float32([1, 2, 4]))
  np.testing.assert_array_equal(weights, [[1, 0], [2, 2], [0, 4]])


def test_weighted_mean_is_by_task_and_zero_without_weight():
  values, weights = np.float32([[1, 5], [3, 7]]), np.float32([[1, 0], [3, 0]])
  np.testing.assert_allclose(losses.weighted_mean(values, weights), [2.5, 0])


def test_a_loss_that_is_not_finite_stays_visible():
  values, weights = np.float32([[np.inf, 1], [3, np.nan]]), np.ones((2, 2), np.float32)
  assert not np.isfinite(losses.weighted_mean(values, weights)).any()
