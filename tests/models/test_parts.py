"""Parts of single models, and the options of gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmoe_jax.models import baselines, dselect_k, layers, snr
from tests import reference
from tests.models.test_models import KEY


def init(module, x):
  return jax.jit(lambda x: module.init(KEY, x, False))(x)


def test_tucker_kernels_start_with_the_scale_of_dense_ones():
  # Factors with a variance of 1 / size would reduce the variance of the output.
  x = jax.random.normal(KEY, (2, 200, 300))
  layer = baselines.TuckerDense(400, (40, 50, 2))
  run = jax.jit(lambda key, x: layer.apply(layer.init(key, x), x))
  outs = [run(key, x) for key in jax.random.split(KEY, 4)]
  np.testing.assert_allclose(np.std(outs), 1, rtol=0.3)


@pytest.mark.parametrize("log_alpha", [-1.0, 0.0, 2.0])
def test_connections_open_as_often_as_the_penalty_says(log_alpha):
  count = 20000
  params = {"kernel": jnp.ones((1, count, 1, 1)), "log_alpha": jnp.full((1, count), log_alpha)}
  run = jax.jit(snr.Connections(count).apply, static_argnums=2)
  z, is_open = run({"params": params}, jnp.ones((1, 1, 1)), True, rngs={"shared": KEY})
  u = reference.fresh_rng().uniform(size=10**6)
  s = 1 / (1 + np.exp(-(np.log(u) - np.log1p(-u) + log_alpha) / (2 / 3)))
  drawn = np.clip(1.2 * s - 0.1, 0, 1)
  sigmas = 6 / np.sqrt(count)
  assert abs(float((z > 0).mean()) - float(is_open) / count) < sigmas / 2
  for statistic in (lambda a: (a == 0).mean(), lambda a: (a == 1).mean(), lambda a: a.mean()):
    assert abs(statistic(np.asarray(z)) - statistic(drawn)) < sigmas / 2
  still, _ = run({"params": params}, jnp.ones((1, 1, 1)), False)
  np.testing.assert_allclose(still, np.clip(1.2 / (1 + np.exp(-log_alpha)) - 0.1, 0, 1), rtol=1e-5)


def test_smooth_step_is_a_step_with_a_smooth_middle():
  t = jnp.array([-9.0, -1.0, -0.5, 0.0, 0.5, 1.0, 9.0])
  step = dselect_k.smooth_step(t, 2.0)
  np.testing.assert_allclose(step, [0, 0, 0.15625, 0.5, 0.84375, 1, 1])
  slopes = jax.jit(jax.vmap(jax.grad(lambda t: dselect_k.smooth_step(t, 2.0))))(t)
  np.testing.assert_allclose(slopes, [0, 0, 0.5625, 0.75, 0.5625, 0, 0], atol=1e-6)


@pytest.mark.parametrize("experts", [4, 5, 6, 8])
def test_decided_selectors_pick_one_expert_each(experts):
  gate = dselect_k.SelectGate(experts, 2)
  codes = np.full((1, 2 * (experts - 1).bit_length()), -9.0)
  bits = codes.shape[1] // 2
  codes[0, bits + 1] = 9.0  # The first selector selects expert 0, the second expert 2.
  params = {"codes": {"kernel": jnp.float32(codes)}, "mixture": {"kernel": jnp.zeros((1, 2))}}
  apply = jax.jit(gate.apply, static_argnums=2)
  weights, selections = apply({"params": params}, jnp.ones((1, 1)), True)
  np.testing.assert_array_equal(weights[0], 0.5 * (np.eye(experts)[0] + np.eye(experts)[2]))
  np.testing.assert_array_equal(selections[0], np.eye(experts)[[0, 2]])


def test_gate_dropout_renormalises_over_the_experts_that_are_left():
  x = reference.fresh_rng().normal(size=(5000, 6)).astype(np.float32)
  gate = layers.Gate(4, dropout=0.5)
  variables, apply = init(gate, x), jax.jit(gate.apply, static_argnums=2)
  whole = np.asarray(apply(variables, x, False), np.float64)
  left = np.asarray(apply(variables, x, True, rngs={"dropout": KEY}))
  open_ = left > 0
  expected = whole * open_ / (whole * open_).sum(1, keepdims=True)
  np.testing.assert_allclose(left, expected, rtol=1e-5)
  # Half are dropped, but a row that would lose all four keeps them.
  assert abs(open_.mean() - (0.5 + 1 / 16)) < 0.02


def test_gate_dropout_never_takes_all_and_no_invisible_expert_comes_back():
  x = jnp.ones((2000, 3))
  gate = layers.Gate(4, dropout=0.99)
  variables, apply = init(gate, x), jax.jit(gate.apply, static_argnums=2)
  visible = jnp.array([True, False, True, False])
  out = apply(variables, x, True, visible, rngs={"dropout": KEY})
  np.testing.assert_allclose(out.sum(1), 1, rtol=1e-6)
  assert float(jnp.abs(out[:, 1::2]).max()) == 0
  still = apply(variables, x, False, visible)
  np.testing.assert_allclose(still[:, ::2], 0.5, atol=0.02)
  first = lambda v: gate.apply(v, x, True, visible, rngs={"dropout": KEY})[:, 0].sum()
  grads = jax.jit(jax.grad(first))(variables)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.1, 0.3, 0.5, 0.501953125, 0.9, 0.999])
def test_a_traced_rate_drops_the_same_units(rate):
  x = jax.random.normal(KEY, (40, 5))
  drop = lambda rate: layers.Dropout(rate).apply({}, x, True, rngs={"dropout": KEY})
  np.testing.assert_array_equal(jax.jit(drop)(rate), jax.jit(lambda: drop(rate))())
