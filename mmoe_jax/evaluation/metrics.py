"""Metrics on the device: pure functions of (outputs, labels, weights) for jit and vmap.

None is approximated by bins; see `auc` for its rounding. Rows of weight 0 do not count: masks,
slices and padding are weights. A row without a label (NaN) must have weight 0. OF_KIND lists the
metrics of each kind of task.

Shape letters: N rows, C classes.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def auc(logits_N: Array, labels_N: Array, weights_N: Array) -> Array:
  """Computes the area under the ROC curve: P(positive scores higher) + P(equal scores) / 2.

  Each positive counts the negative weight below its score, and half of that at its score. Scores
  are sorted as integers without their row numbers, five times as fast on a CPU; their ranks follow
  by bisection. Negative weights are summed as integers with a total of about 2^30: sums are exact
  for equal weights, and within about 1e-7 of float64 otherwise.

  Args:
    logits_N: scores; only their order matters.
    labels_N: 1 for positive, 0 for negative.
    weights_N: at least 0.

  Returns:
    A float32 scalar. NaN if the positives or the negatives have no weight, or if any counted score
    is not finite.
  """
  # Neither depends on the weights, so vmap over weights still sorts only once.
  keys_N = _order_preserving(logits_N)
  rank_N = jnp.searchsorted(jnp.sort(keys_N), keys_N)  # Equal scores have equal ranks.
  is_positive_N = labels_N == 1
  positive_N = jnp.where(is_positive_N, weights_N, 0.0)
  negative_N = jnp.where(is_positive_N, 0.0, weights_N)
  scale = 2.0**30 / jnp.maximum(negative_N.sum(), 1e-28)
  negative_N = jnp.round(negative_N * scale).astype(jnp.int32)
  at_N = jnp.zeros_like(negative_N).at[rank_N].add(negative_N)
  up_to_N = jnp.cumsum(at_N)
  # As floats before their sum, which could exceed an int32.
  below_N, up_to_score_N = (a.astype(jnp.float32)[rank_N] for a in (up_to_N - at_N, up_to_N))
  total = positive_N.sum() * up_to_N[-1]
  area = (positive_N * (below_N / 2 + up_to_score_N / 2)).sum() / jnp.where(
    total > 0, total, jnp.nan
  )
  # AUC is NaN if any counted score is not finite.
  return jnp.where((jnp.isfinite(logits_N) | (weights_N == 0)).all(), area, jnp.nan)


def _order_preserving(x: Array) -> Array:
  """Maps float32 to uint32 in the same order; NaN is larger than all numbers."""
  bits = lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x).astype(jnp.float32), jnp.uint32)
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits >= sign, ~bits, bits | sign)


def log_loss(logits_N: Array, labels_N: Array, weights_N: Array) -> Array:
  """Computes the mean of −y log p − (1 − y) log(1 − p), p = σ(logit), nats. NaN without weight."""
  y = (labels_N == 1).astype(jnp.float32)
  losses = jnp.maximum(logits_N, 0) - logits_N * y + jnp.log1p(jnp.exp(-jnp.abs(logits_N)))
  return _ratio((losses * weights_N).sum(), weights_N.sum())


def pcoc(logits_N: Array, labels_N: Array, weights_N: Array) -> Array:
  """Computes predicted over observed positives, sum(p) / sum(y): 1 if calibrated on average.

  NaN without positives.
  """
  predicted = (jax.nn.sigmoid(logits_N) * weights_N).sum()
  return _ratio(predicted, ((labels_N == 1) * weights_N).sum())


def multiclass_log_loss(logits_NxC: Array, labels_N: Array, weights_N: Array) -> Array:
  """Computes the mean of −log softmax(logits)_y, y the class number, nats. NaN without weight."""
  y_N = jnp.nan_to_num(labels_N).astype(jnp.int32)
  at_y_N = jnp.take_along_axis(logits_NxC, y_N[:, None], axis=1)[:, 0]
  losses_N = jax.nn.logsumexp(logits_NxC, axis=1) - at_y_N
  return _ratio((losses_N * weights_N).sum(), weights_N.sum())


def accuracy(logits_NxC: Array, labels_N: Array, weights_N: Array) -> Array:
  """Computes the share of rows whose largest logit (the first of equal ones) is the label's.

  NaN without weight, or if a counted logit is not finite.
  """
  right_N = jnp.argmax(logits_NxC, axis=1) == labels_N
  share = _ratio((right_N * weights_N).sum(), weights_N.sum())
  finite_N = jnp.isfinite(logits_NxC).all(1) | (weights_N == 0)
  return jnp.where(finite_N.all(), share, jnp.nan)


def mse(predictions_N: Array, labels_N: Array, weights_N: Array) -> Array:
  """Computes the mean of (ŷ − y)², in units of the standardised label. NaN without weight."""
  errors_N = predictions_N - jnp.nan_to_num(labels_N)
  return _ratio((jnp.square(errors_N) * weights_N).sum(), weights_N.sum())


def mae(predictions_N: Array, labels_N: Array, weights_N: Array) -> Array:
  """Computes the mean of |ŷ − y|, in units of the standardised label. NaN without weight."""
  errors_N = predictions_N - jnp.nan_to_num(labels_N)
  return _ratio((jnp.abs(errors_N) * weights_N).sum(), weights_N.sum())


def r2(predictions_N: Array, labels_N: Array, weights_N: Array) -> Array:
  """Computes 1 − sum (ŷ − y)² / sum (y − ȳ)²: the explained share of the label's variance.

  NaN if all counted labels are equal.
  """
  y_N = jnp.nan_to_num(labels_N)
  variance = mse(
    jnp.full_like(y_N, _ratio((y_N * weights_N).sum(), weights_N.sum())), y_N, weights_N
  )
  # Compares labels, because rounding of the mean would leave a variance.
  variance = jnp.where(_all_equal(y_N, weights_N), jnp.nan, variance)
  return 1 - mse(predictions_N, y_N, weights_N) / variance


def _all_equal(values_N: Array, weights_N: Array) -> Array:
  counts_N = weights_N > 0
  largest = jnp.where(counts_N, values_N, -jnp.inf).max()
  return largest <= jnp.where(counts_N, values_N, jnp.inf).min()


OF_KIND = {
  "binary": {"auc": auc, "log_loss": log_loss, "pcoc": pcoc},
  "multiclass": {"log_loss": multiclass_log_loss, "accuracy": accuracy},
  "regression": {"mse": mse, "mae": mae, "r2": r2},
}
LOWER_IS_BETTER = ("log_loss", "mse", "mae")
NEITHER_IS_BETTER = ("pcoc",)


def undefined(labels_N: Array, weights_N: Array, kind: str = "binary") -> Array:
  """Returns 0 if the labels define every metric of the kind, else a key of REASONS."""
  has_weight = (weights_N > 0).any()
  if kind == "binary":
    positives = ((labels_N == 1) * weights_N).sum() > 0
    negatives = ((labels_N != 1) * weights_N).sum() > 0
    code = jnp.where(positives & negatives, 0, jnp.where(positives, 3, 2))
  elif kind == "regression":
    code = jnp.where(_all_equal(labels_N, weights_N), 4, 0)
  else:
    code = 0
  return jnp.where(has_weight, code, 1)


REASONS = {
  1: "no labelled row",
  2: "no positive row",
  3: "no negative row",
  4: "all labels are equal",
}
_AFFECTED = {2: ("auc", "pcoc"), 3: ("auc",), 4: ("r2",)}


def reason(code: int, metric: str) -> str | None:
  """Returns why the labels leave a metric undefined; None if the outputs are the reason.

  Args:
    code: result of `undefined`.
    metric: name of the metric.
  """
  return REASONS[code] if code == 1 or metric in _AFFECTED.get(code, ()) else None


def _ratio(numerator: Array, denominator: Array) -> Array:
  return numerator / jnp.where(denominator > 0, denominator, jnp.nan)
