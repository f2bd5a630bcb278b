"""Metrics with intervals, ROC curves and calibration against other libraries and simulations."""

import jax
import numpy as np
import pytest
import sklearn.metrics

from mmoe_jax.data import Task
from mmoe_jax.evaluation import held_out_statistics as statistics
from mmoe_jax.evaluation import metrics
from tests import reference

ROWS = 900


def sample(rng, kind):
  """Returns a task, scores, what metrics.py takes for them, and labels with missing ones."""
  if kind == "multiclass":
    task = Task("t", kind=kind, classes=("a", "b", "c"))
    outputs = rng.normal(size=(ROWS, 3))
    scores = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    labels = np.array([rng.choice(3, p=p) for p in scores], float)
  elif kind == "binary":
    task, outputs = Task("t"), np.round(rng.normal(-1, 2, ROWS), 1)
    scores = 1 / (1 + np.exp(-outputs))
    labels = (rng.random(ROWS) < scores).astype(float)
  else:
    task, outputs = Task("t", kind=kind), rng.normal(size=ROWS)
    scores, labels = outputs, outputs + rng.normal(size=ROWS)
  labels[rng.random(ROWS) < 0.1] = np.nan
  return task, scores, outputs, labels


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_values_are_those_of_the_metrics_and_lie_in_their_intervals(kind):
  rng = reference.fresh_rng()
  task, scores, outputs, labels = sample(rng, kind)
  found = statistics.metric_intervals(task, scores, labels, statistics.draw_counts(ROWS, 200))
  weights = (~np.isnan(labels)).astype(np.float32)
  assert found.keys() == metrics.OF_KIND[kind].keys()
  for name, function in metrics.OF_KIND[kind].items():
    expected = jax.jit(function)(np.float32(outputs), np.float32(labels), weights)
    np.testing.assert_allclose(found[name].value, expected, rtol=1e-4, err_msg=name)
    assert found[name].low < found[name].value < found[name].high


def test_labels_that_define_no_metric_have_none():
  counts = statistics.draw_counts(5, 10)
  scores, missing = np.full(5, 0.5), np.full(5, np.nan)
  assert statistics.metric_intervals(Task("t"), scores, missing, counts) == {}
  assert set(statistics.metric_intervals(Task("t"), scores, np.zeros(5), counts)) == {"log_loss"}


def test_intervals_of_a_bootstrap_have_the_width_of_the_central_limit():
  rng = reference.fresh_rng()
  labels = rng.normal(size=4000)
  counts = statistics.draw_counts(4000, 400)
  task = Task("t", kind="regression")
  found = statistics.metric_intervals(task, np.zeros(4000), labels, counts)["mse"]
  expected = 2 * 1.96 * (labels**2).std() / 4000**0.5
  assert found.high - found.low == pytest.approx(expected, rel=0.2)


def test_a_roc_curve_is_that_of_scikit_learn_inside_its_band():
  rng = reference.fresh_rng()
  _, scores, _, labels = sample(rng, "binary")
  known = ~np.isnan(labels)
  scores, labels = scores[known], labels[known]
  curve = statistics.roc(scores, labels, statistics.draw_counts(len(labels), 200))
  x, y, _ = sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False)
  last = np.append(np.diff(x) > 0, True)
  np.testing.assert_allclose(curve.y, np.interp(curve.x, x[last], y[last]), atol=1e-12)
  assert (np.diff(curve.y) >= 0).all()
  inside = (curve.low <= curve.y + 1e-9) & (curve.y <= curve.high + 1e-9)
  assert inside.mean() > 0.9
  assert curve.y[-1] == curve.low[-1] == 1


def test_calibration_groups_all_rows_and_finds_the_truth():
  rng = reference.fresh_rng()
  true = rng.beta(1, 6, 20_000)
  labels = (rng.random(20_000) < true).astype(float)
  found = statistics.calibration(true, labels)
  assert found.rows.sum() == 20_000
  assert len(found.rows) == 12
  assert (np.abs(found.rows - 20_000 / 12) < 2).all()
  assert ((found.low <= found.predicted) & (found.predicted <= found.high)).mean() > 0.6
  assert found.error < 0.01
  wrong = statistics.calibration(true / 2, labels)
  # Labels have a standard error of .0025 in their mean.
  assert wrong.error == pytest.approx(true.mean() / 2, abs=0.012)
  assert (wrong.high < wrong.predicted).sum() == 0
  assert (wrong.low > wrong.predicted).sum() > 6


def test_calibration_with_equal_predictions_is_one_bin():
  found = statistics.calibration(np.full(10, 0.3), np.array([1.0, 0] * 5))
  assert found.rows.tolist() == [10]
  assert found.observed.tolist() == [0.5]


def test_wilson_intervals_are_those_of_the_formula():
  for hits, of in ((0, 10), (3, 10), (10, 10), (999, 1000)):
    z, p = 1.959964, hits / of
    middle = (p + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z * (p * (1 - p) / of + z**2 / (4 * of**2)) ** 0.5 / (1 + z**2 / of)
    np.testing.assert_allclose(statistics.wilson(hits, of), (middle - half, middle + half), 1e-5)
