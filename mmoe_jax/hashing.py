"""A hash of 32-bit integers, for orders of rows and dropout: a few operations each."""

import jax
import jax.numpy as jnp

Array = jax.Array


def scramble(x: Array) -> Array:
  """Maps uint32 to uint32 one to one: the finaliser of MurmurHash3 (Appleby 2011).

  Every bit of the input reaches every bit of the output.
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
