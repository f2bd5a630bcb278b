"""Step and epoch: the gradient, the scan over rows, keys, the average, the best variables."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmoe_jax import data, models, parallel
from mmoe_jax.training import losses
from mmoe_jax.training import step as step_lib
from mmoe_jax.training.step import Batch, State, TaskLosses
from mmoe_jax.training.task_weighting import create_task_weighting
from mmoe_jax.training.train_rows import make_batch

KEY = jax.random.key(0)
TASKS = ("income_50k", "marital_stat")
KINDS = ("binary", "binary")
WEIGHTING = create_task_weighting({"name": "static"}, (1.0, 1.0), KINDS, 1)
LOSS = losses.binary_cross_entropy


@pytest.fixture
def setup(prepared, config):
  """A small model, its optimizer and the synthetic train rows on the host."""
  schema, splits = data.load(prepared, TASKS, "demo")
  model = models.create_model(config.model, schema)
  return model, optax.adam(1e-2), make_batch(splits["train"], config)


def init(model, tx, rows, has_average=False):
  features = {name: a[:1] for name, a in rows.features.items()}
  create = lambda key, x: step_lib.init_state(key, model, tx, WEIGHTING, x, has_average)
  return jax.jit(create)(KEY, features)


def assert_close(a, b, atol):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), a, b)


def test_step_follows_the_gradient_of_the_weighted_loss(setup):
  model, _, rows = setup
  batch = jax.tree.map(lambda a: jnp.asarray(a[:50]), rows)
  labels, weights = np.array(batch.labels), jnp.arange(50.0)
  labels[:10, 0] = np.nan
  batch = batch._replace(labels=labels, weights=weights)
  tx = optax.sgd(0.1)
  state = init(model, tx, rows)

  def expected_loss(params):
    z = model.apply({"params": params}, batch.features)
    loss = jnp.logaddexp(0, z) - z * (labels == 1)
    income = (loss[10:, 0] * weights[10:]).sum() / weights[10:].sum()
    return 2.0 * income + 0.5 * (loss[:, 1] * weights).sum() / weights.sum()

  weighting = create_task_weighting({"name": "static"}, (2.0, 0.5), KINDS, 1)
  step = step_lib.make_train_step(model, tx, weighting, LOSS)
  new, task_losses = jax.jit(step)(state, batch, KEY)
  grads = jax.jit(jax.grad(expected_loss))(state.params)
  assert_close(new.params, jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads), 1e-6)
  total = 2.0 * task_losses.losses[0] + 0.5 * task_losses.losses[1]
  np.testing.assert_allclose(total, jax.jit(expected_loss)(state.params), rtol=1e-5)
  np.testing.assert_allclose(task_losses.weights, [weights[10:].sum(), weights.sum()])
  assert int(new.step) == 1


def test_epoch_equals_its_steps_in_sequence(setup):
  model, tx, rows = setup
  step = jax.jit(step_lib.make_train_step(model, tx, WEIGHTING, LOSS))
  state = init(model, tx, rows)
  scanned, task_losses = jax.jit(step_lib.make_train_epoch(step, 500))(state, rows, KEY)
  assert task_losses.losses.shape == task_losses.weights.shape == (5, 2)
  np.testing.assert_array_equal(task_losses.weights[:, 0], [500] * 4 + [3])
  order = np.asarray(step_lib.permutation(step_lib.fold_in(KEY, "shuffle"), 2003))
  for i in range(5):
    slots = np.arange(500 * i, 500 * (i + 1))
    batch = jax.tree.map(lambda a, slots=slots: a[order[slots % 2003]], rows)
    state, _ = step(state, batch._replace(weights=batch.weights * (slots < 2003)), KEY)
  assert_close(scanned.params, state.params, 1e-5)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 2003, 5000])
def test_every_row_counts_exactly_once_per_epoch(batch_size, shuffle):
  count = 100
  rows = Batch({"number": np.arange(count)}, np.zeros((count, 1)), np.ones(count, np.float32))

  def step(state, batch, key):
    numbers = batch.features["number"]
    counts = state.params.at[numbers].add(batch.weights)
    return state.replace(step=state.step + 1, params=counts), TaskLosses(numbers, numbers)

  state = State(jnp.int32(0), jnp.zeros(count), *[()] * 5)
  epoch = jax.jit(step_lib.make_train_epoch(step, batch_size, shuffle=shuffle))
  state, (numbers, _) = epoch(state, rows, KEY)
  np.testing.assert_array_equal(state.params, 1)
  is_in_order = np.array_equal(numbers.ravel()[:count], np.arange(count))
  assert is_in_order == (not shuffle)


def test_epoch_is_one_program_without_host_transfers(setup):
  model, tx, rows = setup
  step = step_lib.make_train_step(model, tx, WEIGHTING, LOSS)
  devices = parallel.Devices(1)
  rows, state, key = devices.replicate((rows, init(model, tx, rows), KEY))
  epoch = step_lib.make_train_epoch(step, 256)
  text = jax.jit(epoch).lower(state, rows, key).compile().as_text()
  transfers = ("callback", "infeed", "outfeed", " send(", " recv(")
  assert not [word for word in transfers if word in text]
  compiled = devices.compile(epoch, state, rows, key)
  with jax.transfer_guard("disallow"):
    state, task_losses = compiled(state, rows, key)
  assert np.isfinite(task_losses.losses).all()


def test_average_follows_the_parameters(setup):
  model, tx, rows = setup
  batch = jax.tree.map(lambda a: a[:100], rows)
  step = jax.jit(step_lib.make_train_step(model, tx, WEIGHTING, LOSS, average_decay=0.9))
  state = init(model, tx, rows, has_average=True)
  expected = jax.tree.map(np.float64, jax.device_get(state.params))
  np.testing.assert_equal(state.average["batch_stats"], {})
  for i in range(30):
    state, _ = step(state, batch, KEY)
    decay = min(0.9, (1 + i) / (10 + i))
    expected = jax.tree.map(
      lambda e, p, d=decay: d * e + (1 - d) * np.float64(p), expected, jax.device_get(state.params)
    )
  assert_close(state.average["params"], expected, 1e-5)
  assert_close(state.variables, state.average, 0)


def test_keys_differ_by_purpose_epoch_and_step():
  keys = [step_lib.fold_in(KEY, p, e, s) for p, e, s in itertools.product("ab", (0, 1), (0, 1))]
  assert len({jax.random.bits(key).item() for key in keys}) == 8


def test_best_variables_are_those_of_the_first_highest_value(setup):
  model, tx, rows = setup
  state = init(model, tx, rows)
  for epoch, value in enumerate([0.5, 0.9, 0.7, 0.9], start=1):
    params = jax.tree.map(lambda p, e=epoch: jnp.full_like(p, e), state.params)
    state = step_lib.keep_best(state.replace(params=params), value, epoch)
  assert int(state.best.epoch) == 2
  assert all((p == 2).all() for p in jax.tree.leaves(state.best.variables["params"]))
