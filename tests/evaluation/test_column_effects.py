"""Effects of columns against scikit-learn, and against NumPy with the same permutations."""

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.inspection
import sklearn.metrics

from mmoe_jax.data import IdFeature, NumericFeature, Schema, Task
from mmoe_jax.evaluation import column_effects, evaluate
from tests import reference

ROWS, REPEATS = 150, 4
# In float32, a few of the 5,000 pairs of scores that an AUC compares may change their order.
PAIRS = 5e-4
SCHEMA = Schema(
  columns=("a", "b", "x", "y"),
  id_features=(
    IdFeature("a", "category", ("a",), ("p", "q", "r")),
    IdFeature("b", "category", ("b",), ("s", "t")),
    IdFeature("x_bins", "bins", ("x",), (-1.0, 0.0, 1.0), has_missing=True),
    IdFeature("a#b", "cross", ("a", "b"), (4, 5, 8, 10)),
  ),
  numeric=(
    NumericFeature("x", 0.0, 1.0, "identity", has_missing=True, edges=(-2.0, 0.0, 2.0)),
    NumericFeature("y", 0.0, 1.0, "identity"),
  ),
  tasks=(
    Task("t"),
    Task("u", kind="regression"),
    Task("v", kind="multiclass", classes=("0", "1")),
  ),
)
SIZES = [4, 3, 5, 5]


class Linear:
  """Model of four logits: sums over one number per id, and a linear map of numbers."""

  def apply(self, variables, features):
    ids, numeric = features["ids"], features["numeric"]
    total = sum(table[ids[:, f]] for f, table in enumerate(variables["tables"]))
    return total + jnp.tanh(numeric @ variables["weights"])


def cross_of(ids):
  """Returns the ids of the crossed feature."""
  pairs = ids[:, 0] * 3 + ids[:, 1]
  return np.array([{4: 1, 5: 2, 8: 3, 10: 4}.get(int(p), 0) for p in pairs])


def problem():
  rng = reference.fresh_rng()
  ids = np.stack([rng.integers(0, size, ROWS) for size in SIZES], 1).astype(np.int32)
  ids[:, 3] = cross_of(ids)
  features = {"ids": ids, "numeric": rng.normal(size=(ROWS, 5)).astype(np.float32)}
  variables = {
    "tables": [rng.normal(size=(size, 4)).astype(np.float32) for size in SIZES],
    "weights": (rng.normal(size=(5, 4)) / 3).astype(np.float32),
  }
  labels = np.stack(
    [rng.integers(0, 2, ROWS), rng.normal(size=ROWS), rng.integers(0, 2, ROWS)], 1
  ).astype(np.float32)
  labels[:2, 0] = 0, 1
  labels[rng.random(labels.shape) < 0.1] = np.nan
  return rng, variables, features, labels


def logits_of(variables, features):
  total = sum(t[features["ids"][:, f]] for f, t in enumerate(variables["tables"]))
  return (total + np.tanh(features["numeric"] @ variables["weights"])).astype(np.float64)


def metrics_of(variables, features, labels):
  """Returns AUC, R² and log loss by scikit-learn."""
  z = logits_of(variables, {**features, "ids": with_cross(features["ids"])})
  known = ~np.isnan(labels)
  found = [
    sklearn.metrics.roc_auc_score(labels[known[:, 0], 0], z[known[:, 0], 0]),
    sklearn.metrics.r2_score(labels[known[:, 1], 1], z[known[:, 1], 1]),
  ]
  p = np.exp(z[:, 2:]) / np.exp(z[:, 2:]).sum(1, keepdims=True)
  return [*found, sklearn.metrics.log_loss(labels[known[:, 2], 2], p[known[:, 2]])]


def with_cross(ids):
  return np.concatenate([ids[:, :3], cross_of(ids)[:, None]], 1)


def measure(variables, features, labels, permutations):
  program = jax.jit(column_effects.make_measure(evaluate.make_predict(Linear()), SCHEMA))
  return jax.device_get(program(variables, features, labels, permutations.astype(np.int32)))


