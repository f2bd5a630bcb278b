"""Evaluation: chunks and padding do not change results; names and views."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.metrics import accuracy_score, log_loss, r2_score, roc_auc_score

from configs import smoke
from mmoe_jax import data, models, parallel
from mmoe_jax.errors import UserError
from mmoe_jax.evaluation import evaluate
from tests import reference

KEY = jax.random.key(0)
TASKS = ("income_50k", "marital_stat")


@pytest.fixture(scope="module")
def fitted(prepared):
  schema, splits = data.load(prepared, TASKS, "demo")
  model = models.create_model(smoke.get_config().model, schema)
  features = {name: a[:1] for name, a in splits["test"].features.items()}
  return model, jax.jit(model.init)(KEY, features), splits["test"], schema.tasks


@pytest.mark.parametrize("rows", [1, 2, 255, 256, 257, 501])
def test_logits_do_not_depend_on_the_chunks(fitted, rows):
  model, variables, split, _ = fitted
  features = {name: a[:rows] for name, a in split.features.items()}
  whole = jax.jit(model.apply)(variables, features)
  chunked = evaluate.to_chunks(features, 256)
  assert chunked["ids"].shape[0] == -(-rows // 256)
  got = jax.jit(evaluate.make_predict(model))(variables, chunked)[:rows]
  np.testing.assert_allclose(got, whole, atol=1e-6)


def test_metrics_equal_scikit_learn_in_every_view(fitted):
  model, variables, split, tasks = fitted
  named = jax.jit(evaluate.make_evaluate(model, tasks))(variables, evaluate.make_eval_batch(split))
  values, reasons = evaluate.explain_undefined(jax.device_get(named))
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
  model, variables, split, tasks = fitted
  measure = jax.jit(evaluate.make_evaluate(model, tasks))
  one, eight = (
    jax.device_get(
      measure(
        devices.replicate(variables), evaluate.place(evaluate.make_eval_batch(split), devices)
      )
    )
    for devices in (parallel.Devices(1), parallel.Devices(8))
  )
  for name, value in one.items():
    np.testing.assert_allclose(eight[name], value, atol=1e-6)


def test_missing_labels_do_not_count_for_their_task(fitted):
  model, variables, split, tasks = fitted
  labels = split.labels.copy()
  labels[:100, 0] = np.nan
  partly = data.Split(split.features, labels, split.weights, split.slices)
  named = jax.jit(evaluate.make_evaluate(model, tasks))(variables, evaluate.make_eval_batch(partly))
  logits = np.asarray(jax.jit(model.apply)(variables, split.features))
  expected = roc_auc_score(labels[100:, 0], logits[100:, 0])
  assert float(named["income_50k/auc"]) == pytest.approx(expected, abs=1e-6)


def test_undefined_metrics_have_a_reason(fitted):
  model, variables, split, tasks = fitted
  adult = split.slices["16_and_over"]
  labels = np.where(adult[:, None], np.float32(0), split.labels)
  labels[~adult, 0] = 1
  half = data.Split(split.features, labels, split.weights, split.slices)
  named = jax.jit(evaluate.make_evaluate(model, tasks))(variables, evaluate.make_eval_batch(half))
  values, reasons = evaluate.explain_undefined(jax.device_get(named))
  assert np.isnan(values["income_50k/auc_16_and_over"])
  assert reasons["income_50k/auc_16_and_over"] == "no positive row"
  assert not np.isnan(values["income_50k/auc"])
  assert "income_50k/auc" not in reasons


def test_gates_can_be_seen(fitted):
  model, variables, split, _ = fitted
  gates = jax.jit(evaluate.make_gates(model))(variables, split.features)
  assert gates.shape == (2, len(split), 4)
  np.testing.assert_allclose(gates.sum(-1), 1, rtol=1e-5)


class Linear:
  """Linear model with the interface that evaluation needs."""

  @staticmethod
  def apply(variables, features):
    return features["numeric"] @ variables


@pytest.fixture
def mixed(prepared):
  """Returns tasks of every kind, outputs of a random linear model, and missing labels."""
  schema, splits = data.load(prepared, ("weeks_worked", "education_level", "bachelors"), "demo")
  rng = reference.fresh_rng()
  split = splits["test"]
  labels = np.where(rng.random(split.labels.shape) < 0.1, np.float32(np.nan), split.labels)
  inputs, outputs = split.features["numeric"].shape[1], sum(t.outputs for t in schema.tasks)
  variables = np.float32(rng.normal(size=(inputs, outputs)))
  return schema.tasks, variables, data.Split(split.features, labels, split.weights, split.slices)


def test_tasks_of_every_kind_are_measured_side_by_side(mixed):
  tasks, variables, split = mixed
  named = jax.jit(evaluate.make_evaluate(Linear, tasks))(variables, evaluate.make_eval_batch(split))
  values, reasons = evaluate.explain_undefined(jax.device_get(named))
  assert reasons == {}
  z = split.features["numeric"].astype(np.float64) @ variables
  w, adult = split.weights.astype(np.float64), split.slices["16_and_over"]
  for view, rows, weights in (
    ("", adult | True, np.ones(len(w))),
    ("_weighted_16_and_over", adult, w),
  ):
    known = ~np.isnan(split.labels) & rows[:, None]
    weeks, level, degree = (split.labels[known[:, t], t].astype(np.float64) for t in range(3))
    of = [weights[known[:, t]] for t in range(3)]
    classes = len(tasks[1].classes)
    at_level = z[known[:, 1], 1 : 1 + classes]
    expected = {
      "weeks_worked/r2": r2_score(weeks, z[known[:, 0], 0], sample_weight=of[0]),
      "education_level/log_loss": log_loss(
        level, reference.softmax(at_level), sample_weight=of[1], labels=range(classes)
      ),
      "education_level/accuracy": accuracy_score(level, at_level.argmax(1), sample_weight=of[1]),
      "bachelors/auc": roc_auc_score(degree, z[known[:, 2], -1], sample_weight=of[2]),
    }
    for name, value in expected.items():
      assert values[f"{name}{view}"] == pytest.approx(value, rel=1e-4)


def test_reasons_are_of_the_metric_that_is_undefined(mixed):
  tasks, variables, split = mixed
  labels = split.labels.copy()
  labels[:, 0] = 0.3
  labels[:, 1] = np.nan
  partly = data.Split(split.features, labels, split.weights, {})
  measure = jax.jit(evaluate.make_evaluate(Linear, tasks))
  _, reasons = evaluate.explain_undefined(
    jax.device_get(measure(variables, evaluate.make_eval_batch(partly)))
  )
  assert reasons == {
    f"{name}{view}": reason
    for view in ("", "_weighted")
    for name, reason in (
      ("weeks_worked/r2", "all labels are equal"),
      ("education_level/log_loss", "no labelled row"),
      ("education_level/accuracy", "no labelled row"),
    )
  }
  broken = np.where(np.arange(variables.shape[1]) == 0, np.float32(np.inf), variables)
  _, reasons = evaluate.explain_undefined(
    jax.device_get(measure(broken, evaluate.make_eval_batch(partly)))
  )
  assert reasons["weeks_worked/mse"] == evaluate.NOT_FINITE
  assert reasons["weeks_worked/r2"] == "all labels are equal"


def test_selection_is_the_mean_of_the_named_measure_higher_being_better():
  tasks = [data.Task(name, name, kind="regression") for name in "ab"]
  named = {"a/r2": 0.9, "b/r2": 0.7, "a/mse": 0.1, "b/mse": 0.3}

  def value(metric, chosen):
    select = ConfigDict({"metric": metric, "tasks": chosen})
    return float(jax.jit(lambda n: evaluate.selection(n, select, tasks))(named))

  assert value("r2", ()) == pytest.approx(0.8)
  assert value("r2", ("b",)) == pytest.approx(0.7)
  assert value("mse", ()) == pytest.approx(-0.2)
  assert value("mse", ("a",)) == pytest.approx(-0.1)


@pytest.mark.parametrize(
  ("metric", "chosen", "message"),
  [
    (
      "log_loss",
      (),
      r"\(weeks_worked: mse, mae, r2; education_level: log_loss",
    ),
    ("auc", ("bachelors", "education_level"), "education_level: log_loss, accuracy"),
    ("pcoc", ("bachelors",), "config.select.metric is 'pcoc', which does not exist"),
    ("acuracy", ("education_level",), "did you mean 'accuracy'"),
    ("mse", ("week_worked",), "did you mean 'weeks_worked'"),
  ],
)
def test_selection_by_a_missing_metric_lists_the_metrics_of_each_task(
  mixed, metric, chosen, message
):
  with pytest.raises(UserError, match=message):
    evaluate.check_selection(ConfigDict({"metric": metric, "tasks": chosen}), mixed[0])
  evaluate.check_selection(ConfigDict({"metric": "r2", "tasks": ("weeks_worked",)}), mixed[0])
