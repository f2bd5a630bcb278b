"""Packed lists: places and pooling against NumPy, embeddings against padded ones."""

import jax
import numpy as np
import pytest

from mmoe_jax.models import packed_lists
from mmoe_jax.models.embedding import Compression, FeatureEmbedding
from tests import reference

KEY = jax.random.key(0)


def lists_of(rng, rows, length, most=20):
  """Returns ids (rows, length), known ones first; some rows have none."""
  counts = rng.integers(0, length + 1, rows) * (rng.random(rows) < 0.7)
  return rng.integers(1, most, (rows, length)) * (np.arange(length) < counts[:, None])


@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_pooled_vectors_are_those_of_numpy(pooling, spare):
  rng = reference.fresh_rng()
  ids_BxL = lists_of(rng, 13, 6)
  table_VxD = rng.normal(size=(20, 3)).astype(np.float32)
  total = int((ids_BxL > 0).sum())
  packed = packed_lists.pack(ids_BxL, total + spare)
  of_place = ids_BxL[np.minimum(packed.batch_C, 12), packed.column_C]
  np.testing.assert_array_equal(np.asarray(of_place)[:total], ids_BxL[ids_BxL > 0])
  assert (np.asarray(packed.batch_C)[total:] == 13).all()
  got = packed_lists.pool(table_VxD[of_place], packed, pooling)
  for b, ids in enumerate(ids_BxL):
    vectors = table_VxD[ids[ids > 0]].astype(np.float64)
    expected = vectors.sum(0) / (max(len(vectors), 1) if pooling == "mean" else 1)
    np.testing.assert_allclose(got[b], expected, atol=1e-5)


def test_lists_that_are_empty_or_full():
  for ids, capacity in ((np.zeros((4, 3), int), 2), (np.ones((4, 3), int), 12)):
    packed = packed_lists.pack(ids, capacity)
    np.testing.assert_array_equal(packed.count_B, (ids > 0).sum(1))
    got = packed_lists.pool(np.ones((capacity, 2), np.float32), packed, "sum")
    np.testing.assert_array_equal(got, np.repeat(ids.sum(1)[:, None], 2, axis=1))


def test_capacities_hold_all_values_and_are_few():
  chosen = set()
  for most in range(51_201):
    capacity = packed_lists.choose_capacity(most, 1024, 50)
    assert capacity == 0 or most <= capacity <= 1.19 * max(most, 1) + 1
    if capacity == 0:
      assert most > 0.6 * 51_200
    chosen.add(capacity)
  assert len(chosen) < 70


def test_embeddings_and_gradients_are_those_of_padded_lists():
  rng = reference.fresh_rng()
  sizes, dims, lengths = (20, 7, 50, 20, 9), (4, 4, 4, 4, 3), (5, 1, 4, 3, 2)
  poolings = ("mean", "", "sum", "mean", "sum")
  compressions = (None, None, Compression("quotient_remainder", (5, 10)), None, None)
  module = FeatureEmbedding(sizes, dims, lengths, poolings, ("a", "", "", "a", ""), compressions)
  parts = [
    lists_of(rng, 11, n, size) if n > 1 else rng.integers(0, size, (11, 1))
    for n, size in zip(lengths, sizes, strict=True)
  ]
  ids = np.concatenate(parts, axis=1).astype(np.uint32)
  features = {"ids": ids, "numeric": rng.normal(size=(11, 2)).astype(np.float32)}
  variables = jax.jit(lambda f: module.init(KEY, f, False))(features)
  lists = {f: packed_lists.pack(parts[f], int((parts[f] > 0).sum()) + 3) for f in (0, 2, 4)}
  weights = rng.normal(size=(11, sum(dims) + 2)).astype(np.float32)

  @jax.jit
  def run(variables, features):
    value = lambda v: (module.apply(v, features, False) * weights).sum()
    return module.apply(variables, features, False), jax.grad(value)(variables)

  padded = run(variables, features)
  packed = run(variables, {**features, packed_lists.LISTS: lists})
  compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  jax.tree.map(compare, packed, padded)
