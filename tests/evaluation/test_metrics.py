"""Metrics against scikit-learn and float64 NumPy, on fresh random inputs."""

import jax
import numpy as np
import pytest
from sklearn.metrics import (
  accuracy_score,
  log_loss,
  mean_absolute_error,
  mean_squared_error,
  r2_score,
  roc_auc_score,
)

from mmoe_jax.evaluation import metrics
from tests import reference

CASES = ("random", "tied", "weighted", "tied and weighted", "rare", "all tied")


def run(function, *arrays, **static):
  """Computes a metric as a compiled program, which calls with the same shapes share."""
  return jax.jit(function, static_argnames=tuple(static))(*arrays, **static)


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
  assert abs(float(run(metrics.auc, scores, labels, weights)) - expected) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_auc_equals_the_count_of_pairs(case):
  scores, labels, weights = draw(case, 500)
  expected = reference.auc(scores, labels, weights)
  assert abs(float(run(metrics.auc, scores, labels, weights)) - expected) < 1e-6


def test_auc_by_hand():
  scores, labels = np.float32([1, 2, 2, 3]), np.int8([0, 1, 0, 1])
  np.testing.assert_allclose(run(metrics.auc, scores, labels, np.ones(4)), (2 + 1.5) / 4)
  # Without the tied negative only the lowest is left; both positives beat it.
  np.testing.assert_allclose(run(metrics.auc, scores, labels, np.float32([1, 1, 0, 1])), 1.0)


def test_rows_of_weight_zero_do_not_count():
  scores, labels, weights = draw("tied", 300)
  padded = [np.concatenate([a, a[:50]]) for a in (scores, labels)]
  mask = np.concatenate([weights, np.zeros(50, np.float32)])
  for metric in (metrics.auc, metrics.log_loss, metrics.pcoc):
    np.testing.assert_allclose(
      run(metric, *padded, mask), run(metric, scores, labels, weights), rtol=1e-6
    )


def test_auc_of_a_task_is_of_that_task_alone():
  # DeepCTR-Torch #287 and PaddleRec #981: all tasks in one AUC, the second task's one wrong.
  columns = [draw("random", 400) for _ in range(3)]
  scores, labels, weights = (np.stack(c, 1) for c in zip(*columns, strict=True))
  got = run(jax.vmap(metrics.auc, in_axes=1), scores, labels, weights)
  expected = [roc_auc_score(y, s) for s, y, _ in columns]
  np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_nan_with_a_reason(label):
  scores, weights = np.float32([1, 2, 3]), np.ones(3, np.float32)
  labels = np.full(3, label, np.int8)
  assert np.isnan(run(metrics.auc, scores, labels, weights))
  reason = metrics.REASONS[int(run(metrics.undefined, labels, weights))]
  assert reason == ("no positive row", "no negative row")[label]


def test_no_rows_is_nan_with_a_reason():
  scores, labels, weights = np.float32([1, 2]), np.int8([0, 1]), np.zeros(2, np.float32)
  for metric in (metrics.auc, metrics.log_loss, metrics.pcoc):
    assert np.isnan(run(metric, scores, labels, weights))
  assert metrics.REASONS[int(run(metrics.undefined, labels, weights))] == "no labelled row"


@pytest.mark.parametrize("case", CASES)
def test_log_loss_and_pcoc_equal_float64(case):
  scores, labels, weights = draw(case, 200_000)
  p = 1 / (1 + np.exp(-scores.astype(np.float64)))
  w = weights.astype(np.float64)
  expected = log_loss(labels, p, sample_weight=w)
  np.testing.assert_allclose(run(metrics.log_loss, scores, labels, weights), expected, rtol=1e-5)
  expected = (p * w).sum() / (labels * w).sum()
  np.testing.assert_allclose(run(metrics.pcoc, scores, labels, weights), expected, rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("rows", "classes"), [(7, 2), (1000, 5), (100_000, 17)])
