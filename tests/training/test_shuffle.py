"""Shuffle: a bijection, different for each key, and uniform."""

import jax
import numpy as np
import pytest
from scipy import stats

from mmoe_jax.training.shuffle import permutation, permute


@pytest.mark.parametrize(
  "n", [1, 2, 3, 5, 16, 17, 1000, 65_535, 65_536, 65_537, 199_523, 1_100_009]
)
def test_every_number_once(n):
  order = permutation(jax.random.key(n), n)
  np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_keys_give_orders_without_relation():
  n = 10_000
  a, b = (np.asarray(permutation(jax.random.key(k), n)) for k in (0, 1))
  assert (a == b).mean() < 0.01
  assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
  assert abs(np.corrcoef(a, np.arange(n))[0, 1]) < 0.05
  assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 0.05


@pytest.mark.parametrize("n", [5, 6, 7, 8, 9, 13])
def test_every_place_gets_every_number_equally_often(n):
  keys = jax.random.split(jax.random.key(3), 20_000)
  orders = np.asarray(jax.vmap(lambda key: permutation(key, n))(keys))
  for place in range(n):
    counts = np.bincount(orders[:, place], minlength=n)
    assert stats.chisquare(counts).pvalue > 1e-5
  # Pairs, too: n (n − 1) ordered pairs on the first two places.
  pairs = np.bincount(orders[:, 0] * n + orders[:, 1], minlength=n * n)
  assert stats.chisquare(pairs[pairs > 0]).pvalue > 1e-5
  assert (pairs > 0).sum() == n * (n - 1)


def test_a_billion_rows_stay_in_range():
  # The network at the largest size, on some of the numbers.
  n = 2**30
  some = np.unique(np.random.default_rng(0).integers(0, n, 100_000)).astype(np.uint32)
  moved = np.asarray(jax.jit(lambda key: permute(key, n, some))(jax.random.key(1)))
  assert (moved < n).all()
  assert len(np.unique(moved)) == len(some)
  assert stats.kstest(moved / n, "uniform").pvalue > 1e-3


def test_batches_are_even_samples():
  n, batch = 50_000, 500
  order = np.asarray(permutation(jax.random.key(5), n))
  means = order.reshape(-1, batch).mean(1)
  spread = np.sqrt((n**2 - 1) / 12 / batch * (n - batch) / (n - 1))
  assert stats.kstest((means - (n - 1) / 2) / spread, "norm").pvalue > 1e-3
