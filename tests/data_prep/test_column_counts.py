"""Statistics of train rows: the same for any parts, in any order."""

import numpy as np
import pytest

from data_prep import column_counts
from mmoe_jax.data.columns import Factor, from_rows
from tests import reference


def merged(counts, merge, rng):
  """Merges parts in a random order and grouping."""
  counts = [counts[i] for i in rng.permutation(len(counts))]
  while len(counts) > 1:
    at = int(rng.integers(1, len(counts)))
    counts = [merge(counts[: at + 1]), *counts[at + 1 :]]
  return counts[0]


@pytest.mark.parametrize("exact", [1 << 16, 100])
def test_numbers_do_not_depend_on_the_parts(monkeypatch, exact):
  monkeypatch.setattr(column_counts, "_EXACT", exact)
  rng = reference.fresh_rng()
  x = np.concatenate([rng.normal(0, 1e3, 3000), rng.integers(0, 9, 900), [np.nan, -0.0, 0.0]])
  rng.shuffle(x)
  whole = column_counts.count_numbers(x)
  for _ in range(5):
    ends = np.sort(rng.integers(0, len(x), 7))
    parts = [column_counts.count_numbers(part) for part in np.split(x, ends)]
    got = merged(parts, column_counts.merge_numbers, rng)
    np.testing.assert_array_equal(got.values, whole.values)
    np.testing.assert_array_equal(got.counts, whole.counts)
    assert (got.missing, got.least, got.most) == (1, np.nanmin(x), np.nanmax(x))
    assert got.is_exact == whole.is_exact == (exact > 100)
    assert got.moments(got.values) == whole.moments(whole.values)
  known = x[~np.isnan(x)]
  mean, std = whole.moments(whole.values)
  assert mean == pytest.approx(known.mean(), rel=1e-12 if exact > 100 else 2e-3, abs=0.5)
  assert std == pytest.approx(known.std(), rel=1e-12 if exact > 100 else 2e-3)
  error = np.abs(whole.quantiles(64) - np.quantile(known, np.linspace(0, 1, 65), method="lower"))
  assert (error <= 2e-3 * np.abs(whole.quantiles(64)) + 1e-9).all()


def test_texts_do_not_depend_on_the_parts():
  rng = reference.fresh_rng()
  values = [f"v{i}" for i in rng.zipf(1.3, 3000) % 500]
  whole = column_counts.count_texts(from_rows([{"c": v} for v in values]).factor("c")).sorted()
  for _ in range(5):
    parts = [
      column_counts.count_texts(from_rows([{"c": v} for v in part]).factor("c"))
      for part in np.split(np.array(values), np.sort(rng.choice(np.arange(1, 3000), 6, False)))
    ]
    texts, counts = merged(parts, column_counts.merge_texts, rng).sorted()
    assert texts == whole[0] == sorted(set(values))
    np.testing.assert_array_equal(counts, whole[1])
  assert dict(zip(*whole, strict=True)) == {v: values.count(v) for v in set(values)}


def test_only_the_given_rows_count():
  factor = from_rows([{"c": v} for v in "aabbc"]).factor("c")
  texts, counts = column_counts.count_texts(factor, np.array([1, 0, 1, 0, 0], bool)).sorted()
  assert (texts, counts.tolist()) == (["a", "b"], [1, 1])


@pytest.mark.parametrize("distinct", [0, 5, 3000, 200_000])
def test_distinct_values_are_estimated_in_any_parts(distinct):
  rng = reference.fresh_rng()
  texts = [f"value {rng.integers(1 << 60)}" for _ in range(distinct)] + [""]
  factor = Factor(np.arange(len(texts)), texts)
  whole = column_counts.count_distinct(factor)
  assert whole.estimate() == pytest.approx(distinct, rel=0.05)
  parts = [
    column_counts.count_distinct(factor, rng.random(len(texts)) < share) for share in (0.3, 0.6, 1)
  ]
  got = merged(parts, column_counts.merge_distinct, rng)
  np.testing.assert_array_equal(got.registers, whole.registers)
  buckets = max(2, distinct // 2)
  chosen = rng.integers(0, buckets, distinct)
  share = (np.bincount(chosen, minlength=buckets)[chosen] > 1).mean() if distinct else 0.0
  assert whole.shared(buckets) == pytest.approx(share, abs=0.05 if distinct > 5 else 1)
