"""Multi-valued features: pooled as NumPy would, absent values without effect."""

import jax
import numpy as np
import pytest

from mmoe_jax import data, models
from mmoe_jax.models.embedding import FeatureEmbedding
from tests import reference

KEY = jax.random.key(0)


@pytest.mark.parametrize("dims", [(4, 4, 4, 4), (4, 2, 4, 2), (3, 5, 2, 5)])
def test_lists_are_pooled_over_their_known_values(dims):
  rng = reference.fresh_rng()
  sizes, lengths, poolings = (5, 7, 3, 9), (1, 3, 1, 4), ("", "mean", "", "sum")
  starts = np.cumsum([0, *lengths])
  ids = np.concatenate(
    [rng.integers(0, s, (20, n)) for s, n in zip(sizes, lengths, strict=True)], axis=1
  )
  ids[3, 1:4] = 0  # A row without values.
  features = {"ids": ids.astype(np.uint8), "numeric": rng.normal(size=(20, 2)).astype(np.float32)}
  module = FeatureEmbedding(sizes, dims, lengths, poolings)
  variables = jax.jit(module.init, static_argnums=2)(KEY, features, False)
  # Trained vectors of id 0 must have no effect on lists.
  variables = jax.tree.map(lambda a: a + 1, variables)
  got = jax.jit(module.apply, static_argnums=2)(variables, features, False)
  parts = []
  for dim in sorted(set(dims)):
    table = np.asarray(variables["params"][f"table_{dim}"], np.float64)
    offset = 0
    for f, size in enumerate(sizes):
      if dims[f] != dim:
        continue
      own = ids[:, starts[f] : starts[f + 1]]
      if lengths[f] == 1:
        parts.append(table[offset + own[:, 0]])
      else:
        vectors = [table[offset + row[row > 0]].sum(0) for row in own]
        counts = np.maximum(1, (own > 0).sum(1, keepdims=True))
        parts.append(np.array(vectors) / (counts if poolings[f] == "mean" else 1))
      offset += size
  expected = np.concatenate([*parts, features["numeric"]], axis=1)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_model_takes_the_lists_of_a_schema():
  tags = data.IdFeature(
    "tags", "list", ("tags",), ("a", "b"), length=3, pooling="mean", separator="|"
  )
  sex = data.IdFeature("sex", "category", ("sex",), ("f", "m"))
  tasks = (data.Task("t", "y", ("1",), ("0",)),)
  schema = data.Schema(("tags", "sex", "y"), (tags, sex), (), tasks)
  settings = {"name": "shared_bottom", "embedding_dim": 4, "embedding_dim_of": {}}
  model = models.create_model(settings, schema)
  features = {"ids": np.zeros((2, 4), np.uint8), "numeric": np.zeros((2, 0), np.float32)}
  features["ids"][:, 0] = 1
  features["ids"][1, 1] = 1  # The mean of equal values is the value.
  logits = jax.jit(model.apply)(jax.jit(model.init)(KEY, features), features)
  np.testing.assert_array_equal(logits[0], logits[1])
  assert logits.shape == (2, 1)
