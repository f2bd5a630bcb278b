"""Kernels: the hash is one to one, and masks are random."""

import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax.models import kernels
from mmoe_jax.models.kernels import scramble
from tests import reference


def bits(x: np.ndarray) -> np.ndarray:
  return (np.asarray(x)[:, None] >> np.arange(32, dtype=np.uint32)) & 1


def test_it_is_one_to_one():
  hashed = np.asarray(scramble(jnp.arange(1 << 18, dtype=jnp.uint32)))
  assert len(np.unique(hashed)) == 1 << 18


def test_every_input_bit_flips_each_output_bit_half_of_the_time():
  x = reference.fresh_rng().integers(0, 2**32, 4000, np.uint32)
  for bit in range(32):
    flipped = np.asarray(scramble(x)) ^ np.asarray(scramble(x ^ np.uint32(1 << bit)))
    assert np.abs(bits(flipped).mean(0) - 0.5).max() < 0.06


def test_masks_are_random_and_independent():
  """Shares are correct; units, steps and experts are independent."""
  rate, shape = 0.3, (64, 500)
  keys = jax.random.split(jax.random.key(int(reference.fresh_rng().integers(2**31))), 40)
  kept = kernels.keep_count(rate)
  masks = np.stack([kernels.keep_mask(key, kept, shape) for key in keys]).astype(float)
  share = kept / 256
  deviation = np.sqrt(share * (1 - share))
  assert abs(masks.mean() - share) < 5 * deviation / np.sqrt(masks.size)
  centred = (masks - share) / deviation
  for axis, lag in ((0, 1), (1, 1), (2, 1), (2, 4), (1, 7)):
    ahead = np.roll(centred, lag, axis)
    assert abs((centred * ahead).mean()) < 5 / np.sqrt(masks.size)
  # Sums over rows have the spread of independent draws.
  spread = masks.sum(1).var() / (shape[0] * share * (1 - share))
  assert abs(spread - 1) < 0.06
