"""Huge pages: whole pages of large arrays only, values stay."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from mmoe_jax.parallel import huge_pages

PAGE = 1 << 21


@pytest.fixture
def advised(monkeypatch):
  """Records what is asked of the operating system: (start, bytes, advice)."""
  calls = []
  madvise = huge_pages._madvise()

  def record(start, size, advice):
    calls.append((start, size, advice))
    return madvise(start, size, advice) if madvise else -1

  monkeypatch.setattr(huge_pages, "_madvise", lambda: record)
  return calls


@pytest.mark.parametrize("pages", [2, 3, 19])
def test_advises_whole_pages_inside_the_array(advised, pages):
  values = np.arange(pages * PAGE // 4 + 5, dtype=np.float32)
  array = jnp.asarray(values.copy())
  start, end = array.unsafe_buffer_pointer(), array.unsafe_buffer_pointer() + array.nbytes
  huge_pages.use_huge_pages({"array": array}, set())
  assert all(at % PAGE == 0 and size % PAGE == 0 for at, size, _ in advised)
  assert all(start <= at and at + size <= end for at, size, _ in advised)
  for advice in (14, 25):
    parts = sorted((at, size) for at, size, a in advised if a == advice)
    assert sum(size for _, size in parts) >= (pages - 1) * PAGE
    assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(parts))
  assert array.unsafe_buffer_pointer() == start
  np.testing.assert_array_equal(array, values)


def test_leaves_small_arrays_alone(advised):
  huge_pages.use_huge_pages([jnp.ones(10), jnp.ones(PAGE // 4)], set())
  assert not advised


def test_does_nothing_without_madvise(monkeypatch):
  monkeypatch.setattr(huge_pages, "_madvise", lambda: None)
  huge_pages.use_huge_pages(jnp.ones(PAGE), set())


def test_tries_each_place_once(advised):
  array, tried = jnp.ones(PAGE), set()
  huge_pages.use_huge_pages([array], tried)
  count = len(advised)
  assert count > 0
  huge_pages.use_huge_pages([array], tried)
  assert len(advised) == count
