"""Prediction: the same probabilities as in the evaluation of training."""

import csv
import json
import os
import re
import shutil
import sys

import flax.linen as nn
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from configs import smoke
from mmoe_jax import data, models
from mmoe_jax.errors import UserError
from mmoe_jax.evaluation.results_table import format_results
from mmoe_jax.prediction import scoring
from mmoe_jax.prediction.predictor import Predictor, to_scores
from mmoe_jax.training import loop, population
from tests.census_rows import COLUMNS
from tests.frames import read_frame

TASKS = ("income_50k", "marital_stat")


@pytest.fixture(scope="module")
def workdir(prepared, tmp_path_factory):
  config = smoke.get_config()
  config.data_dir = prepared
  config.train.devices = 1
  config.data.crosses = ("sex#education",)
  config.model.tower_norm = "batch"
  path = str(tmp_path_factory.mktemp("run") / "w")
  loop.train_and_evaluate(config, path)
  return path


def test_auc_of_the_scores_is_that_of_results(workdir, prepared, raw):
  # torch-rechub #50: predict and evaluate disagree.
  scores = Predictor(workdir)(read_frame(raw[1], COLUMNS))
  with open(os.path.join(workdir, "results.json")) as file:
    results = json.load(file)
  for split in ("validation", "test"):
    rows = np.load(os.path.join(prepared, split, "rows.npy"))
    labels = np.load(os.path.join(prepared, split, "labels.npy"))
    for t, task in enumerate(TASKS):
      auc = roc_auc_score(labels[:, t], scores[task].to_numpy()[rows])
      assert auc == pytest.approx(results[split][f"{task}/auc"], abs=1e-6)


def test_rows_keep_their_order_and_do_not_depend_on_each_other(workdir, raw):
  predictor = Predictor(workdir)
  frame = read_frame(raw[1], COLUMNS)
  scores = predictor(frame)
  assert list(scores.columns) == list(TASKS)
  assert ((scores > 0) & (scores < 1)).all(axis=None)
  for rows in ([5], [7, 3, 7], list(range(1000, 300, -1))):
    np.testing.assert_allclose(predictor(frame.iloc[rows]), scores.iloc[rows], rtol=1e-4)


def test_labels_are_not_needed_and_columns_may_be_in_any_order(workdir, raw):
  predictor = Predictor(workdir)
  frame = read_frame(raw[1], COLUMNS)
  other = frame[list(reversed(COLUMNS))].drop(columns=["income_50k", "marital_stat"])
  pd.testing.assert_frame_equal(predictor(other), predictor(frame))


def test_prediction_uses_the_schema_of_training(workdir):
  schema = data.restore_schema(os.path.join(workdir, "schema.json"))
  assert [t.name for t in schema.tasks] == list(TASKS)
  assert schema.id_features[-1].name == "sex#education"


def test_outputs_of_each_kind_become_columns_of_the_tables_words():
  tasks = (
    data.Task("level", "l", kind="multiclass", classes=("low", "high, or so", "top")),
    data.Task("size", "s", kind="regression", mean=20.0, std=4.0),
    data.Task("rich", "r", ("1",), ("0",)),
  )
  logits = np.log([[1.0, 2, 5, np.e**-1.5, 3], [2.0, 2, 4, np.e, 1]])
  got = to_scores(tasks, logits)
  assert list(got) == ["level=low", "level=high, or so", "level=top", "size", "rich"]
  expected = [[0.125, 0.25, 0.625, 14, 0.75], [0.25, 0.25, 0.5, 24, 0.5]]
  np.testing.assert_allclose(np.stack(list(got.values()), 1), expected, rtol=1e-12)
  far = to_scores(tasks[:1], np.array([[1e4, -1e4, 0.0]]))
  np.testing.assert_allclose(np.stack(list(far.values()), 1), [[1, 0, 0]])


class Linear(nn.Module):
  """Linear map to all outputs of a schema's tasks, with the interface of a model."""

  outputs: int

  @nn.compact
  def __call__(self, features, train=False):
    return nn.Dense(self.outputs)(features["numeric"])


def test_predictions_of_every_kind_give_the_metrics_of_the_run(
  config, prepared, raw, tmp_path, monkeypatch
):
  def create(settings, schema, axis_name=None):
    return Linear(sum(task.outputs for task in schema.tasks))

  monkeypatch.setattr(models, "create_model", create)
  config.data.tasks = ("weeks_worked", "education_level", "bachelors")
  config.select.tasks, config.select.metric = ("weeks_worked",), "mae"
  results = loop.train_and_evaluate(config, str(tmp_path / "w"))
  scores = Predictor(str(tmp_path / "w"))(read_frame(raw[1], COLUMNS))
  rows = np.load(os.path.join(prepared, "test", "rows.npy"))
  frame, scores = read_frame(raw[1], COLUMNS).iloc[rows], scores.iloc[rows]
  schema = data.restore_schema(str(tmp_path / "w" / "schema.json"))
  weeks, classes = schema.tasks[0], list(schema.tasks[1].classes)
  errors = np.abs(scores["weeks_worked"] - frame["weeks_worked"].astype(float).to_numpy())
  assert errors.mean() / weeks.std == pytest.approx(results["test"]["weeks_worked/mae"], rel=1e-4)
  shares = scores[[f"education_level={value}" for value in classes]].to_numpy()
  np.testing.assert_allclose(shares.sum(1), 1)
  right = np.array(classes)[shares.argmax(1)] == frame["education"]
  assert right.mean() == pytest.approx(results["test"]["education_level/accuracy"])
  shown = format_results(results, "w")
  for line in (r"weeks_worked +r2", r"education_level +accuracy_16_and_over", r"bachelors +auc"):
    assert re.search(rf"^{line} +-?\d", shown, re.MULTILINE), line
  assert "education_level   auc" not in shown