# Inputs of each column: ids without crosses, and numbers: x, y, whether x is missing, two pieces.
INPUTS = {"a": ([0], []), "b": ([1], []), "x": ([2], [0, 2, 3, 4]), "y": ([], [1])}


def test_effects_equal_numpy_with_the_same_permutations():
  rng, variables, features, labels = problem()
  permutations = np.stack([rng.permutation(ROWS) for _ in range(REPEATS)])
  found = measure(variables, features, labels, permutations)
  assert column_effects.columns_of(SCHEMA).names == list(INPUTS)
  base = metrics_of(variables, features, labels)
  np.testing.assert_allclose(found.base_T, base, atol=PAIRS)
  unknown = {"ids": [0, 0, 4, 0], "numeric": [0, 0, 1, 0, 0]}
  for c, places in enumerate(INPUTS.values()):
    for r, rows in enumerate(permutations):
      changed = {name: array.copy() for name, array in features.items()}
      for name, at in zip(("ids", "numeric"), places, strict=True):
        changed[name][:, at] = features[name][rows][:, at]
      expected = metrics_of(variables, changed, labels)
      np.testing.assert_allclose(found.permuted_CxRxT[c, r], expected, atol=PAIRS)
    changed = {name: array.copy() for name, array in features.items()}
    for name, at in zip(("ids", "numeric"), places, strict=True):
      changed[name][:, at] = np.array(unknown[name])[at]
    expected = metrics_of(variables, changed, labels)
    np.testing.assert_allclose(found.unknown_CxT[c], expected, atol=PAIRS)
  worse = column_effects.worsening(SCHEMA.tasks, found.base_T, found.unknown_CxT)
  signs = np.array([1, 1, -1])  # A higher log loss is worse.
  np.testing.assert_allclose(worse, signs * (found.base_T - found.unknown_CxT))


def test_importance_equals_scikit_learn():
  _, variables, features, labels = problem()
  labels = np.nan_to_num(labels)

  class Estimator:
    """Model on a table of the raw columns: a, b, the bin of x, y; x's numbers depend on its bin."""

    def fit(self, x, y):
      return self

    def decision_function(self, table):
      return logits_of(variables, inputs_of(table))[:, 0]

  def inputs_of(table):
    ids = table[:, :3].astype(np.int32)
    numbers = np.stack([ids[:, 2] - 2, table[:, 3], ids[:, 2] == 4, ids[:, 2] > 1, ids[:, 2] > 2])
    ids = np.concatenate([ids, cross_of(ids)[:, None]], 1).astype(np.int32)
    return {"ids": ids, "numeric": numbers.T.astype(np.float32)}

  table = np.column_stack([features["ids"][:, :3], features["numeric"][:, 1]])
  scorer = lambda model, x, y: sklearn.metrics.roc_auc_score(y, model.decision_function(x))
  expected = sklearn.inspection.permutation_importance(
    Estimator(), table, labels[:, 0], scoring=scorer, n_repeats=REPEATS, random_state=7
  )
  # It draws one seed, and permutes each column again and again, with the same permutations.
  seed = np.random.RandomState(7).randint(np.iinfo(np.int32).max + 1)
  shuffles, rows, order = np.random.RandomState(seed), np.arange(ROWS), np.arange(ROWS)
  permutations = []
  for _ in range(REPEATS):
    shuffles.shuffle(rows)
    order = order[rows]
    permutations.append(order)
  found = measure(variables, inputs_of(table), labels, np.stack(permutations))
  worse = column_effects.worsening(SCHEMA.tasks, found.base_T, found.permuted_CxRxT)
  np.testing.assert_allclose(worse[:, :, 0], expected.importances, atol=PAIRS)


def test_shares_of_unknown_values_count_rows_without_any_known_input():
  _, _, features, _ = problem()
  features["ids"][:, :2] = 1
  features["ids"][:30, 0] = 0
  features["numeric"][:, 2], features["ids"][:, 2] = 0, 2
  features["numeric"][:60, 2], features["ids"][:75, 2] = 1, 4
  found = column_effects.unknown_shares(SCHEMA, features)
  np.testing.assert_allclose(found, [0.2, 0, 0.4, 0])
