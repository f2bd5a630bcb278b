"""Statistics of a split's scores for reports: metrics with intervals, ROC curves, calibration.

Intervals are over rows: another sample of rows from the same source, the model fixed.

Shape letters: N rows, C classes, D bootstrap draws, B bins, G points of a grid.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from mmoe_jax.data import Task
from mmoe_jax.evaluation import statistics

LEVEL = statistics.LEVEL
_BLOCK = 1 << 23  # Numbers that are in memory at a time.
_LEAST = 1e-12  # Probabilities closer to 0 or 1 have the loss of this one.


class Interval(NamedTuple):
  """Value with the ends of its interval."""

  value: float
  low: float
  high: float


class Curve(NamedTuple):
  """Curve with a pointwise band; all (G,)."""

  x: np.ndarray
  y: np.ndarray
  low: np.ndarray
  high: np.ndarray


class Calibration(NamedTuple):
  """Predictions against observations in bins of about equally many rows; all (B,).

  Attributes:
    predicted: mean prediction.
    observed: share of positives, or mean label.
    low: lower end of the interval of `observed`.
    high: its upper end.
    rows: number of rows.
  """

  predicted: np.ndarray
  observed: np.ndarray
  low: np.ndarray
  high: np.ndarray
  rows: np.ndarray

  @property
  def error(self) -> float:
    """Mean of |predicted − observed| over rows, the expected calibration error."""
    return float((np.abs(self.predicted - self.observed) * self.rows).sum() / self.rows.sum())


def draw_counts(rows: int, draws: int, seed: int = 0) -> np.ndarray:
  """Draws how often each row occurs in each bootstrap sample, (D, N) uint8.

  Counts are Poisson of mean 1, independent between rows: the bootstrap of ratios of sums, whose
  numerator and denominator vary together.
  """
  rng = np.random.default_rng(seed)
  counts_DxN = np.empty((draws, rows), np.uint8)
  for row in counts_DxN:
    row[:] = rng.poisson(1.0, rows)
  return counts_DxN


def metric_intervals(
  task: Task, scores: np.ndarray, labels_N: np.ndarray, counts_DxN: np.ndarray
) -> dict[str, Interval]:
  """Computes the metrics of metrics.OF_KIND with intervals.

  Args:
    task: the task.
    scores: (N,) probabilities or estimates in standard deviations of the label, (N, C) for
      multiclass.
    labels_N: labels, NaN where missing.
    counts_DxN: result of `draw_counts`.

  Returns:
    Metric -> interval: of an AUC by DeLong et al. (1988), of others the percentile interval of the
    bootstrap. Metrics that the labels leave undefined are absent.
  """
  is_labelled_N = ~np.isnan(labels_N)
  if not is_labelled_N.any():
    return {}
  terms_NxK, functions = _terms(task, scores, np.nan_to_num(labels_N))
  terms_NxK = np.where(is_labelled_N[:, None], terms_NxK, 0.0)
  sums_K = terms_NxK.sum(0)
  sums_DxK = np.concatenate([c @ terms_NxK for c in _blocks(counts_DxN)])
  found = {}
  if task.kind == "binary" and len(np.unique(labels_N[is_labelled_N])) == 2:
    found["auc"] = auc_interval(scores, labels_N)
  for name, function in functions.items():
    with np.errstate(divide="ignore", invalid="ignore"):
      value, values_D = float(function(sums_K)), function(sums_DxK.T)
    if np.isfinite(value):
      values_D = values_D[np.isfinite(values_D)]
      found[name] = Interval(value, *statistics.percentile_interval(values_D))
  return found


def auc_interval(scores_N: np.ndarray, labels_N: np.ndarray) -> Interval:
  """Computes an AUC with its interval; both classes must have rows."""
  placements = statistics.placements(scores_N, labels_N)
  variances = statistics.auc_variances(placements)
  half = statistics.half_interval(variances) if variances else np.nan
  value = placements.auc
  return Interval(value, max(0.0, value - half), min(1.0, value + half))


def _blocks(counts_DxN: np.ndarray) -> Iterator[np.ndarray]:
  """Yields draws as float64, few at a time."""
  step = max(1, _BLOCK // max(1, counts_DxN.shape[1]))
  for start in range(0, len(counts_DxN), step):
    yield counts_DxN[start : start + step].astype(np.float64)


def _terms(
  task: Task, scores: np.ndarray, y_N: np.ndarray
) -> tuple[np.ndarray, Mapping[str, Callable[[np.ndarray], np.ndarray]]]:
  """Returns terms (N, K) of each row, and metrics as functions of their sums (K, …)."""
  one_N = np.ones(len(y_N))
  if task.kind == "binary":
    p_N = np.clip(scores, _LEAST, 1 - _LEAST)
    loss_N = -(y_N * np.log(p_N) + (1 - y_N) * np.log1p(-p_N))
    terms = [loss_N, scores, y_N, one_N]
    return np.stack(terms, 1), {"log_loss": lambda s: s[0] / s[3], "pcoc": lambda s: s[1] / s[2]}
  if task.kind == "multiclass":
    at_y_N = np.take_along_axis(scores, y_N.astype(int)[:, None], axis=1)[:, 0]
    terms = [-np.log(np.maximum(at_y_N, _LEAST)), scores.argmax(1) == y_N, one_N]
    return np.stack(terms, 1), {
      "log_loss": lambda s: s[0] / s[2],
      "accuracy": lambda s: s[1] / s[2],
    }
  error_N = scores - y_N
  terms = [error_N**2, np.abs(error_N), y_N, y_N**2, one_N]
  return np.stack(terms, 1), {
    "mse": lambda s: s[0] / s[4],
    "mae": lambda s: s[1] / s[4],
    "r2": lambda s: 1 - s[0] / (s[3] - s[2] ** 2 / s[4]),
  }


def roc(scores_N: np.ndarray, labels_N: np.ndarray, counts_DxN: np.ndarray) -> Curve:
  """Computes a ROC curve with a pointwise band: true positive rates at false positive rates.

  Args:
    scores_N: scores; only their order matters.
    labels_N: 1 or 0, both of which occur.
    counts_DxN: result of `draw_counts` for these rows.
  """
  order_N = np.argsort(-scores_N, kind="stable")
  scores_N, is_positive_N = scores_N[order_N], labels_N[order_N] == 1
  # Rows of equal scores are one step of the curve.
  ends = np.append(np.flatnonzero(np.diff(scores_N)), len(scores_N) - 1)
  grid_G = np.unique(np.concatenate([[0.0], np.geomspace(1e-4, 1, 40), np.linspace(0, 1, 41)]))

  def curve(weights_N: np.ndarray) -> np.ndarray:
    positives_N = np.cumsum(np.where(is_positive_N, weights_N, 0.0))
    negatives_N = np.cumsum(np.where(is_positive_N, 0.0, weights_N))
    if not (positives_N[-1] and negatives_N[-1]):
      return np.full(len(grid_G), np.nan)
    x = np.append(0.0, negatives_N[ends] / negatives_N[-1])
    y = np.append(0.0, positives_N[ends] / positives_N[-1])
    # Of points with one false positive rate, the last has the largest true positive rate.
    last = np.append(np.diff(x) > 0, True)
    return np.interp(grid_G, x[last], y[last])

  drawn_DxG = np.stack([curve(counts_N[order_N]) for counts_N in counts_DxN])
  low_G, high_G = np.nanquantile(drawn_DxG, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
  return Curve(grid_G, curve(np.ones(len(scores_N))), low_G, high_G)


def calibration(
  predicted_N: np.ndarray, observed_N: np.ndarray, bins: int = 12, is_share: bool = True
) -> Calibration:
  """Computes predictions against observations in bins by the prediction.

  Args:
    predicted_N: probabilities, or estimates.
    observed_N: 0 or 1, or labels in the units of the estimates.
    bins: largest number of bins.
    is_share: whether observations are 0 or 1, with an interval by Wilson (1927); otherwise it is
      Student's interval of the mean.
  """
  edges = np.unique(np.quantile(predicted_N, np.linspace(0, 1, bins + 1)[1:-1]))
  bin_N = np.searchsorted(edges, predicted_N, side="right")
  columns = []
  for b in np.unique(bin_N):
    y = observed_N[bin_N == b]
    mean, rows = float(y.mean()), len(y)
    if is_share:
      low, high = wilson(int(y.sum()), rows)
    else:
      half = stats.t.ppf((1 + LEVEL) / 2, rows - 1) * y.std(ddof=1) / rows**0.5 if rows > 1 else 0.0
      low, high = mean - half, mean + half
    columns.append((float(predicted_N[bin_N == b].mean()), mean, low, high, rows))
  return Calibration(*(np.array(c) for c in zip(*columns, strict=True)))


def wilson(hits: int, of: int) -> tuple[float, float]:
  """Computes the score interval of a probability from `hits` of `of`.

  References:
    Wilson: Probable Inference, the Law of Succession, and Statistical Inference. JASA 22, 1927.
  """
  interval = stats.binomtest(hits, of).proportion_ci(LEVEL, method="wilson")
  return float(interval.low), float(interval.high)
