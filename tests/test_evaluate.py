"""Evaluation: chunks and padding change nothing; names and views are what they say."""

import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from configs import smoke
from mmoe_jax import data, evaluate, models, parallel

KEY = jax.random.key(0)
TASKS = ("income_50k", "marital_stat")


@pytest.fixture(scope="module")
def fitted(prepared):
  schema, splits = data.load(prepared, TASKS, "demo")
  model = models.create_model(smoke.get_config().model, schema)
  features = {name: a[:1] for name, a in splits["test"].features.items()}
  return model, jax.jit(model.init)(KEY, features), splits["test"]


@pytest.mark.parametrize("rows", [1, 2, 255, 256, 257, 501])
def test_logits_do_not_depend_on_the_chunks(fitted, rows):
  model, variables, split = fitted
  features = {name: a[:rows] for name, a in split.features.items()}
  whole = jax.jit(model.apply)(variables, features)
  chunked = evaluate.chunked(features, 256)
  assert chunked["ids"].shape[0] == -(-rows // 256)
  got = evaluate.make_predict(model)(variables, chunked)[:rows]
  np.testing.assert_allclose(got, whole, atol=1e-6)


def test_metrics_equal_scikit_learn_in_every_view(fitted):
  model, variables, split = fitted
  named = evaluate.make_evaluate(model, TASKS)(variables, evaluate.eval_arrays(split))
  values, reasons = evaluate.report(jax.device_get(named))
  assert reasons == {}
  logits = np.asarray(jax.jit(model.apply)(variables, split.features))
  adult = split.slices["16_and_over"]
  for t, task in enumerate(TASKS):
    y, z = split.labels[:, t], logits[:, t]
    expected = {
      "auc": roc_auc_score(y, z),
      "auc_16_and_over": roc_auc_score(y[adult], z[adult]),
      "auc_weighted": roc_auc_score(y, z, sample_weight=split.weights),
      "auc_weighted_16_and_over": roc_auc_score(
        y[adult], z[adult], sample_weight=split.weights[adult]
      ),
    }
    for name, value in expected.items():
      assert values[f"{task}/{name}"] == pytest.approx(value, abs=1e-6)


def test_metrics_do_not_depend_on_the_number_of_devices(fitted):
  model, variables, split = fitted
  measure = evaluate.make_evaluate(model, TASKS)
  one, eight = (
    jax.device_get(
      measure(devices.replicate(variables), evaluate.place(evaluate.eval_arrays(split), devices))
    )
    for devices in (parallel.Devices(1), parallel.Devices(8))
  )
  for name, value in one.items():
    np.testing.assert_allclose(eight[name], value, atol=1e-6)


def test_missing_labels_do_not_count_for_their_task(fitted):
  model, variables, split = fitted
  labels = split.labels.copy()
  labels[:100, 0] = data.MISSING_LABEL
  partly = data.Split(split.features, labels, split.weights, split.slices)
  named = evaluate.make_evaluate(model, TASKS)(variables, evaluate.eval_arrays(partly))
  logits = np.asarray(jax.jit(model.apply)(variables, split.features))
  expected = roc_auc_score(labels[100:, 0], logits[100:, 0])
  assert float(named["income_50k/auc"]) == pytest.approx(expected, abs=1e-6)


def test_undefined_metrics_have_a_reason(fitted):
  model, variables, split = fitted
  adult = split.slices["16_and_over"]
  labels = np.where(adult[:, None], np.int8(0), split.labels)
  labels[~adult, 0] = 1
  half = data.Split(split.features, labels, split.weights, split.slices)
  named = evaluate.make_evaluate(model, TASKS)(variables, evaluate.eval_arrays(half))
  values, reasons = evaluate.report(jax.device_get(named))
  assert np.isnan(values["income_50k/auc_16_and_over"])
  assert reasons["income_50k/auc_16_and_over"] == "no positive row"
  assert not np.isnan(values["income_50k/auc"])
  assert "income_50k/auc" not in reasons


def test_gates_can_be_seen(fitted):
  model, variables, split = fitted
  gates = evaluate.make_gates(model)(variables, split.features)
  assert gates.shape == (2, len(split), 4)
  np.testing.assert_allclose(gates.sum(-1), 1, rtol=1e-5)
