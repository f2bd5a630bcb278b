"""Metrics against scikit-learn and float64 NumPy, on fresh random inputs."""

import jax
import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from mmoe_jax import metrics
from tests import reference

CASES = ("random", "tied", "weighted", "tied and weighted", "rare", "all tied")


def draw(case: str, rows: int):
  rng = reference.fresh_rng()
  scores = rng.normal(size=rows)
  if "tied" in case:
    scores = np.zeros(rows) if case == "all tied" else np.round(scores, 1)
  labels = rng.random(rows) < (0.01 if case == "rare" else 1 / (1 + np.exp(-scores)))
  labels[:2] = True, False
  weights = rng.exponential(1000, rows) if "weighted" in case else np.ones(rows)
  return np.float32(scores), labels.astype(np.int8), np.float32(weights)


@pytest.mark.parametrize("rows", [2, 17, 1000, 200_000])
@pytest.mark.parametrize("case", CASES)
def test_auc_equals_scikit_learn(case, rows):
  scores, labels, weights = draw(case, rows)
  expected = roc_auc_score(labels, scores.astype(np.float64), sample_weight=weights.astype(float))
  assert abs(float(jax.jit(metrics.auc)(scores, labels, weights)) - expected) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_auc_equals_the_count_of_pairs(case):
  scores, labels, weights = draw(case, 500)
  assert (
    abs(float(metrics.auc(scores, labels, weights)) - reference.auc(*(scores, labels, weights)))
    < 1e-6
  )


def test_auc_by_hand():
  scores, labels = np.float32([1, 2, 2, 3]), np.int8([0, 1, 0, 1])
  np.testing.assert_allclose(metrics.auc(scores, labels, np.ones(4)), (2 + 1.5) / 4)
  # Without the tied negative only the lowest is left; both positives beat it.
  np.testing.assert_allclose(metrics.auc(scores, labels, np.float32([1, 1, 0, 1])), 1.0)


def test_rows_of_weight_zero_do_not_count():
  scores, labels, weights = draw("tied", 300)
  padded = [np.concatenate([a, a[:50]]) for a in (scores, labels)]
  mask = np.concatenate([weights, np.zeros(50, np.float32)])
  for metric in (metrics.auc, metrics.log_loss, metrics.pcoc):
    np.testing.assert_allclose(metric(*padded, mask), metric(scores, labels, weights), rtol=1e-6)


def test_auc_of_a_task_is_of_that_task_alone():
  # DeepCTR-Torch #287 and PaddleRec #981: all tasks in one AUC, the second task's one wrong.
  columns = [draw("random", 400) for _ in range(3)]
  scores, labels, weights = (np.stack(c, 1) for c in zip(*columns, strict=True))
  got = jax.vmap(metrics.auc, in_axes=1)(scores, labels, weights)
  expected = [roc_auc_score(y, s) for s, y, _ in columns]
  np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_nan_with_a_reason(label):
  scores, weights = np.float32([1, 2, 3]), np.ones(3, np.float32)
  labels = np.full(3, label, np.int8)
  assert np.isnan(metrics.auc(scores, labels, weights))
  reason = metrics.REASONS[int(metrics.undefined(labels, weights))]
  assert reason == ("no positive row", "no negative row")[label]


def test_no_rows_is_nan_with_a_reason():
  scores, labels, weights = np.float32([1, 2]), np.int8([0, 1]), np.zeros(2, np.float32)
  for metric in (metrics.auc, metrics.log_loss, metrics.pcoc):
    assert np.isnan(metric(scores, labels, weights))
  assert metrics.REASONS[int(metrics.undefined(labels, weights))] == "no labelled row"


@pytest.mark.parametrize("case", CASES)
def test_log_loss_and_pcoc_equal_float64(case):
  scores, labels, weights = draw(case, 200_000)
  p = 1 / (1 + np.exp(-scores.astype(np.float64)))
  w = weights.astype(np.float64)
  expected = log_loss(labels, p, sample_weight=w)
  np.testing.assert_allclose(metrics.log_loss(scores, labels, weights), expected, rtol=1e-5)
  expected = (p * w).sum() / (labels * w).sum()
  np.testing.assert_allclose(metrics.pcoc(scores, labels, weights), expected, rtol=1e-5)
