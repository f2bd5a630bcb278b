"""Statistics of comparisons, in NumPy float64: over seeds, over rows, over both.

A measured AUC has two sources of error: other seeds give another model, and other test rows another
AUC. An interval over seeds does not cover the second, which is larger than most published
differences between models.

Shape letters: M members (seeds), N rows, P positive rows, Q negative rows, G methods, R runs,
D bootstrap draws.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from mmoe_jax.errors import require

LEVEL = 0.95


class Estimate(NamedTuple):
  """Mean with its intervals.

  Attributes:
    value: the mean.
    std: standard deviation of a single seed; None for one seed.
    half_seeds: half width of the interval over seeds alone, rows fixed; None for one seed.
    half_rows: half width of the interval over rows alone, seeds fixed; None without rows.
    half: half width of the interval over both; None if either is.
    p: p-value of a mean of zero, over both; below 0.05 if and only if `half`, of the level 95 %,
      is below the mean's magnitude. None if `half` is.
  """

  value: float
  std: float | None
  half_seeds: float | None
  half_rows: float | None
  half: float | None
  p: float | None


class Placements(NamedTuple):
  """Placement of each row among the rows of the other class.

  Attributes:
    v10_P: for each positive, the share of negatives below it, ties counted half.
    v01_Q: for each negative, the share of positives above it, ties counted half.
  """

  v10_P: np.ndarray
  v01_Q: np.ndarray

  @property
  def auc(self) -> float:
    """Mean of either placements, which is the AUC."""
    return float(self.v10_P.mean())


class Variance(NamedTuple):
  """Variance of a mean, and the degrees of freedom of its estimate."""

  value: float
  freedom: float


# ---- Over seeds ------------------------------------------------------------------------------


def half_interval(variances: Sequence[Variance], level: float = LEVEL) -> float:
  """Computes the half width of a confidence interval of a mean with independent errors.

  t · sqrt(sum_i v_i), t the quantile of Student's distribution at the degrees of freedom of
  Welch and Satterthwaite, (sum_i v_i)² / sum_i (v_i² / f_i). With one source it is Student's
  interval.

  Args:
    variances: variance of the mean from each source.
    level: confidence level.

  References:
    Satterthwaite: An Approximate Distribution of Estimates of Variance Components. Biometrics
    Bulletin 2(6), 1946.
  """
  total = _sum(variances)
  return float(stats.t.ppf((1 + level) / 2, total.freedom) * np.sqrt(total.value))


def p_value(value: float, variances: Sequence[Variance]) -> float:
  """Computes the two-sided p-value of a mean of zero, of the same test as `half_interval`.

  Args:
    value: the mean.
    variances: variance of the mean from each source; with none of them, a mean of zero has the
      p-value 1 and any other 0.
  """
  total = _sum(variances)
  if total.value == 0:
    return float(value == 0)
  return float(2 * stats.t.sf(abs(value) / np.sqrt(total.value), total.freedom))


def holm(p_values_C: Sequence[float]) -> np.ndarray:
  """Adjusts p-values of C comparisons, so that each may be compared with one level.

  Sorted from the smallest, the i-th is multiplied by C − i + 1, and is at least the one before.
  The probability of any false rejection is at most the level, whatever the comparisons' dependence.

  Args:
    p_values_C: p-values in any order.

  Returns:
    The adjusted p-values, in the same order.

  References:
    Holm: A Simple Sequentially Rejective Multiple Test Procedure. Scandinavian Journal of
    Statistics 6(2), 1979.
  """
  p_values_C = np.asarray(p_values_C, np.float64)
  order_C = np.argsort(p_values_C, kind="stable")
  factors_C = np.arange(len(p_values_C), 0, -1)
  adjusted_C = np.empty_like(p_values_C)
  adjusted_C[order_C] = np.minimum(1, np.maximum.accumulate(factors_C * p_values_C[order_C]))
  return adjusted_C


def _sum(variances: Sequence[Variance]) -> Variance:
  """Adds variances; degrees of freedom by Welch and Satterthwaite."""
  total = sum(v.value for v in variances)
  if total == 0:
    return Variance(0.0, 1.0)
  return Variance(total, total**2 / sum(v.value**2 / v.freedom for v in variances))


def seed_variance(values_M: np.ndarray) -> Variance | None:
  """Computes the variance of the mean over seeds, s² / M; None for a single seed."""
  values_M = np.asarray(values_M, np.float64)
  members = len(values_M)
  return Variance(float(values_M.var(ddof=1) / members), members - 1) if members > 1 else None


def over_seeds(
  values_M: np.ndarray, rows: Sequence[Variance] = (), level: float = LEVEL
) -> Estimate:
  """Computes the mean over seeds with its intervals; pass differences for a paired comparison.

  The variance over rows and the variance over seeds are added. Both contain the interaction of
  the two, divided by M, so the interval is slightly too wide. With very few seeds, whose interval
  is wide because of few degrees of freedom, the interval over both is at least as wide.

  Args:
    values_M: one number per seed.
    rows: result of `auc_variances` for the same numbers; empty to ignore rows.
    level: confidence level.
  """
  values_M = np.asarray(values_M, np.float64)
  require(len(values_M) > 0, "no seed to average over")
  seeds = seed_variance(values_M)
  half_seeds = half_interval([seeds], level) if seeds else None
  half_rows = half_interval(rows, level) if rows else None
  mean, half, p = float(values_M.mean()), None, None
  if seeds and rows:
    sources = ([seeds, *rows], [seeds], rows)
    half = max(half_interval(s, level) for s in sources)
    p = max(p_value(mean, s) for s in sources)
  std = float(values_M.std(ddof=1)) if seeds else None
  return Estimate(mean, std, half_seeds, half_rows, half, p)


# ---- AUC over rows ---------------------------------------------------------------------------


def placements(scores_N: np.ndarray, labels_N: np.ndarray) -> Placements:
  """Computes the placement of each row, in O(N log N) and exact with ties.

  V10_i = mean_j ψ(x_i, y_j),  V01_j = mean_i ψ(x_i, y_j),  with ψ(x, y) = 1 if x > y, 1/2 if
  x = y, else 0, for positives x_i and negatives y_j.

  Args:
    scores_N: higher means more probably positive; only their order matters.
    labels_N: 1 or 0; rows with NaN (a missing label) or below 0 are left out.

  Raises:
    UserError: if a class has no row or a score is NaN.

  References:
    DeLong, DeLong, Clarke-Pearson: Comparing the Areas under Two or More Correlated Receiver
    Operating Characteristic Curves: A Nonparametric Approach. Biometrics 44(3), 1988.
  """
  labels_N = np.asarray(labels_N, np.float64)
  scores_N = np.asarray(scores_N, np.float64)
  positive_P, negative_Q = scores_N[labels_N == 1], scores_N[labels_N == 0]
  require(len(positive_P) > 0, "no positive row, so that there is no AUC")
  require(len(negative_Q) > 0, "no negative row, so that there is no AUC")
  finite = not (np.isnan(positive_P).any() or np.isnan(negative_Q).any())
  require(finite, "a score is not a number, so that there is no AUC")
  return Placements(_share_below(positive_P, negative_Q), 1 - _share_below(negative_Q, positive_P))


def _share_below(of: np.ndarray, among: np.ndarray) -> np.ndarray:
  among = np.sort(among)
  below = np.searchsorted(among, of, side="left")
  upto = np.searchsorted(among, of, side="right")
  return (below + upto) / (2 * len(among))


def mean_placements(scores_MxN: np.ndarray, labels_N: np.ndarray) -> Placements:
  """Averages placements over seeds: those of the mean AUC, a mean of U-statistics.

  Args:
    scores_MxN: scores of the same rows after each training.
    labels_N: see `placements`.
  """
  total: Placements | None = None
  for scores_N in scores_MxN:
    own = placements(scores_N, labels_N)
    total = own if total is None else Placements(*(a + b for a, b in zip(total, own, strict=True)))
  require(total is not None, "no seed to average over")
  return Placements(*(v / len(scores_MxN) for v in total))


def auc_variances(a: Placements, b: Placements | None = None) -> list[Variance]:
  """Computes the variance over rows of an AUC, or of the difference of two on the same rows.

  var(V10) / P + var(V01) / Q (DeLong et al. 1988). For two AUCs V is V_a − V_b, whose variance
  includes the covariance of the two.

  Args:
    a: placements, of one training or averaged over several.
    b: placements of the same rows, to compare with; None for a single AUC.

  Returns:
    The terms of positives and of negatives. Empty if a class has a single row.
  """
  parts = a if b is None else [x - y for x, y in zip(a, b, strict=True)]
  if min(map(len, parts)) < 2:
    return []
  return [Variance(float(v.var(ddof=1) / len(v)), len(v) - 1) for v in parts]


# ---- Bootstrap over runs ---------------------------------------------------------------------


def bootstrap(
  values_GxR: np.ndarray,
  statistic: Callable[..., np.ndarray] = np.mean,
  draws: int = 10_000,
  seed: int = 0,
) -> np.ndarray:
  """Draws a statistic over resampled runs, (G, D).

  Each draw has the same runs for all methods, so that effects of shared data cancel in differences.

  Args:
    values_GxR: value of each method in each run.
    statistic: reduction over `axis`, such as np.mean or np.median.
    draws: number of draws.
    seed: seed of the resampling.
  """
  values_GxR = np.asarray(values_GxR, np.float64)
  methods, runs = values_GxR.shape
  require(runs > 0, "no run to resample")
  rng = np.random.default_rng(seed)
  drawn_GxD = np.empty((methods, draws))
  block = max(1, 2_000_000 // (methods * runs))  # Limits memory to some tens of megabytes.
  for start in range(0, draws, block):
    stop = min(draws, start + block)
    picked_DxR = rng.integers(0, runs, (stop - start, runs))
    drawn_GxD[:, start:stop] = statistic(values_GxR[:, picked_DxR], axis=-1)
  return drawn_GxD


def percentile_interval(draws: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
  """Returns the ends of the percentile interval of bootstrap draws (Efron 1979)."""
  low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def probability_below(a_D: np.ndarray, b_D: np.ndarray) -> float:
  """Returns the share of draws in which the first is below the second, ties counted half."""
  a_D, b_D = np.asarray(a_D), np.asarray(b_D)
  return float(((a_D < b_D) + 0.5 * (a_D == b_D)).mean())


def share_interval(hits: int, of: int, level: float = LEVEL) -> tuple[float, float]:
  """Computes the exact interval of a probability (Clopper and Pearson 1934) from `hits` of `of`."""
  interval = stats.binomtest(hits, of).proportion_ci(level, method="exact")
  return float(interval.low), float(interval.high)
