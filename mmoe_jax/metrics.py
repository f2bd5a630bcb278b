"""Metrics on the device: pure, jit-able and vmap-able functions of (scores, labels, weights).

All are exact. Rows of weight 0 do not count, which is how masks, slices and padding are said.
Shape letter: N rows.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def auc(logits_N: Array, labels_N: Array, weights_N: Array) -> Array:
  """Area under the ROC curve: P(score of a positive > of a negative) + P(equal) / 2.

  Rows are sorted once; a positive then has won against the negative weight below its group of
  equal scores, and halved that within it. Sums run over float32 in a tree, so the result agrees
  with float64 to about 1e-7.

  Args:
    logits_N: scores; only their order matters.
    labels_N: 1 for positive, 0 for negative.
    weights_N: at least 0.

  Returns:
    A float32 scalar; NaN when the positives or the negatives have no weight, or when a score
    that counts is not finite.
  """
  # The order does not depend on the weights, so vmap over weights still sorts only once.
  order = jnp.argsort(logits_N, stable=False)
  area = _auc_of_sorted(
    logits_N[order], (labels_N[order] == 1).astype(jnp.float32), weights_N[order]
  )
  # Sorting has an opinion on NaN; we have none.
  return jnp.where((jnp.isfinite(logits_N) | (weights_N == 0)).all(), area, jnp.nan)


def _auc_of_sorted(scores_N: Array, positive_N: Array, weights_N: Array) -> Array:
  negative = weights_N * (1 - positive_N)
  total_negative = negative.sum()
  # Scaled first, so that every running sum is a fraction of at most 1.
  negative = negative / jnp.where(total_negative > 0, total_negative, jnp.nan)
  through = jnp.cumsum(negative)
  step = scores_N[1:] != scores_N[:-1]
  first = jnp.concatenate([jnp.ones(1, bool), step])
  last = jnp.concatenate([step, jnp.ones(1, bool)])
  below = lax.cummax(jnp.where(first, through - negative, 0.0))
  upto = lax.cummin(jnp.where(last, through, jnp.inf), reverse=True)
  won = weights_N * positive_N
  total_positive = won.sum()
  return (won * (below + upto)).sum() / (2 * jnp.where(total_positive > 0, total_positive, jnp.nan))


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


def undefined(labels_N: Array, weights_N: Array) -> Array:
  """0 where both classes have weight; else 1 no rows, 2 no positive, 3 no negative.

  See REASONS for the words.
  """
  positives = ((labels_N == 1) * weights_N).sum() > 0
  negatives = ((labels_N != 1) * weights_N).sum() > 0
  return jnp.where(positives & negatives, 0, jnp.where(positives, 3, jnp.where(negatives, 2, 1)))


REASONS = {1: "no labelled row", 2: "no positive row", 3: "no negative row"}


def _ratio(numerator: Array, denominator: Array) -> Array:
  return numerator / jnp.where(denominator > 0, denominator, jnp.nan)
