"""All models: against NumPy, penalties, gradients, stacks, traced settings."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmoe_jax import models
from tests import reference
from tests.models import reference_models
from tests.models.test_models import KEY, SETTINGS, batch, schema_of

FAST = jax.random.key(0, impl="unsafe_rbg")  # Compiles faster than Threefry.
SIZES, NUMBERS = (5, 6), 2
# Small sizes, with every penalty and option enabled.
OWN = {
  "bottom_hidden": (6, 5),
  "experts": 3,
  "expert_hidden": (5,),
  "tower_hidden": (4,),
  "ranks": (3, 4, 2),
  "task_experts": 2,
  "shared_experts": 3,
  "levels": 3,
  "selectors": 2,
  "smoothness": 8.0,  # Random gates must not all be saturated.
  "exclusivity": 0.5,
  "l2_strength": 0.5,
  "calibrator_strength": 0.5,
  "l0_strength": 0.5,
  "entropy_strength": 0.5,
}
every_model = pytest.mark.parametrize("name", models.MODELS)
# OMoE is MMoE with one gate, CGC is PLE of one level.
every_family = pytest.mark.parametrize(
  "name",
  [pytest.param(n, marks=pytest.mark.slow) if n in ("omoe", "cgc") else n for n in models.MODELS],
)


def fields(name):
  return {f.name: f for f in dataclasses.fields(models.MODELS[name])}


def settings_of(name, **more):
  return SETTINGS | {k: v for k, v in OWN.items() if k in fields(name)} | {"name": name} | more


def create(name, tasks, **more):
  return models.create_model(settings_of(name, **more), schema_of(SIZES, NUMBERS, tasks))


def with_outputs(model, outputs):
  """Returns the model for multiclass tasks, if it supports them."""
  if model.chained:
    return model
  off = {"calibrator_strength": 0.0} if hasattr(model, "calibrator_strength") else {}
  return model.clone(outputs=outputs, **off)


def random_params(rng, model, features):
  """Draws random parameters, biases included: zeros would hide a missing one."""
  shapes = jax.eval_shape(model.init, KEY, features)["params"]
  return jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape) / 2), shapes)


def numpy_forward(name, settings, params, tasks, features):
  def embed(tables, task=None):
    tables = tables if task is None else {k: v[task] for k, v in tables.items()}
    return reference.embed(tables, SIZES, (4, 4), features["ids"], features["numeric"])

  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  return reference_models.MODELS[name](params, settings, tasks, embed)


@pytest.mark.parametrize("tasks", [1, pytest.param(2, marks=pytest.mark.slow), 5])
@every_model
def test_model_equals_numpy_for_any_number_of_rows_and_tasks(name, tasks):
  # DeepCTR-Torch's squeeze breaks at a batch of one.
  sizes = (1, 2, 7) if tasks == 2 else (1, 7)
  rng = reference.fresh_rng()
  settings = settings_of(name)
  if tasks == 5 and "experts" in settings:
    settings["experts"] = 8  # A power of two, with an exclusive expert for each task.
  model = models.create_model(settings, schema_of(SIZES, NUMBERS, tasks))
  features = batch(rng, SIZES, 7, NUMBERS)
  params = random_params(rng, model, features)

  @jax.jit
  def run(params, features):
    return [
      model.apply({"params": params}, {k: a[:rows] for k, a in features.items()}, mutable=True)
      for rows in sizes
    ]

  logits, gates, _ = numpy_forward(name, settings, params, tasks, features)
  for rows, (got, seen) in zip(sizes, run(params, features), strict=True):
    np.testing.assert_allclose(got, logits[:rows], atol=1e-5, rtol=1e-5)
    assert "losses" not in seen
    if gates is None:
      assert "intermediates" not in seen
    else:
      (sowed,) = seen["intermediates"]["gates"]
      np.testing.assert_allclose(sowed, gates[:, :rows], atol=1e-5)
  if gates is not None:
    assert (gates >= 0).all()
    np.testing.assert_allclose(gates.sum(-1), 1, rtol=1e-6)


@every_model
def test_tasks_of_several_classes_equal_numpy(name):
  if models.MODELS[name].chained:
    return
  rng = reference.fresh_rng()
  features = batch(rng, SIZES, 7, NUMBERS)
  settings = settings_of(name)
  for outputs in ((3, 3, 3), (1, 4, 1)):
    model = with_outputs(create(name, 3), outputs)
    params = random_params(rng, model, features)
    logits, _, _ = numpy_forward(name, settings, params, 3, features)
    got = jax.jit(model.apply)({"params": params}, features)
    assert got.shape == (7, sum(outputs))
    np.testing.assert_allclose(got, logits, atol=1e-5, rtol=1e-5)


@every_model
def test_penalties_equal_numpy_and_are_sown_in_training_only(name):
  rng = reference.fresh_rng()
  model = create(name, 3)
  features = batch(rng, SIZES, 7, NUMBERS)
  params = random_params(rng, model, features)
  _, _, expected = numpy_forward(name, settings_of(name), params, 3, features)
  _, seen = jax.jit(
    lambda p, f: model.apply(
      {"params": p}, f, True, rngs={"dropout": FAST, "shared": FAST}, mutable=["losses"]
    )
  )(params, features)
  got = seen.get("losses", {})
  assert set(got) == set(expected)
  for penalty, value in expected.items():
    assert got[penalty][0].shape in ((), (7,))  # A scalar, or one value per row.
    np.testing.assert_allclose(got[penalty][0].mean(), value, rtol=1e-5, atol=1e-7)
  off = {k: 0.0 for k in fields(name) if k.endswith("_strength")}
  if off and "reachable" not in expected:
    off = create(name, 3, **off)
    shapes = jax.eval_shape(
      lambda p, f: off.apply(
        {"params": p}, f, True, rngs={"dropout": FAST, "shared": FAST}, mutable=True
      ),
      params,
      features,
    )
    assert "losses" not in shapes[1]


@every_family
def test_no_parameter_is_dead(name):
  rng = reference.fresh_rng()
  smooth = {k: "tanh" for k in fields(name) if k.endswith("activation")}
  # Exclusivity would leave some parameters unused.
  smooth |= {"exclusivity": 0.0} if "exclusivity" in fields(name) else {}
  model = with_outputs(create(name, 2, **smooth), (1, 3))
  features = batch(rng, SIZES, 64, NUMBERS)
  params = random_params(rng, model, features)

  @jax.jit
  def gradient(params, features):
    def loss(params, key):
      logits, seen = model.apply(
        {"params": params}, features, True, rngs={"dropout": key, "shared": key}, mutable=["losses"]
      )
      return (logits**2).sum() + sum(leaf.mean() for leaf in jax.tree.leaves(seen))

    # Noise may close a connection in some draws, not in all.
    grads = jax.vmap(jax.grad(loss), (None, 0))(params, jax.random.split(FAST, 16))
    return jax.tree.map(lambda g: jnp.abs(g).max(0), grads)

  for path, grad in jax.tree_util.tree_leaves_with_path(gradient(params, features)):
    assert np.isfinite(grad).all()
    assert (grad > 0).all(), jax.tree_util.keystr(path)


@every_family
def test_a_stack_of_members_equals_each_alone(name):
  rng = reference.fresh_rng()
  model = create(name, 2)
  features = batch(rng, SIZES, 8, NUMBERS)
  members = [random_params(rng, model, features) for _ in range(3)]
  keys = jax.random.split(KEY, 3)

  def run(params, key):
    return model.apply(
      {"params": params},
      features,
      True,
      rngs={"dropout": key, "shared": key},
      mutable=["losses", "intermediates"],
    )

  stacked = jax.tree.map(lambda *p: np.stack(p), *members)
  together, alone = jax.jit(jax.vmap(run))(stacked, keys), jax.jit(run)
  for i, params in enumerate(members):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
      jax.tree.map(lambda a, i=i: a[i], together),
      alone(params, keys[i]),
    )


FLOATS = {"smoothness": 2.0, "exclusivity": 0.5}


@every_family
def test_float_settings_may_be_traced_and_do_the_same(name):
  floats = {k: FLOATS.get(k, 0.3) for k, f in fields(name).items() if isinstance(f.default, float)}
  assert len(floats) >= 3  # Of embeddings and towers.
  rng = reference.fresh_rng()
  features = batch(rng, SIZES, 8, NUMBERS)
  params = random_params(rng, create(name, 2), features)

  def run(values, params):
    return create(name, 2, **values).apply(
      {"params": params},
      features,
      True,
      rngs={"dropout": FAST, "shared": FAST},
      mutable=["losses", "intermediates"],
    )

  static = jax.jit(functools.partial(run, floats))(params)
  traced = jax.jit(run)(floats, params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), static, traced)


def test_initial_scales_may_be_traced_and_do_the_same():
  features = batch(np.random.default_rng(0), SIZES, 8, NUMBERS)
  values = {"embedding_init_std": 0.1, "stitch_own": 0.8}

  def init(values):
    return create("cross_stitch", 3, **values).init(FAST, features)

  static, traced = jax.jit(lambda: init(values))(), jax.jit(init)(values)
  jax.tree.map(np.testing.assert_array_equal, static, traced)
  stitch = np.full((3, 3), 0.1) + 0.7 * np.eye(3)
  np.testing.assert_allclose(traced["params"]["stitch_0"], stitch, rtol=1e-6)
