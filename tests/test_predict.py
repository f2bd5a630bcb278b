"""Prediction: the same rows give the same probabilities as training's evaluation."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from data_prep.census_income import COLUMNS
from mmoe_jax import data, predict, train
from mmoe_jax.errors import UserError
from mmoe_jax.table import read_table

TASKS = ("income_50k", "marital_stat")


@pytest.fixture(scope="module")
def workdir(prepared, tmp_path_factory):
  from configs import smoke

  config = smoke.get_config()
  config.data_dir = prepared
  config.train.devices = 1
  config.data.crosses = ("sex#education",)
  config.model.tower_norm = "batch"
  path = str(tmp_path_factory.mktemp("run") / "w")
  train.train_and_evaluate(config, path)
  return path


def test_auc_of_the_scores_is_that_of_results(workdir, prepared, raw):
  # torch-rechub #50: predict and evaluate disagree.
  scores = predict.Predictor(workdir)(read_table(raw[1], COLUMNS))
  with open(os.path.join(workdir, "results.json")) as file:
    results = json.load(file)
  for split in ("validation", "test"):
    rows = np.load(os.path.join(prepared, split, "rows.npy"))
    labels = np.load(os.path.join(prepared, split, "labels.npy"))
    for t, task in enumerate(TASKS):
      auc = roc_auc_score(labels[:, t], scores[task].to_numpy()[rows])
      assert auc == pytest.approx(results[split][f"{task}/auc"], abs=1e-6)


def test_rows_keep_their_order_and_do_not_depend_on_each_other(workdir, raw):
  predictor = predict.Predictor(workdir)
  frame = read_table(raw[1], COLUMNS)
  scores = predictor(frame)
  assert list(scores.columns) == list(TASKS)
  assert ((scores > 0) & (scores < 1)).all(axis=None)
  for rows in ([5], [7, 3, 7], list(range(1000, 300, -1))):
    np.testing.assert_allclose(predictor(frame.iloc[rows]), scores.iloc[rows], rtol=1e-4)


def test_labels_are_not_needed_and_columns_may_be_in_any_order(workdir, raw):
  predictor = predict.Predictor(workdir)
  frame = read_table(raw[1], COLUMNS)
  other = frame[list(reversed(COLUMNS))].drop(columns=["income_50k", "marital_stat"])
  pd.testing.assert_frame_equal(predictor(other), predictor(frame))


def test_what_it_needs_is_what_training_used(workdir):
  schema = data.Schema.restore(os.path.join(workdir, "schema.json"))
  assert [t.name for t in schema.tasks] == list(TASKS)
  assert schema.id_features[-1].name == "sex#education"


def test_a_folder_without_a_run_is_named(tmp_path):
  with pytest.raises(UserError, match=r"no config\.json here"):
    predict.Predictor(str(tmp_path))
