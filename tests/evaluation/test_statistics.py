"""Intervals and AUC variances against brute force, scikit-learn, SciPy and the bootstrap."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from mmoe_jax.errors import UserError
from mmoe_jax.evaluation import statistics
from tests import reference


def tied_scores(rng, rows, signal=1.0, shared=None):
  """Returns labels and scores with many ties; `shared` correlates two sets of scores."""
  labels = rng.integers(0, 2, rows)
  labels[:2] = 0, 1
  noise = rng.normal(size=rows) + (0 if shared is None else shared)
  return labels, np.round(signal * labels + noise, 1)


def brute_placements(scores, labels):
  """Computes ψ over all pairs, in O(N²)."""
  p, n = scores[labels == 1], scores[labels == 0]
  psi_PxQ = (p[:, None] > n[None]) + 0.5 * (p[:, None] == n[None])
  return psi_PxQ.mean(1), psi_PxQ.mean(0)


@pytest.mark.parametrize("rows", [2, 3, 50, 700])
def test_placements_equal_all_pairs_and_scikit_learn(rows):
  labels, scores = tied_scores(reference.fresh_rng(), rows)
  found = statistics.placements(scores, labels)
  v10, v01 = brute_placements(scores, labels)
  np.testing.assert_allclose(found.v10_P, v10, atol=1e-12)
  np.testing.assert_allclose(found.v01_Q, v01, atol=1e-12)
  assert found.auc == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores), abs=1e-12)
  assert found.v01_Q.mean() == pytest.approx(found.auc, abs=1e-12)


@pytest.mark.parametrize("missing", [np.nan, -1])
def test_rows_without_a_label_do_not_count(missing):
  rng = reference.fresh_rng()
  labels, scores = tied_scores(rng, 60)
  more = np.concatenate([labels.astype(float), [missing] * 9])
  found = statistics.placements(np.concatenate([scores, rng.normal(size=9)]), more)
  np.testing.assert_array_equal(found.v10_P, statistics.placements(scores, labels).v10_P)


@pytest.mark.parametrize(
  ("labels", "scores", "message"),
  [
    ([0, 0], [1.0, 2.0], "no positive row"),
    ([1, 1], [1.0, 2.0], "no negative row"),
    ([0, 1], [1.0, np.nan], "not a number"),
  ],
)
def test_undefined_auc_is_refused(labels, scores, message):
  with pytest.raises(UserError, match=message):
    statistics.placements(np.array(scores), np.array(labels))


def test_mean_placements_are_those_of_the_mean_auc():
  rng = reference.fresh_rng()
  labels, _ = tied_scores(rng, 90)
  scores_MxN = np.round(labels + rng.normal(size=(4, 90)), 1)
  aucs = [sklearn.metrics.roc_auc_score(labels, s) for s in scores_MxN]
  found = statistics.mean_placements(scores_MxN, labels)
  assert found.auc == pytest.approx(np.mean(aucs), abs=1e-12)
  brute = np.mean([brute_placements(s, labels)[1] for s in scores_MxN], 0)
  np.testing.assert_allclose(found.v01_Q, brute, atol=1e-12)


def test_variance_of_a_difference_equals_delongs_covariance_matrix():
  rng = reference.fresh_rng()
  labels, first = tied_scores(rng, 200)
  second = np.round(first + rng.normal(size=200), 1)
  pairs = [brute_placements(s, labels) for s in (first, second)]
  # S = S10 / P + S01 / Q, and the variance of L θ is L S Lᵀ.
  s10, s01 = (np.cov(np.stack([p[i] for p in pairs])) for i in (0, 1))
  s = s10 / (labels == 1).sum() + s01 / (labels == 0).sum()
  contrast = np.array([1, -1])
  a, b = (statistics.placements(x, labels) for x in (first, second))
  found = sum(v.value for v in statistics.auc_variances(a, b))
  assert found == pytest.approx(contrast @ s @ contrast, rel=1e-9)
  assert sum(v.value for v in statistics.auc_variances(a)) == pytest.approx(s[0, 0], rel=1e-9)
  assert [v.freedom for v in statistics.auc_variances(a)] == [labels.sum() - 1, 199 - labels.sum()]


def test_variance_over_rows_equals_a_bootstrap_over_rows():
  rng = np.random.default_rng(7)
  labels, base = tied_scores(rng, 400)
  a_MxN = np.round(base + 0.5 * rng.normal(size=(3, 400)), 1)
  b_MxN = np.round(base + 0.8 * rng.normal(size=(3, 400)), 1)

  def auc(labels, scores):
    positive = labels == 1
    won = scipy.stats.rankdata(scores)[positive].mean() - (positive.sum() + 1) / 2
    return won / (~positive).sum()

  drawn = []
  for _ in range(500):
    rows = rng.integers(0, 400, 400)
    mean = [np.mean([auc(labels[rows], s[rows]) for s in each]) for each in (a_MxN, b_MxN)]
    drawn.append(mean[0] - mean[1])
  a, b = (statistics.mean_placements(each, labels) for each in (a_MxN, b_MxN))
  found = np.sqrt(sum(v.value for v in statistics.auc_variances(a, b)))
  # The standard error of a standard deviation of 500 draws is 3 %.
  assert found == pytest.approx(np.std(drawn), rel=0.15)
  # Pairing matters, because difficult rows are the same for both.
  apart = sum(v.value for each in (a, b) for v in statistics.auc_variances(each))
  assert found < 0.7 * np.sqrt(apart)


def test_one_row_of_a_class_tells_no_variance():
  found = statistics.placements(np.array([1.0, 2.0, 3.0]), np.array([0, 1, 0]))
  assert statistics.auc_variances(found) == []
  assert statistics.over_seeds(np.ones(3), statistics.auc_variances(found)).half_rows is None


def test_interval_over_seeds_is_students():
  values = reference.fresh_rng().normal(size=7)
  found = statistics.over_seeds(values)
  low, high = scipy.stats.t.interval(0.95, 6, values.mean(), scipy.stats.sem(values))
  assert found.value - found.half_seeds == pytest.approx(low)
  assert found.value + found.half_seeds == pytest.approx(high)
  assert found.std == pytest.approx(values.std(ddof=1))
  assert found.half is None
  assert found.half_rows is None


def test_paired_difference_is_students_paired_test():
  rng = reference.fresh_rng()
  a = rng.normal(size=9)
  b = a + 0.1 * rng.normal(size=9)
  found = statistics.over_seeds(a - b)
  interval = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
  assert found.value + found.half_seeds == pytest.approx(interval.high)


def test_two_sources_of_equal_weight_equal_welchs_interval():
  rng = reference.fresh_rng()
  a, b = rng.normal(size=6), 3 * rng.normal(size=11)
  half = statistics.half_interval([statistics.seed_variance(a), statistics.seed_variance(b)])
  interval = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
  assert half == pytest.approx((interval.high - interval.low) / 2)


def test_p_values_equal_scipys_and_agree_with_the_interval():
  rng = reference.fresh_rng()
  a, b = rng.normal(size=6), 3 * rng.normal(size=11) + 0.5
  welch = scipy.stats.ttest_ind(a, b, equal_var=False)
  sources = [statistics.seed_variance(a), statistics.seed_variance(b)]
  assert statistics.p_value(a.mean() - b.mean(), sources) == pytest.approx(welch.pvalue)
  # At the end of the interval of level 1 - p the mean is as large as its half width.
  level = 1 - welch.pvalue
  assert statistics.half_interval(sources, level) == pytest.approx(abs(a.mean() - b.mean()))
  for shift in (0.0, 0.6, 3.0):
    found = statistics.over_seeds(a + shift, [statistics.Variance(0.1, 50)])
    assert (found.p < 0.05) == (found.half < abs(found.value))
  assert statistics.p_value(0.0, []) == 1
  assert statistics.p_value(-1e-9, []) == 0


def test_holm_by_hand():
  # 0.01 * 4, 0.013 * 3 (raised to the one before), 0.03 * 2, 0.5.
  found = statistics.holm([0.5, 0.013, 0.01, 0.03])
  np.testing.assert_allclose(found, [0.5, 0.04, 0.04, 0.06])
  np.testing.assert_allclose(statistics.holm([0.9, 0.6]), [1, 1])
  assert statistics.holm([]).shape == (0,)


def test_holm_rejects_what_stepping_down_rejects():
  p_values = reference.fresh_rng().random(30) ** 4
  order = np.argsort(p_values)
  passed = p_values[order] <= 0.05 / np.arange(30, 0, -1)
  rejected = order[: 30 if passed.all() else int(passed.argmin())]
  np.testing.assert_array_equal(
    np.flatnonzero(statistics.holm(p_values) <= 0.05), np.sort(rejected)
  )


def test_one_seed_and_no_variance():
  alone = statistics.over_seeds([0.5], [statistics.Variance(1e-4, 99)])
  assert alone.value == 0.5
  assert alone.std is alone.half_seeds is alone.half is alone.p is None
  assert alone.half_rows == pytest.approx(scipy.stats.t.ppf(0.975, 99) * 1e-2)
  # A method against itself.
  nothing = statistics.over_seeds(np.zeros(3), [statistics.Variance(0.0, 9)])
  assert nothing.half == nothing.half_seeds == 0
  assert nothing.p == 1
  with pytest.raises(UserError, match="no seed"):
    statistics.over_seeds([])


def test_interval_over_both_is_no_narrower_than_over_either():
  # Two seeds have one degree of freedom: t is 12.7.
  few = statistics.over_seeds([0.93, 0.94], [statistics.Variance(1e-6, 999)])
  assert few.half == few.half_seeds == pytest.approx(12.706 * 0.005, rel=1e-4)
  rng = reference.fresh_rng()
  rows = [statistics.Variance(1e-4, 40_000)]
  many = statistics.over_seeds(rng.normal(0.9, 0.04, 20), rows)
  expected = statistics.half_interval([statistics.Variance(many.std**2 / 20, 19), *rows])
  assert max(many.half_seeds, many.half_rows) < many.half == pytest.approx(expected)


def test_interval_over_both_sources_has_its_stated_coverage():
  """With new rows and seeds each time, the true difference is inside in 95 % of cases."""
  rng = np.random.default_rng(3)
  members, rows, trials = 4, 150, 400
  # A seed draws how much noise its model adds; the same rows are scored by both methods.
  hits = hits_seeds = 0
  truth = _true_difference()
  for _ in range(trials):
    labels = (rng.random(rows) < 0.4).astype(int)
    hard = rng.normal(size=rows)
    scores = [
      labels + hard[None] + noise * rng.lognormal(0, 0.4, (members, 1)) * unit
      for noise, unit in zip((0.5, 1.0), rng.normal(size=(2, members, rows)), strict=True)
    ]
    a, b = (statistics.mean_placements(s, labels) for s in scores)
    aucs = [[statistics.placements(x, labels).auc for x in s] for s in scores]
    found = statistics.over_seeds(np.subtract(*aucs), statistics.auc_variances(a, b))
    hits += abs(found.value - truth) < found.half
    hits_seeds += abs(found.value - truth) < found.half_seeds
  # The standard error of a share of 0.95 over 400 trials is 0.011.
  assert 0.92 < hits / trials <= 0.995
  assert hits_seeds < hits


def _true_difference():
  """Returns the mean over seeds of Φ(1 / sqrt(2 (1 + σ²))): normal scores, means one apart."""
  spread = np.random.default_rng(0).lognormal(0, 0.4, 400_000)
  auc = [
    scipy.stats.norm.cdf(1 / np.sqrt(2 * (1 + (noise * spread) ** 2))).mean()
    for noise in (0.5, 1.0)
  ]
  return auc[0] - auc[1]


def test_bootstrap_of_the_mean_is_near_the_normal_interval():
  values = np.random.default_rng(5).normal(2.0, 1.0, (1, 300))
  draws = statistics.bootstrap(values, draws=4000)
  assert draws.shape == (1, 4000)
  low, high = statistics.percentile_interval(draws[0])
  half = 1.96 * values.std() / np.sqrt(300)
  assert low == pytest.approx(values.mean() - half, abs=0.015)
  assert high == pytest.approx(values.mean() + half, abs=0.015)


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_bootstrap_resamples_runs_together(statistic):
  base = reference.fresh_rng().normal(size=40)
  # Method 1 is method 0 plus a constant, run by run: their difference is certain.
  draws = statistics.bootstrap(np.stack([base, base + 0.25]), statistic, draws=200, seed=1)
  np.testing.assert_allclose(draws[1] - draws[0], 0.25)
  assert draws[0].std() > 0
  assert statistics.probability_below(draws[0], draws[1]) == 1
  again = statistics.bootstrap(np.stack([base, base + 0.25]), statistic, draws=200, seed=1)
  np.testing.assert_array_equal(draws, again)


def test_bootstrap_in_blocks_is_right_for_many_runs():
  values = np.arange(2000.0).reshape(2, 1000)
  draws = statistics.bootstrap(values, draws=2500)
  assert np.isfinite(draws).all()
  np.testing.assert_allclose(draws[1] - draws[0], 1000)


def test_probability_of_an_ordering_counts_ties_half():
  assert statistics.probability_below(np.array([0.0, 1, 2, 3]), np.array([1.0, 1, 1, 1])) == 0.375


def test_exact_interval_of_a_share():
  # The ends are where a tail has 2.5 %.
  low, high = statistics.share_interval(187, 200)
  assert scipy.stats.binom.sf(186, 200, low) == pytest.approx(0.025)
  assert scipy.stats.binom.cdf(187, 200, high) == pytest.approx(0.025)
  assert statistics.share_interval(10, 10)[1] == 1
