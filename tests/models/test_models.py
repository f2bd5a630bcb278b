"""Models: golden parameter counts, MMoE against NumPy, validation of settings."""

import dataclasses
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmoe_jax import data, models
from mmoe_jax.errors import UserError
from mmoe_jax.models import layers
from mmoe_jax.training import losses
from tests import reference

KEY = jax.random.key(0)
SETTINGS = {"name": "mmoe", "embedding_dim": 4, "embedding_dim_of": {}}


def schema_of(sizes, numbers, tasks) -> data.Schema:
  """Returns a schema with features of these sizes."""
  return data.Schema(
    columns=(),
    id_features=tuple(
      data.IdFeature(f"f{i}", "category", (f"f{i}",), tuple(map(str, range(size - 1))))
      for i, size in enumerate(sizes)
    ),
    numeric=tuple(data.NumericFeature(f"n{i}", 0.0, 1.0) for i in range(numbers)),
    tasks=tuple(data.Task(f"t{i}", f"t{i}", ("1",), ("0",)) for i in range(tasks)),
  )


def batch(rng, sizes, rows, numbers):
  ids = np.stack([rng.integers(0, size, rows) for size in sizes], 1).astype(np.uint8)
  return {"ids": ids, "numeric": rng.normal(size=(rows, numbers)).astype(np.float32)}


def test_mmoe_equals_numpy_in_float64():
  rng = reference.fresh_rng()
  sizes, dims = (5, 60, 3), (4, 7, 4)
  settings = {**SETTINGS, "embedding_dim_of": {"f1": 7}, "experts": 3, "embedding_init_std": 1.0}
  model = models.create_model(settings, schema_of(sizes, 2, 2))
  features = batch(rng, sizes, 33, 2)
  params = jax.jit(model.init)(KEY, features)["params"]
  # Random biases, too: zeros would hide a missing one.
  params = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape) / 2), params)
  apply = jax.jit(model.apply, static_argnames="mutable")
  logits, seen = apply({"params": params}, features, mutable="intermediates")
  expected, gates = reference.mmoe(
    jax.tree.map(np.asarray, params), sizes, dims, 3, 2, features["ids"], features["numeric"]
  )
  np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)
  np.testing.assert_allclose(seen["intermediates"]["gates"][0], gates, atol=1e-5)


def test_golden_parameter_count_and_first_loss():
  sizes = (10, 20, 30)
  model = models.create_model(SETTINGS, schema_of(sizes, 7, 2))
  features = batch(np.random.default_rng(0), sizes, 64, 7)
  params = jax.jit(model.init)(KEY, features)["params"]
  inputs = 3 * 4 + 7
  experts, gates = 8 * (inputs + 1) * 16, 2 * inputs * 8
  towers = 2 * ((16 + 1) * 8 + (8 + 1))
  assert layers.parameter_count(params) == 60 * 4 + experts + gates + towers == 3394
  labels = np.random.default_rng(1).integers(0, 2, (64, 2)).astype(np.int8)
  logits = jax.jit(model.apply)({"params": params}, features)
  loss = losses.binary_cross_entropy(logits, labels).mean(0)
  np.testing.assert_allclose(loss, GOLDEN_LOSS, rtol=1e-4)


GOLDEN_LOSS = (0.695736, 0.689560)


def test_model_works_without_id_features_and_without_numbers():
  for sizes, numbers in (((3, 4), 0), ((), 3)):
    model = models.create_model(SETTINGS, schema_of(sizes, numbers, 2))
    features = {
      "ids": np.zeros((2, len(sizes)), np.uint8),
      "numeric": np.ones((2, numbers), np.float32),
    }
    variables = jax.jit(model.init)(KEY, features)
    assert jax.jit(model.apply)(variables, features).shape == (2, 2)