def test_a_folder_without_a_run_is_named(tmp_path):
  with pytest.raises(UserError, match=r"contains no config\.json"):
    Predictor(str(tmp_path))


def score_file(predictor, path, output):
  """Scores a file as the command does, warnings included."""
  totals = scoring.score_files(predictor, [path], output)
  for line in totals.lines(predictor.schema, path):
    print(line, file=sys.stderr)


def write_rows(path, frame, change):
  """Writes rows without header, changed cell by cell."""
  rows = [[change(c, v) for c, v in zip(COLUMNS, row, strict=True)] for row in frame.to_numpy()]
  with open(path, "w", encoding="utf-8", newline="") as file:
    csv.writer(file).writerows(rows)
  return str(path)


def test_values_that_training_did_not_contain_are_counted(workdir, raw, tmp_path, capsys):
  predictor = Predictor(workdir)
  frame = read_frame(raw[1], COLUMNS).iloc[:50].astype(object)
  out = str(tmp_path / "scores.csv")
  score_file(predictor, write_rows(tmp_path / "a.csv", frame, lambda c, v: v), out)
  assert not capsys.readouterr().err
  # White space is no part of a value, so the scores are the same.
  spaced = str(tmp_path / "spaced.csv")
  score_file(predictor, write_rows(tmp_path / "b.csv", frame, lambda c, v: f" {v}\t"), spaced)
  assert not capsys.readouterr().err
  assert (tmp_path / "spaced.csv").read_text() == (tmp_path / "scores.csv").read_text()
  lower = write_rows(tmp_path / "c.csv", frame, lambda c, v: v.lower() if c == "sex" else v)
  score_file(predictor, lower, out)
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1
  assert "c.csv, column 'sex': 50 of 50 rows have values that training did not contain" in lines[0]


def test_the_input_is_not_overwritten(workdir, raw, tmp_path):
  path = write_rows(tmp_path / "rows.csv", read_frame(raw[1], COLUMNS).iloc[:5], lambda c, v: v)
  before = (tmp_path / "rows.csv").read_bytes()
  (tmp_path / "link.csv").symlink_to("rows.csv")
  for output in (path, str(tmp_path / "link.csv")):
    with pytest.raises(UserError, match="is the input; use another file"):
      score_file(Predictor(workdir), path, output)
  assert (tmp_path / "rows.csv").read_bytes() == before


def copy_of(workdir, tmp_path):
  return shutil.copytree(workdir, str(tmp_path / "copy"))


@pytest.mark.parametrize(
  ("name", "old", "new"),
  [
    ("config.json", '"seed": 0', '"seed": 1'),
    ("config.json", '"tower_activation": "relu"', '"tower_activation": "tanh"'),
    ("schema.json", '"std": ', '"std": 1'),
  ],
)
def test_edited_settings_are_noticed_before_anything_is_scored(workdir, tmp_path, name, old, new):
  copy = copy_of(workdir, tmp_path)
  path = os.path.join(copy, name)
  with open(path, encoding="utf-8") as file:
    text = file.read()
  assert old in text
  with open(path, "w", encoding="utf-8") as file:
    file.write(text.replace(old, new, 1))
  with pytest.raises(UserError, match=rf"{name}: changed since the run began"):
    Predictor(copy)
  os.remove(path)
  with pytest.raises(UserError, match=f"contains no {name}"):
    Predictor(copy)


@pytest.mark.slow
def test_a_diverged_member_is_not_scored(prepared, tmp_path):
  config = smoke.get_config()
  config.data_dir, config.train.epochs, config.train.devices = prepared, 2, 1
  members = [{"optimizer.dense.learning_rate": rate} for rate in (1e-3, 1e29)]
  workdir = str(tmp_path / "p")
  results = population.train_population(config, members, workdir)
  assert "error" in results[1]
  Predictor(workdir, 0)
  with pytest.raises(UserError, match="--member=1: its training diverged"):
    Predictor(workdir, 1)


@pytest.mark.parametrize("name", ["config.json", "results.json", "checkpoints/3/best/x"])
def test_files_of_the_run_are_not_overwritten(workdir, raw, tmp_path, name):
  path = write_rows(tmp_path / "rows.csv", read_frame(raw[1], COLUMNS).iloc[:5], lambda c, v: v)
  with pytest.raises(UserError, match="belongs to the run"):
    score_file(Predictor(workdir), path, os.path.join(workdir, name))
