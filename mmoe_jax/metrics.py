"""Metrics on the device: pure, jit-able and vmap-able functions of (outputs, labels, weights).

All are exact. Rows of weight 0 do not count, which is how masks, slices and padding are said; a
row without a label (NaN) has to have weight 0. OF_KIND says which metrics a kind of task has.

Shape letters: N rows, C classes.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def auc(logits_N: Array, labels_N: Array, weights_N: Array) -> Array:
  """Area under the ROC curve: P(score of a positive > of a negative) + P(equal) / 2.

  A positive has won against the negative weight below its score, and halved that at its score.
  Scores are sorted as integers, alone: that is five times as fast on a CPU as with their row
  numbers, and where each stands is then found by bisection. Negative weights are summed as
  integers too, of about 2^30 in all, so that sums are exact where rows count alike and the result
  agrees with float64 to about 1e-7 where they do not.

  Args:
    logits_N: scores; only their order matters.
    labels_N: 1 for positive, 0 for negative.
    weights_N: at least 0.

  Returns:
    A float32 scalar; NaN when the positives or the negatives have no weight, or when a score
    that counts is not finite.
  """
  # Neither depends on the weights, so vmap over weights still sorts only once.
  keys_N = _order_preserving(logits_N)
  place_N = jnp.searchsorted(jnp.sort(keys_N), keys_N)  # Equal scores have the same place.
  positive_N = labels_N == 1
  won_N = jnp.where(positive_N, weights_N, 0.0)
  lost_N = jnp.where(positive_N, 0.0, weights_N)
  lost_N = jnp.round(lost_N * (2.0**30 / jnp.maximum(lost_N.sum(), 1e-28))).astype(jnp.int32)
  at_N = jnp.zeros_like(lost_N).at[place_N].add(lost_N)
  through_N = jnp.cumsum(at_N)
  # As floats before the sum of both, which an int32 cannot hold.
  below_N, upto_N = (a.astype(jnp.float32)[place_N] for a in (through_N - at_N, through_N))
  total = won_N.sum() * through_N[-1]
  area = (won_N * (below_N / 2 + upto_N / 2)).sum() / jnp.where(total > 0, total, jnp.nan)
  # Sorting has an opinion on NaN; we have none.
  return jnp.where((jnp.isfinite(logits_N) | (weights_N == 0)).all(), area, jnp.nan)


def _order_preserving(x: Array) -> Array:
  """uint32 in the order of float32, equal where those are equal; NaN beyond everything."""
  bits = lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x).astype(jnp.float32), jnp.uint32)
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits >= sign, ~bits, bits | sign)


def log_loss(logits_N: Array, labels_N: Array, weights_N: Array) -> Array:
  """Mean of −y log p − (1 − y) log(1 − p), in nats, with p = σ(logit). NaN without weight."""
  y = (labels_N == 1).astype(jnp.float32)
  losses = jnp.maximum(logits_N, 0) - logits_N * y + jnp.log1p(jnp.exp(-jnp.abs(logits_N)))
  return _ratio((losses * weights_N).sum(), weights_N.sum())


def pcoc(logits_N: Array, labels_N: Array, weights_N: Array) -> Array:
  """Predicted over observed positives, sum(p) / sum(y): 1 is calibrated in the large.

  NaN when there are no positives.
  """
  predicted = (jax.nn.sigmoid(logits_N) * weights_N).sum()
  return _ratio(predicted, ((labels_N == 1) * weights_N).sum())


def multiclass_log_loss(logits_NxC: Array, labels_N: Array, weights_N: Array) -> Array:
  """Mean of −log softmax(logits)_y, in nats, y being the class's number. NaN without weight."""
  y_N = jnp.nan_to_num(labels_N).astype(jnp.int32)
  at_y_N = jnp.take_along_axis(logits_NxC, y_N[:, None], axis=1)[:, 0]
  losses_N = jax.nn.logsumexp(logits_NxC, axis=1) - at_y_N
  return _ratio((losses_N * weights_N).sum(), weights_N.sum())