def test_multiclass_metrics_equal_scikit_learn(rows, classes, weighted):
  rng = reference.fresh_rng()
  logits = np.float32(rng.normal(size=(rows, classes)) * 3)
  labels = rng.integers(0, classes, rows)
  w = np.float32(rng.exponential(1000, rows) if weighted else np.ones(rows))
  p = reference.softmax(logits.astype(np.float64))
  w64 = w.astype(np.float64)
  got = {
    name: float(run(metric, logits, np.float32(labels), w))
    for name, metric in metrics.OF_KIND["multiclass"].items()
  }
  expected = {
    "log_loss": log_loss(labels, p, sample_weight=w64, labels=range(classes)),
    "accuracy": accuracy_score(labels, p.argmax(1), sample_weight=w64),
  }
  assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows", [2, 1000, 200_000])
@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_regression_metrics_equal_scikit_learn(rows, shift, weighted):
  rng = reference.fresh_rng()
  labels = np.float32(rng.normal(size=rows) + shift)
  predictions = np.float32(labels + rng.normal(size=rows) / 2)
  w = np.float32(rng.exponential(1000, rows) if weighted else np.ones(rows))
  y, z, w64 = (a.astype(np.float64) for a in (labels, predictions, w))
  got = {
    name: float(run(metric, predictions, labels, w))
    for name, metric in metrics.OF_KIND["regression"].items()
  }
  expected = {
    "mse": mean_squared_error(y, z, sample_weight=w64),
    "mae": mean_absolute_error(y, z, sample_weight=w64),
    "r2": r2_score(y, z, sample_weight=w64),
  }
  # Two rows may have almost equal labels: r2 then divides by almost zero.
  assert got == pytest.approx(expected, rel=1e-2 if rows == 2 else 1e-4)


@pytest.mark.parametrize("kind", metrics.OF_KIND)
def test_rows_of_weight_zero_and_without_a_label_do_not_count(kind):
  rng = reference.fresh_rng()
  outputs = np.float32(rng.normal(size=(300, 4) if kind == "multiclass" else 300))
  sizes = {"binary": 2, "multiclass": 4}
  labels = rng.normal(size=300) if kind == "regression" else rng.integers(0, sizes[kind], 300)
  labels = np.float32(labels)
  labels[200:] = np.nan
  weights = np.float32(rng.exponential(size=300)) * (np.arange(300) < 200)
  for metric in metrics.OF_KIND[kind].values():
    alone = run(metric, outputs[:200], labels[:200], weights[:200])
    np.testing.assert_allclose(run(metric, outputs, labels, weights), alone, rtol=1e-4)
  assert int(run(metrics.undefined, labels, weights, kind=kind)) == 0


@pytest.mark.parametrize("value", [0.3, -7.1, 1e6])
def test_r2_of_equal_labels_is_nan_with_a_reason(value):
  rng = reference.fresh_rng()
  labels, weights = np.full(1001, value, np.float32), np.float32(rng.exponential(size=1001))
  labels[0], weights[0] = 5, 0
  predictions = np.float32(rng.normal(size=1001))
  assert np.isnan(run(metrics.r2, predictions, labels, weights))
  code = int(run(metrics.undefined, labels, weights, kind="regression"))
  assert metrics.reason(code, "r2") == "all labels are equal"
  assert metrics.reason(code, "mse") is None
  assert np.isfinite(run(metrics.mse, predictions, labels, weights))


@pytest.mark.parametrize("kind", metrics.OF_KIND)
def test_only_metrics_that_labels_leave_undefined_are_nan(kind):
  outputs = np.float32(np.ones((3, 2)) if kind == "multiclass" else np.ones(3))
  ones = np.ones(3, np.float32)
  for labels, weights in ((ones, 0 * ones), (ones, ones), (0 * ones, ones)):
    code = int(run(metrics.undefined, labels, weights, kind=kind))
    for name, metric in metrics.OF_KIND[kind].items():
      value = run(metric, outputs, labels, weights)
      assert np.isnan(value) == (metrics.reason(code, name) is not None)


@pytest.mark.parametrize("kind", metrics.OF_KIND)
def test_output_that_is_not_finite_is_no_number(kind):
  outputs = np.ones((4, 2) if kind == "multiclass" else 4, np.float32)
  outputs[1] = np.nan
  labels, weights = np.float32([0, 1, 0, 1]), np.ones(4, np.float32)
  for metric in metrics.OF_KIND[kind].values():
    assert np.isnan(run(metric, outputs, labels, weights))
