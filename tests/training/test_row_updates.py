"""Row-wise updates: against dense updates, against NumPy in float64, and over several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import ndtri

from mmoe_jax import parallel
from mmoe_jax.models import MMoE
from mmoe_jax.models.embedding import Compression, table_layouts
from mmoe_jax.training import optimizer, row_optimizer, row_updates
from mmoe_jax.training.list_packing import ListColumns, make_capacities
from mmoe_jax.training.losses import binary_cross_entropy
from mmoe_jax.training.row_updates import RowWiseTables
from mmoe_jax.training.step import (
  Batch,
  init_state,
  make_train_epoch,
  make_train_step,
  order_rows,
)
from mmoe_jax.training.table_updates import sharded_leaves
from mmoe_jax.training.task_weighting import create_task_weighting
from tests import reference

SIZES, DIMS, LENGTHS = (40, 7, 300, 40), (4, 3, 4, 4), (1, 1, 1, 3)
POOLINGS, SHARED = ("", "", "", "mean"), ("items", "", "", "items")
COMPRESSED = (None, None, Compression("quotient_remainder", (10, 30)), None)
KEY = jax.random.key(5)
GROUPS = ("dense", "embedding")
RATE = {"learning_rate": 0.1, "weight_decay": 0.0, "schedule": "cosine", "warmup_epochs": 0.5}
ROWS, BATCH, EPOCHS = 203, 32, 3
MODEL = MMoE(
  feature_sizes=SIZES,
  outputs=(1, 1),
  embedding_dims=DIMS,
  feature_lengths=LENGTHS,
  feature_poolings=POOLINGS,
  feature_tables=SHARED,
  feature_compressions=COMPRESSED,
  experts=3,
  expert_hidden=(8,),
)
LISTS = (ListColumns(3, 3, 3),)
LAYOUTS = table_layouts(SIZES, DIMS, LENGTHS, SHARED, COMPRESSED)
SETTINGS = {
  "sgd": {"name": "sgd", **RATE},
  "adagrad": {"name": "adagrad", **RATE},
  "ftrl": {"name": "ftrl", "learning_rate": 0.3, "beta": 1.0, "l1": 0.001, "l2": 0.01},
}


def rows_of(rng):
  """Returns train rows with popular ids, often equal in a batch; some have no label."""
  ids = np.stack([rng.zipf(1.3, ROWS) % size for size in np.repeat(SIZES, LENGTHS)], axis=1)
  labels = rng.integers(0, 2, (ROWS, 2)).astype(np.float32)
  labels[rng.random((ROWS, 2)) < 0.1] = np.nan
  features = {
    "ids": ids.astype(np.uint16),
    "numeric": rng.normal(size=(ROWS, 2)).astype(np.float32),
  }
  return Batch(features, labels, rng.uniform(0.5, 2, ROWS).astype(np.float32))


def tables_of(settings, clip_norm=0.0, devices=1, axis_name=None, is_sharded=False, std=0.05):
  rows = row_optimizer.create_row_optimizer(settings, 7, EPOCHS)
  return RowWiseTables(LAYOUTS, rows, std, clip_norm, devices, axis_name, is_sharded)


def dense_optimizer(settings, clip_norm=0.0, groups=GROUPS):
  dense = {"name": "adagrad", **RATE}
  settings = {"clip_norm": clip_norm, "dense": dense, "embedding": settings}
  return optimizer.create_optimizer(settings, 7, EPOCHS, groups)


def weighting_of(name):
  arguments = {"gradnorm": {"alpha": 1.0, "learning_rate": 0.02}}.get(name, {})
  settings = {"name": name, **arguments}
  return create_task_weighting(settings, (1.0, 0.5), ("binary", "binary"), 7)


def train(rows, tables, tx, weighting="static", variables=None, devices=None, spec=None, places=()):
  """Returns the state after EPOCHS epochs, and the losses; `places`: of the packed list."""
  devices = devices or parallel.Devices(1)
  weighting = weighting_of(weighting)
  step = make_train_step(MODEL, tx, weighting, binary_cross_entropy, 0.9, devices.axis_name, tables)
  epoch = make_train_epoch(step, BATCH, devices.count, devices.axis_name, lists=LISTS)
  epoch = functools.partial(epoch, capacities=places)
  init = lambda key: init_state(
    key, MODEL, tx, weighting, rows.features, True, tables, variables=variables
  )
  shapes = jax.eval_shape(init, KEY)
  spec = None if spec is None else spec(shapes)
  state = devices.init(init, spec, KEY)
  rows = devices.replicate(rows)
  run = devices.compile(epoch, state, rows, devices.replicate(KEY), spec)
  losses = []
  for e in range(EPOCHS):
    state, task_losses = run(state, rows, devices.replicate(jax.random.fold_in(KEY, e)))
    losses.append(task_losses.losses)
  return jax.device_get(state), np.concatenate([np.asarray(a) for a in losses])


def start(rows):
  variables = jax.jit(MODEL.init)(jax.random.key(1), rows.features)
  return {"params": variables["params"]}


def assert_same_training(by_rows, dense, tolerance=2e-5):
  """Asserts that two states have equal parameters; tables of the first one are padded."""
  (state, losses), (expected, expected_losses) = by_rows, dense
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-4, atol=1e-5)
  for name, table in expected.params["embedding"].items():
    found = state.params["embedding"][name]
    np.testing.assert_allclose(found[: len(table)], table, rtol=1e-4, atol=tolerance)
    assert not found[len(table) :].any()
  for part in ("experts", "gating", "towers"):
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=tolerance)
    jax.tree.map(compare, state.params[part], expected.params[part])


@pytest.mark.parametrize("name", SETTINGS)
def test_training_by_rows_equals_dense_training(name):
  rows = rows_of(reference.fresh_rng())
  tx = dense_optimizer(SETTINGS[name], groups=("dense",))
  by_rows = train(rows, tables_of(SETTINGS[name]), tx, variables=start(rows))
  dense_tx = dense_optimizer(SETTINGS[name])
  dense = train(rows, row_updates.DENSE_TABLES, dense_tx, variables=start(rows))
  assert_same_training(by_rows, dense)
  before = start(rows)["params"]["embedding"]["table_4"]
  assert np.abs(before - dense[0].params["embedding"]["table_4"]).max() > 1e-3


@pytest.mark.parametrize("weighting", ["gradnorm", "pcgrad"])
def test_task_weightings_treat_rows_like_other_parameters(weighting):
  rows = rows_of(reference.fresh_rng())
  settings = SETTINGS["adagrad"]
  tx = dense_optimizer(settings, groups=("dense",))
  by_rows = train(rows, tables_of(settings), tx, weighting, start(rows))
  dense = train(rows, row_updates.DENSE_TABLES, dense_optimizer(settings), weighting, start(rows))
  assert_same_training(by_rows, dense, 1e-4)


def test_the_bound_on_the_gradient_includes_rows():
  rows = rows_of(reference.fresh_rng())
  settings, clip = SETTINGS["sgd"], 0.02
  tx = dense_optimizer(settings, groups=("dense",))
  by_rows = train(rows, tables_of(settings, clip), tx, variables=start(rows))
  dense_tx = dense_optimizer(settings, clip)
  dense = train(rows, row_updates.DENSE_TABLES, dense_tx, variables=start(rows))
  assert_same_training(by_rows, dense)
  unbound = train(rows, tables_of(settings), tx, variables=start(rows))
  assert np.abs(unbound[1] - by_rows[1]).max() > 1e-4


def with_short_lists(rows, rng):
  """Returns rows whose list has 0 to 3 values, the known ones first."""
  ids = rows.features["ids"].copy()
  ids[:, 3:6] = rng.integers(1, SIZES[3], (ROWS, 3))
  ids[:, 3:6] *= np.arange(3) < rng.choice(4, ROWS, p=(0.5, 0.3, 0.1, 0.1))[:, None]
  return rows._replace(features={**rows.features, "ids": ids})


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("placement", ["dense", "rows", "sharded"])
def test_packed_lists_train_like_padded_ones(placement, devices):
  rng = reference.fresh_rng()
  rows, settings = with_short_lists(rows_of(rng), rng), SETTINGS["adagrad"]
  is_sharded = placement == "sharded"
  if is_sharded and devices == 1:
    devices = 2
  devices = parallel.Devices(devices)
  tables = row_updates.DENSE_TABLES
  if placement != "dense":
    tables = tables_of(settings, 0.0, devices.count, devices.axis_name, is_sharded)
  tx = dense_optimizer(settings, groups=("dense",) if placement != "dense" else GROUPS)
  spec = (lambda shapes: sharded_leaves(shapes, is_sharded)) if placement != "dense" else None
  capacities = make_capacities(LISTS, BATCH, devices.count, lambda key, n: order_rows(key, n, True))
  ids = rows.features["ids"]
  places = [capacities(ids, jax.random.fold_in(KEY, e)) for e in range(EPOCHS)]
  (most,) = np.max(places, axis=0)
  assert 0 < most < 3 * BATCH / devices.count
  padded, packed = (
    train(rows, tables, tx, "static", start(rows), devices, spec, p) for p in ((), (int(most),))
  )
  np.testing.assert_allclose(packed[1], padded[1], rtol=1e-4, atol=1e-5)
  compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)
  jax.tree.map(compare, packed[0].params, padded[0].params)


def test_places_are_those_of_the_fullest_batch():
  rng = reference.fresh_rng()
  rows = with_short_lists(rows_of(rng), rng)
  ids = rows.features["ids"]
  order = np.asarray(order_rows(KEY, ROWS, True))
  order = np.concatenate([order, order[: -ROWS % BATCH]])  # Filled up from the beginning.
  values = (ids[:, 3:6] > 0).sum(1)[order].reshape(-1, 2, BATCH // 2).sum(2)
  for devices, most in ((1, values.sum(1).max()), (2, values.max())):
    order_of = lambda key, count: order_rows(key, count, True)
    (places,) = make_capacities(LISTS, BATCH, devices, order_of)(ids, KEY)
    assert most <= places < 1.2 * most + 1
  assert make_capacities((), BATCH, 1, order_of)(ids, KEY) == ()


def numpy_step(name, table, state, rows, grads, rate, step):
  """Updates a table (V, D) in float64 by the summed gradients of the rows of a batch."""
  for row in np.unique(rows):
    g = grads[rows == row].sum(0)
    if name == "adam":
      state["m"][row] = 0.9 * state["m"][row] + 0.1 * g
      state["v"][row] = 0.999 * state["v"][row] + 0.001 * g**2
      mean = state["m"][row] / (1 - 0.9 ** (step + 1))
      square = state["v"][row] / (1 - 0.999 ** (step + 1))
      table[row] -= rate * mean / (np.sqrt(square) + 1e-8)
    else:
      state["n"][row] += (g**2).mean()
      table[row] -= rate * g / (np.sqrt(state["n"][row]) + 1e-8)


@pytest.mark.parametrize("name", ["adam", "rowwise_adagrad"])
def test_optimizers_without_a_dense_equal_agree_with_numpy(name):
  rng = reference.fresh_rng()
  layout = table_layouts((50,), (4,))[0]
  settings = {"name": name, **RATE, "schedule": "constant", "warmup_epochs": 0.0}
  rows_optimizer = row_optimizer.create_row_optimizer(settings, 7, EPOCHS)
  tables = RowWiseTables([layout], rows_optimizer, 0.05)
  params, opt_state = tables.init(KEY, {}, optax.identity().init({}), {})
  expected = np.asarray(params["embedding"]["table_4"], np.float64)
  shape = expected.shape
  state = {"m": np.zeros(shape), "v": np.zeros(shape), "n": np.zeros(shape[0])}
  tx = optax.identity()

  @jax.jit
  def step(params, opt_state, ids, weights, grads, number):
    rows, opt_state = tables.locate(opt_state, {"ids": ids}, weights)
    sums = tables.sum_equal({"table_4": grads}, rows)
    trained, grads = tables.read(params, rows), row_updates.Trained({}, sums)
    return tables.update(tx, params, opt_state, trained, grads, rows, number)

  for number in range(12):
    ids = rng.zipf(1.4, (16, 1)) % 50
    weights = (rng.random(16) < 0.8).astype(np.float32)
    grads = (rng.normal(size=(16, 1, 4)) * weights[:, None, None]).astype(np.float32)
    params, opt_state = step(params, opt_state, ids, weights, grads, number)
    # Rows of weight 0 fill up a batch: they are not read in the reference.
    is_read = weights > 0
    numpy_step(name, expected, state, ids[is_read, 0], grads[is_read, 0], 0.1, number)
  np.testing.assert_allclose(params["embedding"]["table_4"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize(
  "count", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)]
)
def test_several_devices_equal_one(count, is_sharded):
  rows = rows_of(reference.fresh_rng())
  settings = {**SETTINGS["adagrad"], "name": "rowwise_adagrad"}
  tx = dense_optimizer(settings, groups=("dense",))
  one = train(rows, tables_of(settings, 0.5), tx)
  devices = parallel.Devices(count)
  tables = tables_of(settings, 0.5, count, devices.axis_name, is_sharded)
  several = train(rows, tables, tx, devices=devices, spec=lambda s: sharded_leaves(s, is_sharded))
  np.testing.assert_allclose(several[1], one[1], rtol=1e-4, atol=1e-5)
  compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)
  jax.tree.map(compare, several[0].params, one[0].params)


def test_each_device_holds_its_share_of_a_sharded_table():
  rows = rows_of(reference.fresh_rng())
  devices = parallel.Devices(4)
  settings = {**SETTINGS["adagrad"], "name": "rowwise_adagrad"}
  tables = tables_of(settings, 0.0, 4, devices.axis_name, True)
  tx = dense_optimizer(settings, groups=("dense",))
  init = lambda key: init_state(
    key, MODEL, tx, weighting_of("static"), rows.features, False, tables
  )
  state = devices.init(init, sharded_leaves(jax.eval_shape(init, KEY), True), KEY)
  whole = jax.jit(init)(KEY)
  for name, table in state.params["embedding"].items():
    for array in (table, state.opt_state.rows[name]["squares"]):
      assert {s.data.shape[0] for s in array.addressable_shards} == {len(table) // 4}
    # Each device computed its shard; together they are the table of one device.
    np.testing.assert_allclose(table, whole.params["embedding"][name], atol=1e-6)


def test_initial_tables_are_normal_and_zero_for_unknown_values():
  layout = table_layouts((3000, 5000), (16, 16))[0]
  table = np.asarray(jax.jit(lambda key: row_updates.init_table(key, layout, 0.05))(KEY))
  assert table.shape == (8192, 16)
  assert not table[[0, 3000]].any()
  assert not table[8000:].any()
  used = np.delete(table[:8000], [0, 3000], 0) / 0.05
  assert abs(used.mean()) < 0.01
  assert abs(used.std() - 1) < 0.01
  assert abs((used**4).mean() - 3) < 0.1  # The fourth moment of a normal distribution.
  correlations = np.corrcoef(used.T) - np.eye(16)
  assert np.abs(correlations).max() < 0.06
  other = row_updates.init_table(jax.random.key(6), layout, 0.05)
  assert abs(np.corrcoef(np.asarray(other).ravel(), table.ravel())[0, 1]) < 0.02


def test_l1_sets_rows_to_zero_and_they_are_counted():
  rows = rows_of(reference.fresh_rng())
  settings = {**SETTINGS["ftrl"], "l1": 0.2}
  tx = dense_optimizer(settings, groups=("dense",))
  variables = start(rows)
  # Gradients below L1 leave a weight of 0 there.
  for name, table in variables["params"]["embedding"].items():
    variables["params"]["embedding"][name] = table.at[1::2].set(0.0)
  state, _ = train(rows, tables_of(settings), tx, variables=variables)
  counts = tables_of(settings).count_zero_rows(jax.tree.map(jnp.asarray, state.params))
  for layout in LAYOUTS:
    table = np.delete(state.params["embedding"][layout.name][: layout.rows], layout.first_rows, 0)
    assert counts[layout.name] == (table == 0).all(1).sum()
    assert 0 < counts[layout.name] < len(table)


def test_a_step_writes_tables_in_place():
  # A copy of the table in each step would cost more than the rest of it.
  rows = rows_of(reference.fresh_rng())
  layout = table_layouts((50_000, 50_000), (16, 16))
  settings = {**SETTINGS["adagrad"], "name": "rowwise_adagrad"}
  rows = rows._replace(features={**rows.features, "ids": rows.features["ids"][:, :2]})
  model = MODEL.clone(
    feature_sizes=(50_000, 50_000),
    embedding_dims=(16, 16),
    feature_lengths=(),
    feature_poolings=(),
    feature_tables=(),
    feature_compressions=(),
  )
  tables = RowWiseTables(layout, row_optimizer.create_row_optimizer(settings, 7, EPOCHS), 0.05)
  tx = dense_optimizer(settings, groups=("dense",))
  weighting = weighting_of("static")
  step = make_train_step(model, tx, weighting, binary_cross_entropy, tables=tables)
  epoch = make_train_epoch(step, BATCH)
  init = lambda key: init_state(key, model, tx, weighting, rows.features, False, tables)
  state = jax.eval_shape(init, KEY)
  program = jax.jit(epoch, donate_argnums=0).lower(state, rows, KEY).compile()
  analysis = program.memory_analysis()
  table_bytes = 100_096 * 16 * 4
  assert analysis.alias_size_in_bytes > table_bytes  # Donated and written in place.
  assert analysis.temp_size_in_bytes < table_bytes / 8


def test_rounding_at_random_keeps_the_mean_and_exact_numbers():
  rng = reference.fresh_rng()
  values = (rng.normal(size=(20_000, 4)) * 10.0 ** rng.integers(-6, 3, (20_000, 1))).astype("f4")
  values[:, 3] = np.float32(jnp.asarray(values[:, 3], jnp.bfloat16))
  number = jnp.int32(rng.integers(1 << 30))
  rounded = row_optimizer.round_at_random(jnp.asarray(values), jnp.arange(20_000), number)
  assert rounded.dtype == jnp.bfloat16
  got = np.asarray(rounded, np.float64)
  np.testing.assert_array_equal(got[:, 3], values[:, 3])
  relative = (got[:, :3] - values[:, :3]) / np.abs(values[:, :3])
  assert np.abs(relative).max() < 2**-7
  assert abs(relative.mean()) < 5 * relative.std() / np.sqrt(relative.size)
  assert 0.4 < (relative > 0).mean() < 0.6
  other = row_optimizer.round_at_random(jnp.asarray(values), jnp.arange(20_000), number + 1)
  assert (np.asarray(other, np.float64) != got)[:, :3].mean() > 0.2


@pytest.mark.parametrize("is_sharded", [False, True])
def test_bfloat16_tables_follow_those_of_float32(is_sharded):
  rows = rows_of(reference.fresh_rng())
  settings = SETTINGS["sgd"]  # Adagrad's first steps depend on the sign of tiny gradients.
  tx = dense_optimizer(settings, groups=("dense",))
  expected, losses = train(rows, tables_of(settings), tx)
  optimizer_of_rows = row_optimizer.create_row_optimizer(settings, 7, EPOCHS)
  devices = parallel.Devices(2 if is_sharded else 1)
  arguments = (0.0, devices.count, devices.axis_name, is_sharded, "bfloat16")
  tables = RowWiseTables(LAYOUTS, optimizer_of_rows, 0.05, *arguments)
  spec = (lambda shapes: sharded_leaves(shapes, True)) if is_sharded else None
  state, got = train(rows, tables, tx, devices=devices, spec=spec)
  for name, table in state.params["embedding"].items():
    assert table.dtype == jnp.bfloat16
    exact = np.asarray(expected.params["embedding"][name])
    assert np.abs(np.asarray(table, np.float32) - exact).max() < 0.05 * np.abs(exact).max()
  np.testing.assert_allclose(got, losses, rtol=0.02)


@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad", "ftrl", "adam"])
def test_optimizers_of_bfloat16_tables_keep_float32_state(name):
  settings = SETTINGS.get(name, {**SETTINGS["adagrad"], "name": name})
  rows = row_optimizer.create_row_optimizer(settings, 7, EPOCHS)
  state = rows.init(jnp.zeros((8, 4), jnp.bfloat16))
  assert {a.dtype.name for a in state.values()} == {"float32"}


def test_initial_numbers_are_normal_and_always_finite():
  # One in 2^23 hashes lies at each end: a table of 16 million numbers has both.
  ends = jnp.array([0, 511, 2**32 - 512, 2**32 - 1], jnp.uint32)
  found = np.asarray(row_updates.normal_of(ends))
  assert np.isfinite(found).all()
  np.testing.assert_allclose(found, [-found[3]] * 2 + [found[3]] * 2)
  assert 5 < found[3] < 5.5
  rng = reference.fresh_rng()
  hashed = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
  values = np.asarray(row_updates.normal_of(jnp.asarray(hashed)), np.float64)
  expected = ndtri(((hashed >> 9) + 0.5) / 2**23)
  np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
