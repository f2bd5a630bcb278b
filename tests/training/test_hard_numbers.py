"""Extreme labels and weights: finite results, or a refusal with its reason."""

import dataclasses

import numpy as np
import pytest

from mmoe_jax import data
from mmoe_jax.errors import UserError
from mmoe_jax.training import loop
from mmoe_jax.training.not_finite import is_finite
from mmoe_jax.training.run import compile_run


def changed(split, labels=None, weights=None):
  labels = split.labels if labels is None else labels
  weights = split.weights if weights is None else weights
  return dataclasses.replace(split, labels=labels, weights=weights)


def one_positive(split):
  labels = np.zeros_like(split.labels)
  labels[5] = 1
  return changed(split, labels)


CASES = {
  "imbalance": one_positive,
  "one class": lambda split: changed(split, np.ones_like(split.labels)),
  "no labels": lambda split: changed(split, np.full_like(split.labels, np.nan)),
  "one task without labels": lambda split: changed(
    split, np.where([[True, False]], np.nan, split.labels).astype(np.float32)
  ),
  "weights of zero": lambda split: changed(split, weights=np.zeros_like(split.weights)),
  "one weight above zero": lambda split: changed(
    split, weights=np.eye(1, len(split), dtype=np.float32)[0]
  ),
  "huge weights": lambda split: changed(split, weights=np.full_like(split.weights, 1e30)),
  "tiny weights": lambda split: changed(split, weights=np.full_like(split.weights, 1e-38)),
}


@pytest.fixture(scope="module")
def loaded(_config):
  return data.load(_config.data_dir, **_config.data)


@pytest.fixture(scope="module")
def compiled(_config, loaded):
  """Returns a run whose program takes any labels and weights of these rows."""
  schema, splits = loaded
  config = _config.copy_and_resolve_references()
  config.loss.sample_weight = True
  return compile_run(config, schema, splits["train"]), splits["train"]


@pytest.mark.parametrize("case", CASES)
def test_training_stays_finite(compiled, case):
  run, train = compiled
  split = CASES[case](train)
  state, call = run.start_from(None), next(run.segment_calls(1, 0))
  rows = call.rows._replace(labels=split.labels, weights=split.weights)
  state, losses = run.train_segment(state, call._replace(rows=run.devices.replicate(rows)))
  assert is_finite((state.params, state.opt_state, losses))
  if case in ("no labels", "weights of zero"):
    np.testing.assert_array_equal(losses.losses, 0)


@pytest.mark.parametrize("case", ["one class", "no labels", "one task without labels"])
def test_a_held_out_task_that_cannot_be_measured_is_refused(
  config, loaded, monkeypatch, tmp_path, case
):
  schema, splits = loaded
  splits = {**splits, "validation": CASES[case](splits["validation"])}
  monkeypatch.setattr(data, "load", lambda *_, **__: (schema, splits))
  config.train.epochs, config.select.tasks = 1, ()
  with pytest.raises(UserError, match=r"validation \w+/auc is undefined: .+"):
    loop.train_and_evaluate(config, str(tmp_path / "run"))
