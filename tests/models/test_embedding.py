"""FeatureEmbedding against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmoe_jax.models.embedding import FeatureEmbedding, compress, table_layouts
from tests import reference

KEY = jax.random.key(0)


def random_features(rng, sizes, rows, numbers):
  ids = np.stack([rng.integers(0, size, rows) for size in sizes], 1).astype(np.uint8)
  return {"ids": ids, "numeric": rng.normal(size=(rows, numbers)).astype(np.float32)}


@pytest.mark.parametrize("dims", [(4, 4, 4), (2, 8, 2), (1, 2, 3)])
def test_embedding_looks_up_each_features_own_rows(dims):
  rng = reference.fresh_rng()
  sizes = (3, 200, 7)
  features = random_features(rng, sizes, 50, 2)
  module = FeatureEmbedding(sizes, dims)
  variables = jax.jit(module.init, static_argnums=2)(KEY, features, False)
  out = jax.jit(module.apply, static_argnums=2)(variables, features, False)
  tables = jax.tree.map(np.asarray, variables["params"])
  expected = reference.embed(tables, sizes, dims, features["ids"], features["numeric"])
  np.testing.assert_array_equal(out, expected)


def test_embedding_of_unknown_values_starts_at_zero_and_of_no_other():
  sizes = (3, 5)
  module = FeatureEmbedding(sizes, (4, 4))
  blank = {"ids": np.zeros((1, 2), np.uint8), "numeric": np.zeros((1, 0), np.float32)}
  table = jax.jit(module.init, static_argnums=2)(KEY, blank, False)["params"]["table_4"]
  np.testing.assert_array_equal((table == 0).all(1), [True, False, False] + [True] + [False] * 4)


def test_features_of_one_table_have_the_same_vectors():
  rng = reference.fresh_rng()
  sizes, dims, lengths = (9, 5, 9, 9), (4, 4, 4, 4), (1, 1, 1, 3)
  layouts = table_layouts(sizes, dims, lengths, ("items", "", "items", "items"))
  assert [layout.rows for layout in layouts] == [14]
  np.testing.assert_array_equal(layouts[0].first_rows, [0, 9])
  ids = np.concatenate([rng.integers(0, size, (20, 1)) for size in (9, 5, 9, 9, 9, 9)], 1)
  features = {"ids": ids.astype(np.uint8), "numeric": np.zeros((20, 0), np.float32)}
  poolings = ("", "", "", "sum")
  module = FeatureEmbedding(sizes, dims, lengths, poolings, ("items", "", "items", "items"))
  variables = module.init(KEY, features, False)
  table = np.asarray(variables["params"]["table_4"])
  items, other = table[:9], table[9:]
  history = sum(items[ids[:, c]] for c in (3, 4, 5))
  expected = np.concatenate([items[ids[:, 0]], other[ids[:, 1]], items[ids[:, 2]], history], 1)
  np.testing.assert_allclose(module.apply(variables, features, False), expected, rtol=1e-6)


def scramble(x):
  """Returns the hash of models/kernels.py, of Python integers."""
  x = int(x)
  x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
  x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
  return x ^ (x >> 16)


@pytest.mark.parametrize("kind", ["quotient_remainder", "double_hash"])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_compressed_features_equal_numpy(kind, pooling):
  rng = reference.fresh_rng()
  sizes, lengths, rows = (1000, 30, 1000), (1, 1, 3), 100
  compressions = tuple(compress(kind, size, rows) for size in sizes)
  assert compressions[1] is None
  module = FeatureEmbedding(sizes, (4, 4, 4), lengths, ("", "", pooling), (), compressions)
  ids = np.concatenate([rng.integers(0, size, (40, 1)) for size in (1000, 30, 1000, 1000, 1000)], 1)
  ids[:5, 2:4] = 0
  features = {"ids": ids.astype(np.uint16), "numeric": np.zeros((40, 0), np.float32)}
  table = np.asarray(module.init(KEY, features, False)["params"]["table_4"], np.float64)
  first, second = compressions[0].moduli
  assert first + second <= rows
  assert len(table) == 2 * (first + second) + 30

  def vector(number, at):
    number = int(number)
    if number == 0:
      return np.zeros(4)
    if kind == "double_hash":
      a, b = (scramble(number ^ scramble(salt)) % m for salt, m in ((1, first), (2, second)))
      return table[at + a] + table[at + first + b]
    return (1 + table[at + number // second]) * table[at + first + number % second]

  expected = []
  for row in ids:
    lists = [vector(number, first + second + 30) for number in row[2:]]
    pooled = sum(lists) / (1 if pooling == "sum" else max(1, np.count_nonzero(row[2:])))
    expected.append([*vector(row[0], 0), *table[first + second + row[1]], *pooled])
  variables = {"params": {"table_4": jnp.asarray(table, jnp.float32)}}
  np.testing.assert_allclose(
    module.apply(variables, features, False), expected, rtol=2e-5, atol=1e-6
  )


def test_quotients_and_remainders_are_different_for_different_ids():
  for size, rows in ((1000, 66), (1000, 100), (10**6, 2002), (10**6, 10**5), (17, 10)):
    first, second = compress("quotient_remainder", size, rows).moduli
    assert first + second <= rows
    assert first * second >= size  # So no two ids have the same pair.
  with pytest.raises(ValueError, match=r"at least 2,002 for 1,000,000 ids"):
    compress("quotient_remainder", 10**6, 2001)
  assert compress("quotient_remainder", 10, 10) is None
