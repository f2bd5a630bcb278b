"""Hand-made kernels: each replaces a plain JAX expression because it is faster on a CPU.

A kernel stays only while it makes an epoch of configs/census.py at least 5 % faster; the gains in
the docstrings are medians of interleaved epochs on one CPU core, see benchmarks/README.md.

Shape letters: B rows, E experts, T tasks, H hidden units.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def scramble(x: Array) -> Array:
  """Maps uint32 to uint32 one to one: the finaliser of MurmurHash3 (Appleby 2011).

  Every bit of the input affects every bit of the output, in a few operations. It serves random
  bytes for dropout (`keep_mask`) and orders of rows (training/shuffle.py).
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def keep_count(rate: float | Array) -> int | Array:
  """Returns how many of 256 units dropout keeps at a rate, at least 1."""
  if isinstance(rate, jax.Array):
    return 256 - jnp.minimum(jnp.round(rate * 256), 255).astype(jnp.int32)
  # In float32, so that concrete and traced rates round alike.
  return 256 - min(int(np.round(np.float32(rate) * 256)), 255)


def keep_mask(
  key: Array, kept: int | Array, shape: Sequence[int], axis_name: str | None = None
) -> Array:
  """Returns a random mask that is true with probability kept / 256.

  One random byte per unit decides: a hash of the unit's number under two random words. Equivalent
  to `jax.random.bits(key, shape, jnp.uint8) < kept`, whose generator (Threefry) makes an epoch 28 %
  slower.

  Args:
    key: random key.
    kept: from 1 to 256, see `keep_count`.
    shape: shape of the mask; rows are its first axis.
    axis_name: device axis that rows are sharded over, if any. Units are numbered over all devices,
      so that a row's mask does not depend on the number of devices.
  """
  size = math.prod(shape)
  first, second = jax.random.bits(key, (2,), jnp.uint32)
  before = 0 if axis_name is None else jax.lax.axis_index(axis_name).astype(jnp.uint32) * size
  # A word has the bytes of four units; the first unit of a device may be within one.
  is_within = axis_name is not None and size % 4 != 0
  numbers = before // 4 + jax.lax.iota(jnp.uint32, -(-size // 4) + is_within)
  words = scramble(scramble(numbers ^ first) + second)
  random_bytes = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)
  if is_within:
    random_bytes = jax.lax.dynamic_slice(random_bytes, (before % 4,), (size,))
  return random_bytes[:size].reshape(shape) <= jnp.uint8(kept - 1)


def mixture(gates_TxBxE: Array, experts_ExBxH: Array) -> Array:
  """Mixes experts by gates: f^k(x) = sum over i of g^k(x)_i f_i(x) (Ma et al. 2018, equation 6).

  Equivalent to `jnp.einsum("tbe,ebh->tbh", gates_TxBxE, experts_ExBxH)`, which becomes one small
  matrix product per row and makes an epoch 5 % slower than this sum.

  Returns:
    (T, B, H), the mixture of each task.
  """
  gates_TxExBx1 = gates_TxBxE.swapaxes(1, 2)[..., None]
  return (gates_TxExBx1 * experts_ExBxH[None]).sum(1)
