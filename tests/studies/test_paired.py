"""Paired intervals from covariances equal those from scores."""

import json

import numpy as np
import pytest

from mmoe_jax.errors import UserError
from mmoe_jax.evaluation import statistics
from studies import paired


@pytest.fixture(scope="module")
def measured():
  rng = np.random.default_rng(0)
  labels_N = (rng.random(400) < 0.3).astype(float)
  base_N = labels_N + rng.normal(size=400)
  scores = {
    m: base_N + rng.normal(size=(4, 400)) * s for m, s in (("a", 0.5), ("b", 0.9), ("c", 2))
  }
  placed = {m: statistics.mean_placements(s, labels_N) for m, s in scores.items()}
  runs = [
    {"method": m, "seed": seed, "auc": statistics.placements(s[seed], labels_N).auc}
    for m, s in scores.items()
    for seed in range(4)
  ]
  # As read from a file.
  return placed, runs, json.loads(json.dumps(paired.covariances(placed)))


@pytest.mark.parametrize(("first", "second"), [("a", ""), ("a", "b"), ("c", "a")])
def test_intervals_are_those_of_the_scores(measured, first, second):
  placed, runs, rows = measured
  aucs = {m: np.array([r["auc"] for r in runs if r["method"] == m]) for m in placed}
  values_M = aucs[first] - (aucs[second] if second else 0)
  direct = statistics.auc_variances(placed[first], placed[second] if second else None)
  expected = statistics.over_seeds(values_M, direct)
  found = paired.estimate(runs, "auc", rows, first, second)
  np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_pairs_are_the_seeds_that_both_have(measured):
  _, runs, rows = measured
  some = [r | {"auc": None} if (r["method"], r["seed"]) == ("b", 2) else r for r in runs]
  whole, part = (paired.estimate(r, "auc", rows, "a", "b") for r in (runs, some))
  assert whole.value != part.value
  with pytest.raises(UserError, match="no seed has a value of auc"):
    paired.estimate([r | {"auc": None} for r in runs], "auc", rows, "a")
  with pytest.raises(UserError, match="a method is 'd', which does not exist"):
    paired.variances(rows, "a", "d")


def test_one_row_of_a_class_has_no_variance():
  placed = {"a": statistics.placements(np.arange(4.0), np.array([0, 0, 0, 1.0]))}
  assert paired.variances(paired.covariances(placed), "a") == []
