"""Gate statistics: against float64 NumPy and hand-computed cases, and mapped."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import smoke
from mmoe_jax import data, models
from mmoe_jax.evaluation import evaluate, gate_statistics
from tests import reference

TASKS = ("a", "b", "c")
statistics = jax.jit(gate_statistics.statistics)


def expected(gates_TxNxE, weights_N):
  """Computes the definitions row by row in float64."""
  tasks, _, experts = gates_TxNxE.shape
  share = weights_N.astype(np.float64) / weights_N.sum(dtype=np.float64)

  def entropy(p):
    return -sum(float(x) * math.log(x) for x in p if x > 0)

  mean = np.zeros((tasks, experts))
  row_entropy, similarity = np.zeros(tasks), np.zeros((tasks, tasks))
  for n in np.flatnonzero(share):
    g = gates_TxNxE[:, n].astype(np.float64)
    mean += share[n] * g
    row_entropy += share[n] * np.array([entropy(p) for p in g])
    distance = np.abs(g[:, None] - g[None]).sum(-1) / 2
    similarity += share[n] * (1 - distance)
  mean_entropy = np.array([entropy(p) for p in mean])
  return {
    "mean": mean,
    "entropy": row_entropy,
    "mean_entropy": mean_entropy,
    "effective_experts": np.exp(mean_entropy),
    "used_experts": (mean > 1 / (10 * experts)).sum(1),
    "similarity": similarity,
  }


def random_gates(rng, tasks=3, rows=257, experts=5):
  """Returns flat and sharp gates, with experts that a task cannot use, and row weights."""
  gates_TxNxE = reference.softmax(rng.normal(size=(tasks, rows, experts)) * rng.uniform(0, 9))
  gates_TxNxE[0, :, 1] = 0
  gates_TxNxE /= gates_TxNxE.sum(-1, keepdims=True)
  weights_N = rng.uniform(0, 3, rows) * (rng.random(rows) < 0.8)
  return gates_TxNxE.astype(np.float32), weights_N.astype(np.float32)


def assert_same(found, wanted, **tolerance):
  assert found.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_allclose(found[name], value, **tolerance, err_msg=name)


def test_statistics_equal_numpy_in_float64():
  gates_TxNxE, weights_N = random_gates(reference.fresh_rng())
  found = statistics(gates_TxNxE, weights_N)
  assert_same(found, expected(gates_TxNxE, weights_N), rtol=1e-5, atol=1e-6)


def test_rows_of_weight_zero_do_not_count_even_if_nan():
  rng = reference.fresh_rng()
  gates_TxNxE, weights_N = random_gates(rng)
  weights_N[100:] = 0
  broken = gates_TxNxE.copy()
  broken[:, 100:] = np.nan
  alone = statistics(gates_TxNxE[:, :100], weights_N[:100])
  assert_same(statistics(broken, weights_N), alone, rtol=1e-5, atol=1e-6)


def test_one_hot_gates():
  gates_TxNxE = np.zeros((2, 6, 4), np.float32)
  gates_TxNxE[0, :, 3] = 1
  gates_TxNxE[1, :3, 0] = gates_TxNxE[1, 3:, 1] = 1
  found = jax.device_get(statistics(gates_TxNxE, np.ones(6, np.float32)))
  np.testing.assert_array_equal(found["entropy"], 0)
  np.testing.assert_allclose(found["mean_entropy"], [0, math.log(2)], rtol=1e-6)
  np.testing.assert_allclose(found["effective_experts"], [1, 2], rtol=1e-6)
  np.testing.assert_array_equal(found["used_experts"], [1, 2])
  np.testing.assert_array_equal(found["similarity"], np.eye(2))
  # The second is sharp for each row but uses two experts: no collapse.
  (line,) = gate_statistics.collapsed(found, ("a", "b"))
  assert line.startswith("the gate of 'a' has collapsed: expert 3 has 100.0% of its weight")


def test_uniform_gates():
  found = jax.device_get(statistics(np.full((3, 7, 8), 1 / 8, np.float32), np.ones(7)))
  found = jax.tree.map(np.array, found)
  np.testing.assert_allclose(found["entropy"], math.log(8), rtol=1e-6)
  np.testing.assert_allclose(found["mean_entropy"], math.log(8), rtol=1e-6)
  np.testing.assert_allclose(found["effective_experts"], 8, rtol=1e-6)
  np.testing.assert_array_equal(found["used_experts"], 8)
  np.testing.assert_allclose(found["similarity"], 1, rtol=1e-6)
  # Bitwise identical gates are one gate, as in OMoE; separately trained gates differ.
  assert gate_statistics.collapsed(found, TASKS) == []
  found["mean"][1, 0] += 1e-6
  (line,) = gate_statistics.collapsed(found, TASKS)
  assert line.startswith(
    "the gates of all 3 tasks are the same: any two overlap by at least 1.0000"
  )


def test_weights_and_overlap_worked_out_by_hand():
  gates_TxNxE = np.array([[[0.5, 0.5, 0], [1, 0, 0]], [[0.2, 0.2, 0.6], [0, 0, 1]]], np.float32)
  found = statistics(gates_TxNxE, np.array([3.0, 1.0], np.float32))
  np.testing.assert_allclose(found["mean"], [[0.625, 0.375, 0], [0.15, 0.15, 0.7]], rtol=1e-6)
  np.testing.assert_allclose(found["entropy"][0], 0.75 * math.log(2), rtol=1e-6)
  np.testing.assert_allclose(found["similarity"], [[1, 0.3], [0.3, 1]], rtol=1e-6)
  np.testing.assert_array_equal(found["used_experts"], [2, 3])


@pytest.mark.parametrize(
  ("share", "warned"), [(0.94, False), (0.95, False), (0.951, True), (1.0, True)]
)
def test_a_gate_has_collapsed_above_the_stated_share(share, warned):
  gates_TxNxE = np.array([[[share, 1 - share]], [[0.5, 0.5]]], np.float32)
  found = statistics(gates_TxNxE, np.ones(1, np.float32))
  lines = gate_statistics.collapsed(found, ("income", "single"))
  assert len(lines) == warned
  assert all("'income'" in line and "expert 0" in line for line in lines)


def test_gates_are_the_same_only_when_all_pairs_are():
  gates_TxNxE = np.array([[[0.5, 0.5]], [[0.505, 0.495]], [[0.6, 0.4]]], np.float32)
  ones = np.ones(1, np.float32)
  assert gate_statistics.collapsed(statistics(gates_TxNxE, ones), TASKS) == []
  (line,) = gate_statistics.collapsed(statistics(gates_TxNxE[:2], ones), TASKS[:2])
  assert "all 2 tasks are the same: any two overlap by at least 0.9950" in line


def test_no_warning_with_one_expert_one_task_or_no_rows():
  ones = np.ones(4, np.float32)
  one_expert = statistics(np.ones((2, 4, 1), np.float32), ones)
  assert gate_statistics.collapsed(one_expert, TASKS[:2]) == []
  one_task = statistics(np.full((1, 4, 2), 0.5, np.float32), ones)
  assert gate_statistics.collapsed(one_task, TASKS[:1]) == []
  nothing = statistics(np.full((2, 4, 2), 0.5, np.float32), 0 * ones)
  assert gate_statistics.collapsed(nothing, TASKS[:2]) == []
  for name, value in nothing.items():
    np.testing.assert_array_equal(value, 0 if name == "used_experts" else np.nan)


def test_mapping_over_members_and_groups_changes_nothing():
  rng = reference.fresh_rng()
  members = [random_gates(rng)[0] for _ in range(3)]
  groups = np.stack([random_gates(rng)[1] for _ in range(4)])
  over_groups = jax.vmap(gate_statistics.statistics, (None, 0))
  found = jax.jit(jax.vmap(over_groups, (0, None)))(jnp.stack(members), groups)
  for m, gates_TxNxE in enumerate(members):
    for g, weights_N in enumerate(groups):
      wanted = expected(gates_TxNxE, weights_N)
      assert_same({k: v[m, g] for k, v in found.items()}, wanted, rtol=1e-5, atol=1e-6)


def test_scalars_have_flat_names_and_the_values_of_the_statistics():
  gates_TxNxE, weights_N = random_gates(reference.fresh_rng(), experts=4)
  named = gate_statistics.scalars(jax.device_get(statistics(gates_TxNxE, weights_N)), TASKS)
  wanted = expected(gates_TxNxE, weights_N)
  assert all(type(value) is float for value in named.values())
  json.dumps(named)
  assert len(named) == 3 * (4 + 4) + 3
  assert named["gates/b/expert_3"] == pytest.approx(wanted["mean"][1, 3], abs=1e-6)
  for name in ("entropy", "mean_entropy", "effective_experts", "used_experts"):
    assert named[f"gates/c/{name}"] == pytest.approx(wanted[name][2], rel=1e-5)
  assert named["gates/similarity/a~c"] == pytest.approx(wanted["similarity"][0, 2], abs=1e-6)


@pytest.fixture(scope="module")
def fitted(prepared):
  schema, splits = data.load(prepared, ("income_50k", "marital_stat"), "demo")
  model = models.create_model(smoke.get_config().model, schema)
  features = {name: a[:1] for name, a in splits["test"].features.items()}
  init = jax.jit(jax.vmap(model.init, (0, None)))
  return model, init(jax.random.split(jax.random.key(0), 2), features), splits["test"].features


@pytest.mark.parametrize("rows", [1, 256, 257])
def test_one_pass_gives_the_logits_and_the_gates_of_every_row(fitted, rows):
  model, members, features = fitted
  variables = jax.tree.map(lambda a: a[0], members)
  features = {name: a[:rows] for name, a in features.items()}
  predict = evaluate.make_predict_with_gates(model)
  logits, gates_TxNxE = predict(variables, evaluate.to_chunks(features, 128))
  assert gates_TxNxE.shape == (2, len(logits), 4)
  apply = jax.jit(model.apply, static_argnames="mutable")
  wanted, seen = apply(variables, features, mutable=("intermediates",))
  np.testing.assert_allclose(logits[:rows], wanted, atol=1e-6)
  np.testing.assert_allclose(gates_TxNxE[:, :rows], seen["intermediates"]["gates"][0], atol=1e-6)


def test_one_pass_can_be_mapped_over_members(fitted):
  model, members, features = fitted
  chunks = evaluate.to_chunks(features, 256)
  predict = evaluate.make_predict_with_gates(model)
  weights_N = np.zeros(chunks["ids"].shape[0] * chunks["ids"].shape[1], np.float32)
  weights_N[: len(features["ids"])] = 1

  @jax.jit
  def measure(members):
    return jax.vmap(lambda v: gate_statistics.statistics(predict(v, chunks)[1], weights_N))(members)

  found = measure(members)
  sequential = jax.jit(
    lambda members: jax.lax.map(
      lambda v: gate_statistics.statistics(predict(v, chunks)[1], weights_N), members
    )
  )(members)
  assert_same(sequential, found, rtol=1e-5, atol=1e-6)
  for m in range(2):
    variables = jax.tree.map(lambda a: a[m], members)  # noqa: B023 (used at once)
    own = evaluate.make_gates(model)(variables, features)
    wanted = expected(np.asarray(own), np.ones(len(features["ids"]), np.float32))
    assert_same({k: v[m] for k, v in found.items()}, wanted, rtol=1e-5, atol=1e-5)


class NoGates:
  """Model without gates."""

  def apply(self, variables, features, mutable):
    del mutable
    return features["numeric"] @ variables["kernel"], {}


def test_a_model_without_gates_gives_none():
  features = {"ids": np.zeros((3, 2, 1), np.uint8), "numeric": np.ones((3, 2, 5), np.float32)}
  kernel = np.arange(10, dtype=np.float32).reshape(5, 2)
  logits, nothing = evaluate.make_predict_with_gates(NoGates())({"kernel": kernel}, features)
  assert nothing is None
  np.testing.assert_allclose(logits, np.tile(kernel.sum(0), (6, 1)))