def test_one_tasks_logit_depends_on_its_own_gate_and_tower_only():
  sizes = (3, 4)
  model = models.create_model(SETTINGS, schema_of(sizes, 1, 2))
  features = batch(np.random.default_rng(0), sizes, 5, 1)
  params = jax.jit(model.init)(KEY, features)["params"]
  logit = lambda p: model.apply({"params": p}, features)[:, 0].sum()
  grads = jax.jit(jax.grad(logit))(params)
  for part in ("gating", "towers"):
    for grad in jax.tree.leaves(grads[part]):
      np.testing.assert_array_equal(grad[1], 0)
  assert np.abs(grads["gating"]["Dense_0"]["kernel"][0]).max() > 0


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"name": "mmeo"}, "config.model.name is 'mmeo', .*did you mean 'mmoe'"),
    ({"expert": 3}, r"config\.model\.expert: not a setting of the model 'mmoe'; did you mean 'exp"),
    ({"experts": 0}, r"config\.model\.experts = 0: must be a whole number from 1 to"),
    ({"tower_hidden": (8, 0)}, r"tower_hidden = \(8, 0\): must be a tuple of whole numbers"),
    ({"expert_activation": "rleu"}, "did you mean 'relu'"),
    ({"tower_norm": "bach"}, "did you mean 'batch'"),
    ({"expert_dropout": 1.0}, r"must be a rate in \[0, 1\)"),
    ({"embedding_dim": -1}, "embedding_dim = -1: must be a whole number"),
    ({"embedding_dim_of": {"f9": 2}}, "'f9', which does not exist; known: f0"),
    ({"embedding_dim_of": {"f0": 0}}, r"embedding_dim_of\.f0 = 0"),
    ({"embedding_init_std": -1.0}, "must be a standard deviation of at least 0"),
    ({"exclusivity": 1.5}, "must be a share from 0 to 1"),
    ({"exclusivity": 1.0, "experts": 1}, "must leave each of 2 tasks an expert"),
    ({"name": "l2_constrained", "l2_strength": -1.0}, "must be at least 0"),
    (
      {"name": "cross_stitch", "bottom_hidden": ()},
      r"bottom_hidden = \(\): must have at least one layer",
    ),
    (
      {"name": "tensor_factorization", "ranks": (2, 2)},
      "must be three, of inputs, units and tasks",
    ),
    ({"name": "dselect_k", "smoothness": 0.0}, "must be a width above 0"),
    ({"name": "dselect_k", "experts": 1}, "must be at least 2 for selection"),
    ({"name": "cgc", "levels": 2}, "levels: not a setting of the model 'cgc'"),
    ({"name": "ple", "levels": 0}, "levels = 0: must be a whole number from 1 to"),
  ],
)
def test_wrong_settings_are_named(settings, message):
  with pytest.raises(UserError, match=message):
    models.check_model({**SETTINGS, **settings}, schema_of((3,), 1, 2))


@pytest.mark.parametrize(
  ("settings", "who"),
  [({"name": "esmm"}, "this model"), ({"name": "aitm", "calibrator_strength": 0.1}, "calibrator")],
)
def test_models_of_probabilities_want_binary_tasks(settings, who):
  model = models.create_model({**SETTINGS, **settings}, schema_of((3,), 1, 2))
  model.check(["binary", "binary"])
  with pytest.raises(UserError, match=f"kinds binary, regression: must all be binary for .*{who}"):
    model.check(["binary", "regression"])


def test_only_esmm_is_chained():
  assert [name for name, model in models.MODELS.items() if model.chained] == ["esmm"]


def test_esmm_is_exact_where_probabilities_round_to_zero_and_one():
  # In float32, 1 - p is 0 here, but logits are exact.
  model = models.create_model({**SETTINGS, "name": "esmm"}, schema_of((), 2, 2))
  model = model.clone(bottom_hidden=(), tower_hidden=())
  kernel = np.eye(2, dtype=np.float32)[:, :, None]
  params = {"towers": {"Dense_0": {"kernel": kernel, "bias": np.zeros((2, 1), np.float32)}}}
  z = np.array([[50, 60], [80, 2], [-90, 90], [-300, -400], [300, 400]], np.float32)
  features = {"ids": np.zeros((5, 0), np.uint8), "numeric": z}
  logits = jax.jit(model.apply)({"params": params}, features)
  joint = [50 - np.log1p(np.exp(-10)), 2, -90, -700, 300]
  np.testing.assert_allclose(logits, np.stack([z[:, 0], joint], 1), rtol=1e-6)
  grads = jax.jit(jax.grad(lambda p: model.apply({"params": p}, features).sum()))(params)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_every_model_documents_its_paper_and_fields():
  for model in models.MODELS.values():
    assert re.search("(19|20)[0-9]{2}", sys.modules[model.__module__].__doc__ + model.__doc__)
    docs = "".join(base.__doc__ for base in model.__mro__ if issubclass(base, models.Model))
    for field in dataclasses.fields(model):
      if field.name not in ("parent", "name"):
        assert field.name in docs, field.name


def test_widths_by_the_rule_follow_the_number_of_ids():
  sizes = {3: 4, 20: 8, 1000: 32, 10_000: 32, 10**6: 64, 10**9: 64}
  features = [data.IdFeature(f"f{size}", "hash", (f"f{size}",), buckets=size - 1) for size in sizes]
  schema = data.Schema((), tuple(features), (), (data.Task("t", "t"),))
  settings = {**SETTINGS, "embedding_dim": 0}
  assert models.create_model(settings, schema).embedding_dims == tuple(sizes.values())
  settings["embedding_dim_of"] = {"f20": 3}
  assert models.create_model(settings, schema).embedding_dims[:3] == (4, 3, 32)
