"""The engine: what a step and an epoch must be, however they are cut."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmoe_jax import data, engine, losses, models, parallel
from mmoe_jax.task_weighting import create_task_weighting

KEY = jax.random.key(0)
TASKS = ("income_50k", "marital_stat")
KINDS = ("binary", "binary")
WEIGHTING = create_task_weighting({"name": "static"}, (1.0, 1.0), KINDS, 1)
LOSS = losses.binary_cross_entropy


@pytest.fixture
def setup(prepared, config):
  """A small model, its optimizer and host arrays of the made train rows."""
  schema, splits = data.load(prepared, TASKS, "demo")
  model = models.create_model(config.model, schema)
  split = splits["train"]
  arrays = {
    "features": split.features,
    "labels": split.labels,
    "weights": np.ones(len(split), np.float32),
  }
  return schema, model, optax.adam(1e-2), arrays


def init(model, tx, arrays, averaged=False):
  features = {name: a[:1] for name, a in arrays["features"].items()}
  return jax.jit(lambda key, x: engine.init_state(key, model, tx, WEIGHTING, x, averaged))(
    KEY, features
  )


def test_one_step_is_the_gradient_of_the_weighted_loss(setup):
  _, model, _, arrays = setup
  tx = optax.sgd(0.1)
  batch = jax.tree.map(lambda a: jnp.asarray(a[:50]), arrays)
  labels = np.array(batch["labels"])
  labels[:10, 0] = np.nan
  batch["labels"] = labels
  batch["weights"] = jnp.arange(50.0)
  state = init(model, tx, arrays)

  def by_hand(params):
    z = model.apply({"params": params}, batch["features"])
    each = jnp.logaddexp(0, z) - z * (labels == 1)
    w = jnp.arange(50.0)
    income = (each[10:, 0] * w[10:]).sum() / w[10:].sum()
    return 2.0 * income + 0.5 * (each[:, 1] * w).sum() / w.sum()

  weighting = create_task_weighting({"name": "static"}, (2.0, 0.5), KINDS, 1)
  step = engine.make_train_step(model, tx, weighting, LOSS)
  new, losses_T = jax.jit(step)(state, batch, KEY)
  grads = jax.jit(jax.grad(by_hand))(state.params)
  expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, expected)
  np.testing.assert_allclose(
    2.0 * losses_T[0] + 0.5 * losses_T[1], by_hand(state.params), rtol=1e-5
  )


def test_an_epoch_is_its_steps_one_after_another(setup):
  _, model, tx, arrays = setup
  step = jax.jit(engine.make_train_step(model, tx, WEIGHTING, LOSS))
  state = init(model, tx, arrays)
  epoch = jax.jit(engine.make_train_epoch(step, 500))
  scanned, losses = epoch(state, arrays, KEY, np.int32(0))
  assert losses.shape == (5, 2)
  order = np.asarray(engine.permutation(engine.fold_in(KEY, "shuffle"), 2003))
  for i in range(5):
    rows = order[np.arange(500 * i, 500 * (i + 1)) % 2003]
    batch = jax.tree.map(lambda a, rows=rows: a[rows], arrays)
    batch["weights"] = batch["weights"] * (np.arange(500 * i, 500 * (i + 1)) < 2003)
    state, _ = step(state, batch, KEY)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), scanned.params, state.params
  )


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 2003, 5000])
def test_every_row_counts_exactly_once_in_an_epoch(batch_size, shuffle):
  rows = 100
  arrays = {"labels": np.zeros((rows, 1), np.int8), "weights": np.ones(rows, np.float32)}
  arrays["number"] = np.arange(rows)

  def step(seen, batch, key, shard):
    counts = seen.params.at[batch["number"]].add(batch["weights"])
    return seen._replace(step=seen.step + 1, params=counts), batch["number"]

  state = engine.State(jnp.int32(0), jnp.zeros(rows), *[()] * 5)
  epoch = jax.jit(engine.make_train_epoch(step, batch_size, shuffle=shuffle))
  seen, numbers = epoch(state, arrays, KEY, np.int32(0))
  np.testing.assert_array_equal(seen.params, 1)
  in_order = np.array_equal(numbers.ravel()[:rows], np.arange(rows))
  assert in_order == (not shuffle)


def test_an_epoch_is_one_program_that_never_asks_the_host(setup):
  _, model, tx, arrays = setup
  step = engine.make_train_step(model, tx, WEIGHTING, LOSS)
  devices = parallel.Devices(1)
  arrays, state = devices.replicate(arrays), devices.replicate(init(model, tx, arrays))
  key = devices.replicate(KEY)
  pure = engine.make_train_epoch(step, 256)
  text = jax.jit(pure).lower(state, arrays, key, np.int32(0)).compile().as_text()
  assert not [
    word for word in ("callback", "infeed", "outfeed", " send(", " recv(") if word in text
  ]
  epoch = devices.compile(pure, state, arrays, key)
  with jax.transfer_guard("disallow"):
    state, losses = epoch(state, arrays, key)
  assert np.isfinite(losses).all()


def test_the_average_follows_the_parameters(setup):
  _, model, tx, arrays = setup
  step = jax.jit(engine.make_train_step(model, tx, WEIGHTING, LOSS, average_decay=0.9))
  state = init(model, tx, arrays, averaged=True)
  expected = jax.tree.map(np.float64, jax.device_get(state.params))
  np.testing.assert_equal(state.average["batch_stats"], {})
  for i in range(30):
    state, _ = step(state, arrays, KEY)
    decay = min(0.9, (1 + i) / (10 + i))
    expected = jax.tree.map(
      lambda e, p, d=decay: d * e + (1 - d) * np.float64(p), expected, jax.device_get(state.params)
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.average["params"], expected
  )
  assert state.variables is state.average


def test_keys_differ_by_purpose_epoch_and_step():
  keys = [engine.fold_in(KEY, p, e, s) for p, e, s in itertools.product("ab", (0, 1), (0, 1))]
  assert len({jax.random.bits(key).item() for key in keys}) == 8


def test_keep_best_keeps_the_best(setup):
  _, model, tx, arrays = setup
  state = init(model, tx, arrays)
  for epoch, value in enumerate([0.5, 0.9, 0.7, 0.9], start=1):
    params = jax.tree.map(lambda p, e=epoch: jnp.full_like(p, e), state.params)
    state = engine.keep_best(state._replace(params=params), value, epoch)
  assert int(state.best.epoch) == 2
  assert all((p == 2).all() for p in jax.tree.leaves(state.best.variables["params"]))
