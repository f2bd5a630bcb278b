"""Optimizers: FTRL against its algorithm, groups, schedules, and wrong settings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmoe_jax.errors import UserError
from mmoe_jax.training import checks, optimizer
from tests import reference

ADAM = {
  "name": "adam",
  "learning_rate": 0.1,
  "weight_decay": 0.0,
  "schedule": "constant",
  "warmup_epochs": 0.0,
}
PARAMS = {
  "embedding": {"table_4": jnp.ones((3, 4))},
  "experts": {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}},
}


def create(dense=None, embedding=None, clip_norm=0.0, steps=10, epochs=10):
  settings = {"dense": {**ADAM, **(dense or {})}, "embedding": {**ADAM, **(embedding or {})}}
  return optimizer.create_optimizer({**settings, "clip_norm": clip_norm}, steps, epochs)


@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (1.0, 120.0), (0.3, 0.1)])
def test_ftrl_equals_its_algorithm(l1, l2):
  rng = reference.fresh_rng()
  w = rng.normal(size=6).astype(np.float32)
  w[0] = 0
  gradients = rng.normal(size=(30, 6)).astype(np.float32)
  tx = optimizer.ftrl(0.5, 1.0, l1, l2)
  state, got = tx.init(jnp.asarray(w)), jnp.asarray(w)
  for g in gradients:
    updates, state = tx.update(jnp.asarray(g), state, got)
    got = optax.apply_updates(got, updates)
  expected = reference.ftrl(w, gradients.astype(np.float64), 0.5, 1.0, l1, l2)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_ftrl_with_l1_gives_zeros_and_without_gradient_stays():
  tx = optimizer.ftrl(0.5, 1.0, l1=5.0, l2=0.0)
  w = jnp.array([0.1, -0.2])
  updates, _ = tx.update(jnp.zeros(2), tx.init(w), w)
  np.testing.assert_allclose(updates, 0, atol=1e-7)
  updates, _ = tx.update(jnp.array([1.0, -1.0]), tx.init(w), w)
  np.testing.assert_array_equal(w + updates, 0)


def test_groups_have_their_own_optimizers():
  ftrl = {"name": "ftrl", "learning_rate": 0.5, "beta": 1.0, "l1": 0.0, "l2": 0.0}
  settings = {"dense": ADAM, "embedding": ftrl, "clip_norm": 0.0}
  tx = optimizer.create_optimizer(settings, 10, 10)
  grads = jax.tree.map(jnp.ones_like, PARAMS)
  updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
  np.testing.assert_allclose(updates["experts"]["Dense_0"]["kernel"], -0.1, rtol=1e-4)
  expected = reference.ftrl([1.0], [[1.0]], 0.5, 1.0, 0.0, 0.0) - 1
  np.testing.assert_allclose(updates["embedding"]["table_4"], expected[0], rtol=1e-5)


def test_weight_decay_shrinks_kernels_and_tables_and_no_bias():
  tx = create({"weight_decay": 0.5}, {"weight_decay": 0.25})
  grads = jax.tree.map(jnp.zeros_like, PARAMS)
  updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
  np.testing.assert_allclose(updates["experts"]["Dense_0"]["kernel"], -0.1 * 0.5)
  np.testing.assert_allclose(updates["embedding"]["table_4"], -0.1 * 0.25)
  np.testing.assert_array_equal(updates["experts"]["Dense_0"]["bias"], 0)


def test_clipping_bounds_the_norm_of_the_whole_gradient():
  tx = create({"name": "sgd"}, {"name": "sgd"}, clip_norm=1.0)
  grads = jax.tree.map(lambda p: 100 * jnp.ones_like(p), PARAMS)
  updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
  np.testing.assert_allclose(optax.tree.norm(updates), 0.1, rtol=1e-5)


@pytest.mark.parametrize("name", optimizer.SCHEDULES)
def test_schedule_warms_up_then_runs_its_course(name):
  rate = [float(optimizer.create_schedule(name, 2.0, 4, 20)(step)) for step in range(21)]
  np.testing.assert_allclose(rate[:5], [0.5, 1.0, 1.5, 2.0, 2.0])
  middle, end = {"constant": (2, 2), "cosine": (1, 0), "linear": (1, 0)}[name]
  np.testing.assert_allclose((rate[12], rate[20]), (middle, end), atol=1e-6)


def test_schedule_without_warm_up_starts_at_its_peak():
  assert float(optimizer.create_schedule("cosine", 2.0, 0, 20)(0)) == 2.0


@pytest.mark.parametrize("name", [n for n in optimizer.OPTIMIZERS if n != "ftrl"])
def test_every_optimizer_descends(name):
  rate = {"learning_rate": 0.05}
  tx = create({"name": name, **rate}, {"name": name, **rate}, steps=100)
  loss = lambda p: sum((x**2).sum() for x in jax.tree.leaves(p))
  params, state = PARAMS, tx.init(PARAMS)
  for _ in range(50):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    params = optax.apply_updates(params, updates)
  assert loss(params) < 0.5 * loss(PARAMS)


@pytest.mark.parametrize(
  ("dense", "message"),
  [
    ({"name": "adma"}, r"config\.optimizer\.dense\.name is 'adma', .*did you mean 'adam'"),
    ({"esp": 0.9}, r"config\.optimizer\.dense\.esp: not a setting of 'adam'; did you mean 'eps'"),
    ({"learning_rate": 0.0}, "learning_rate = 0.0: must be above 0"),
    ({"learning_rate": -1.0}, "learning_rate = -1.0: must be a number >= 0"),
    ({"schedule": "cos"}, "did you mean 'cosine'"),
    ({"b2": 1.5}, r"b2 = 1.5: must be in \[0, 1\)"),
    ({"warmup_epochs": 10.0}, "must be below config.train.epochs = 10"),
  ],
)
def test_wrong_settings_are_named(dense, message):
  settings = {"dense": ADAM | dense, "embedding": ADAM, "clip_norm": 0.0}
  with pytest.raises(UserError, match=message):
    checks.check_optimizer(settings, 10)


def test_negative_clip_norm_is_refused():
  settings = {"dense": ADAM, "embedding": ADAM, "clip_norm": -1.0}
  with pytest.raises(UserError, match=r"clip_norm = -1\.0: must be"):
    checks.check_optimizer(settings, 10)
