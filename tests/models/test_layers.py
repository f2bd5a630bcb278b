"""Layers against NumPy, and known bugs of other code bases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmoe_jax.models import layers
from tests import reference

KEY = jax.random.key(0)


def init(module, x):
  return jax.jit(lambda x: module.init(KEY, x, False))(x)


def apply(module, variables, x, train, **options):
  return jax.jit(lambda variables, x: module.apply(variables, x, train, **options))(variables, x)


@pytest.mark.parametrize("norm", layers.NORMS)
def test_every_unit_of_every_expert_starts_different(norm):
  # Constant initialisation made them equal in PaddleRec #721; one seed for all did in DeepCTR.
  module = layers.ensemble(layers.Mlp, 5)((7,), norm=norm)
  x = jax.random.normal(KEY, (11, 6))
  params = init(module, x)["params"]
  units = np.asarray(params["Dense_0"]["kernel"]).transpose(0, 2, 1).reshape(5 * 7, 6)
  distance = np.abs(units[:, None] - units[None]).max(-1)
  assert (distance[~np.eye(35, dtype=bool)] > 1e-3).all()


def test_stacked_kernels_have_the_scale_of_single_ones():
  # If the experts' axis counted as fan-in, kernels would be too small by sqrt(64).
  x = jnp.zeros((1, 50))
  stack = init(layers.ensemble(layers.Mlp, 64)((30,)), x)["params"]
  assert stack["Dense_0"]["kernel"].shape == (64, 50, 30)
  np.testing.assert_allclose(np.std(stack["Dense_0"]["kernel"]), np.sqrt(1 / 50), rtol=0.05)


def test_ensemble_feeds_all_the_same_or_each_its_own():
  x = jax.random.normal(KEY, (3, 4, 6))
  shared = layers.ensemble(layers.Mlp, 3)((5,))
  own = layers.ensemble(layers.Mlp, 3, in_axes=0)((5,))
  variables = init(own, x)
  each = apply(own, variables, x, False)
  for i in range(3):
    alone = apply(shared, variables, x[i], False)[i]
    np.testing.assert_allclose(each[i], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", sorted(layers.ACTIVATIONS))
def test_mlp_is_dense_norm_activation_then_linear(activation):
  rng = reference.fresh_rng()
  x = rng.normal(size=(9, 6)).astype(np.float32)
  module = layers.Mlp((5,), out=2, activation=activation, norm="layer")
  params = jax.tree.map(np.asarray, init(module, x))["params"]
  h = reference.dense(params["Dense_0"], x.astype(np.float64))
  h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-6)
  h = np.asarray(layers.ACTIVATIONS[activation](jnp.asarray(h, jnp.float32)), np.float64)
  expected = reference.dense(params["Dense_1"], h)
  np.testing.assert_allclose(apply(module, {"params": params}, x, False), expected, atol=1e-5)


def test_mlp_without_layers_is_the_identity():
  x = jnp.ones((2, 3))
  assert layers.Mlp(()).apply({}, x, False) is x


def test_batch_norm_uses_the_batch_in_training_and_running_statistics_after():
  x = 5 + 3 * jax.random.normal(KEY, (256, 4))
  module = layers.Mlp((6,), activation="identity", norm="batch")
  variables = init(module, x)
  out, updated = apply(module, variables, x, True, mutable=["batch_stats"])
  np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(out.std(0), 1, atol=1e-3)
  still = apply(module, {**variables, **updated}, x, False)
  assert not np.allclose(still, out)


def test_dropout_only_acts_in_training_and_differs_between_experts():
  x = jnp.ones((64, 8))
  module = layers.ensemble(layers.Mlp, 2)((8,), activation="identity", dropout=0.5)
  variables = init(module, x)
  kept = apply(module, variables, x, True, rngs={"dropout": KEY}) != 0
  assert 0.4 < kept.mean() < 0.6
  assert (kept[0] != kept[1]).any()
  assert (apply(module, variables, x, False) != 0).all()


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("shape", [(1000, 33), (7, 11, 501)])
def test_dropout_keeps_the_mean_and_drops_units_independently(rate, shape):
  rounded = min(round(rate * 256), 255) / 256
  out = np.asarray(layers.Dropout(rate).apply({}, jnp.ones(shape), True, rngs={"dropout": KEY}))
  dropped = out == 0
  sigma = np.sqrt(rounded * (1 - rounded) / out.size)
  assert abs(dropped.mean() - rounded) <= 5 * sigma
  np.testing.assert_allclose(out[~dropped], 1 / (1 - rounded), rtol=1e-6)
  if 0 < rounded < 1:
    flat = dropped.reshape(-1).astype(float)
    for lag in (1, 2, 3, 4, shape[-1]):  # Four units share a word.
      assert abs(np.corrcoef(flat[:-lag], flat[lag:])[0, 1]) < 5 / np.sqrt(out.size)


def test_gates_sum_to_one_start_near_uniform_and_differ():
  # A saturated gate (MMoEEx) leaves experts without gradient.
  x = jax.random.normal(KEY, (500, 136))
  gates = layers.ensemble(layers.Gate, 2)(8)
  out = apply(gates, init(gates, x), x, False)
  np.testing.assert_allclose(out.sum(-1), 1, rtol=1e-5)
  assert out.min() > 0.5 / 8
  assert out.max() < 2 / 8
  assert np.abs(out[0] - out[1]).max() > 1e-3


def test_gate_is_softmax_of_a_linear_map():
  # torch-rechub puts batch norm before the softmax; the paper does not.
  rng = reference.fresh_rng()
  x = rng.normal(size=(20, 6)).astype(np.float32)
  gate = layers.Gate(4)
  params = {"Dense_0": {"kernel": rng.normal(size=(6, 4)).astype(np.float32)}}
  expected = reference.softmax(x.astype(np.float64) @ params["Dense_0"]["kernel"])
  np.testing.assert_allclose(apply(gate, {"params": params}, x, False), expected, atol=1e-6)