def accuracy(logits_NxC: Array, labels_N: Array, weights_N: Array) -> Array:
  """Share of rows whose largest logit (the first of equal ones) is the label's.

  NaN without weight, or when a logit that counts is not finite.
  """
  right_N = jnp.argmax(logits_NxC, axis=1) == labels_N
  share = _ratio((right_N * weights_N).sum(), weights_N.sum())
  finite_N = jnp.isfinite(logits_NxC).all(1) | (weights_N == 0)
  return jnp.where(finite_N.all(), share, jnp.nan)


def mse(predictions_N: Array, labels_N: Array, weights_N: Array) -> Array:
  """Mean of (ŷ − y)², in the units of the label, that is standardised ones. NaN without weight."""
  errors_N = predictions_N - jnp.nan_to_num(labels_N)
  return _ratio((jnp.square(errors_N) * weights_N).sum(), weights_N.sum())


def mae(predictions_N: Array, labels_N: Array, weights_N: Array) -> Array:
  """Mean of |ŷ − y|, in the units of the label, that is standardised ones. NaN without weight."""
  errors_N = predictions_N - jnp.nan_to_num(labels_N)
  return _ratio((jnp.abs(errors_N) * weights_N).sum(), weights_N.sum())


def r2(predictions_N: Array, labels_N: Array, weights_N: Array) -> Array:
  """1 − sum (ŷ − y)² / sum (y − ȳ)²: the share of the label's variance that is explained.

  NaN when the labels that count are all equal.
  """
  y_N = jnp.nan_to_num(labels_N)
  variance = mse(
    jnp.full_like(y_N, _ratio((y_N * weights_N).sum(), weights_N.sum())), y_N, weights_N
  )
  # Whether labels are equal is asked of themselves: the mean's rounding would leave a variance.
  variance = jnp.where(_all_equal(y_N, weights_N), jnp.nan, variance)
  return 1 - mse(predictions_N, y_N, weights_N) / variance


def _all_equal(values_N: Array, weights_N: Array) -> Array:
  counts_N = weights_N > 0
  most = jnp.where(counts_N, values_N, -jnp.inf).max()
  return most <= jnp.where(counts_N, values_N, jnp.inf).min()


OF_KIND = {
  "binary": {"auc": auc, "log_loss": log_loss, "pcoc": pcoc},
  "multiclass": {"log_loss": multiclass_log_loss, "accuracy": accuracy},
  "regression": {"mse": mse, "mae": mae, "r2": r2},
}
LOWER_IS_BETTER = ("log_loss", "mse", "mae")
NEITHER_IS_BETTER = ("pcoc",)


def undefined(labels_N: Array, weights_N: Array, kind: str = "binary") -> Array:
  """0 where every metric of the kind is defined by the labels, else a key of REASONS."""
  some = (weights_N > 0).any()
  if kind == "binary":
    positives = ((labels_N == 1) * weights_N).sum() > 0
    negatives = ((labels_N != 1) * weights_N).sum() > 0
    code = jnp.where(positives & negatives, 0, jnp.where(positives, 3, 2))
  elif kind == "regression":
    code = jnp.where(_all_equal(labels_N, weights_N), 4, 0)
  else:
    code = 0
  return jnp.where(some, code, 1)


REASONS = {
  1: "no labelled row",
  2: "no positive row",
  3: "no negative row",
  4: "all labels are equal",
}
_CONCERNS = {2: ("auc", "pcoc"), 3: ("auc",), 4: ("r2",)}


def reason(code: int, metric: str) -> str | None:
  """Why the labels leave a metric undefined; None where they do not, and the outputs must.

  Args:
    code: what `undefined` gave.
    metric: its name.
  """
  return REASONS[code] if code == 1 or metric in _CONCERNS.get(code, ()) else None


def _ratio(numerator: Array, denominator: Array) -> Array:
  return numerator / jnp.where(denominator > 0, denominator, jnp.nan)
