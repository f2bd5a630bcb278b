"""Study of trees: figures, differences, resuming, and the libraries where they are installed."""

import sys

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from mmoe_jax import data
from mmoe_jax.errors import UserError
from studies import tree_models, trees, trees_tables
from tests import reference

BUDGET = trees.Budget(seeds=2, trials=3, minutes=0.0, threads=1)


def scores_of(rng, labels_NxT, strength, seeds):
  return strength * labels_NxT[None] + rng.normal(size=(seeds, *labels_NxT.shape))


def test_mean_scores_are_log_odds_of_mean_probabilities():
  scores_MxN = reference.fresh_rng().normal(size=(5, 40)) * 3
  p_N = (1 / (1 + np.exp(-scores_MxN))).mean(0)
  np.testing.assert_allclose(trees_tables.mean_scores(scores_MxN), np.log(p_N / (1 - p_N)))


def test_figures_equal_scikit_learn_and_differences_those_of_independent_seeds():
  rng = reference.fresh_rng()
  labels_NxT = (rng.random((300, 2)) < 0.4).astype(float)
  adult_N = rng.random(300) < 0.7
  scores = {
    "lightgbm": scores_of(rng, labels_NxT, 0.8, 3),
    "census": scores_of(rng, labels_NxT, 2, 5),
  }
  runs, rows = trees_tables.summarise(scores, labels_NxT, {"16_and_over": adult_N}, trees.TASKS)
  assert [r["method"] for r in runs] == (
    ["lightgbm"] * 3 + ["lightgbm_mean"] + ["census"] * 5 + ["census_mean"]
  )
  task, figure = "marital_stat", "test/marital_stat/auc_16_and_over"
  p_N = 1 / (1 + np.exp(-scores["census"][4, :, 1]))
  assert runs[8][f"test/{task}/log_loss"] == pytest.approx(
    sklearn.metrics.log_loss(labels_NxT[:, 1], p_N)
  )
  aucs = {
    m: [sklearn.metrics.roc_auc_score(labels_NxT[adult_N, 1], s[adult_N, 1]) for s in each]
    for m, each in scores.items()
  }
  assert [r[figure] for r in runs if r["method"] == "census"] == pytest.approx(aucs["census"])
  value, half = trees_tables.difference(runs, figure, rows[figure], "census", "lightgbm")
  assert value == pytest.approx(np.mean(aucs["census"]) - np.mean(aucs["lightgbm"]))
  # Without rows it is Welch's interval; rows widen it.
  welch = scipy.stats.ttest_ind(aucs["census"], aucs["lightgbm"], equal_var=False)
  interval = welch.confidence_interval()
  squares = [np.var(values, ddof=1) / len(values) for values in aucs.values()]
  assert half > 1.9599 * np.sqrt(sum(squares))  # The least quantile, with any number of rows.
  no_rows = rows[figure] | {k: {"rows": 1} for k in ("positives", "negatives")}
  alone = trees_tables.difference(runs, figure, no_rows, "census", "lightgbm")[1]
  assert alone == pytest.approx((interval.high - interval.low) / 2)
  text = trees_tables.format_comparison("demo", runs, rows)
  assert "demo, marital_stat 16 and over" in text
  line = next(x for x in text.splitlines() if x.startswith("| census |"))
  first = next(iter(rows))
  compared = [
    trees_tables.difference(runs, first, rows[first], "census", other)
    for other in ("lightgbm", "lightgbm_mean")
  ]
  assert line.count("**") == 2 * sum(abs(value) > half for value, half in compared)
  assert "**" in line


@pytest.fixture(name="fits")
def _fits(monkeypatch):
  """Replaces LightGBM by a model whose AUC depends on the settings; returns its fits."""
  fits = []

  def fit(train, validation, settings, seed, threads):
    fits.append((settings, seed))
    del train, validation, threads
    score = lambda rows: settings["learning_rate"] * rows.labels + seed
    return tree_models.Fitted(score, 7, settings["learning_rate"], 0.1)

  fake = tree_models.LIBRARIES["lightgbm"]._replace(fit=fit)
  monkeypatch.setitem(tree_models.LIBRARIES, "lightgbm", fake)
  return fits


def run_library(prepared, folder, **budget):
  _, splits = trees.load(prepared, "demo")
  for task in trees.TASKS:
    size = trees.Budget(**(vars(BUDGET) | budget))
    trees.run_library("lightgbm", task, splits, size, str(folder / task))
  return trees.read_library(str(folder), 20)


def test_a_library_resumes_and_more_trials_train_the_seeds_again(prepared, fits, tmp_path):
  scores = run_library(prepared, tmp_path)
  _, splits = trees.load(prepared, "demo")
  assert scores.shape == (2, len(splits["test"].labels), 2)
  assert [seed for _, seed in fits] == [0, 0, 0, 0, 1] * 2
  chosen = max(fits[:3], key=lambda each: each[0]["learning_rate"])[0]
  assert fits[3][0] == fits[4][0] == chosen
  run_library(prepared, tmp_path)
  assert len(fits) == 10
  run_library(prepared, tmp_path, seeds=3)
  assert [seed for _, seed in fits[10:]] == [2, 2]
  before = len(fits)
  run_library(prepared, tmp_path, trials=12)
  of_income = fits[before : before + 9]
  assert {seed for _, seed in of_income} == {0}
  best = max([*fits[:3], *of_income], key=lambda each: each[0]["learning_rate"])[0]
  retrained = [settings for settings, _ in fits[before + 9 : before + 11]]
  assert retrained == ([best, best] if best != chosen else retrained)


def test_a_search_ends_after_its_time(prepared, fits, tmp_path):
  run_library(prepared, tmp_path, trials=50, minutes=0.25 / 60)
  assert len(fits) == 2 * (3 + 2)  # Three trials of 0.1 s exceed 0.25 s.


def test_a_missing_library_is_reported_with_the_install_line(monkeypatch):
  monkeypatch.setitem(sys.modules, "lightgbm", None)
  rows = tree_models.Rows(np.zeros((4, 1), np.uint8), np.zeros((4, 1)), np.arange(4) % 2)
  with pytest.raises(UserError, match=r"pip install -r studies/requirements-trees\.txt"):
    tree_models.fit_lightgbm(rows, rows, {}, 0, 1)


@pytest.mark.parametrize("library", tree_models.LIBRARIES)
def test_a_library_uses_categories_and_numbers(library, monkeypatch):
  pytest.importorskip(library)
  monkeypatch.setattr(tree_models, "ROUNDS", 60)
  rng = reference.fresh_rng()
  ids_NxC = rng.integers(0, 20, (3000, 2)).astype(np.uint8)
  numbers_NxD = rng.normal(size=(3000, 1)).astype(np.float32)
  labels_N = (2.0 * (ids_NxC[:, 0] % 2) - 1 + numbers_NxD[:, 0] > 0).astype(float)
  rows = tree_models.Rows(ids_NxC, numbers_NxD, labels_N)
  train, validation = (
    tree_models.Rows(*(a[at] for a in rows)) for at in (slice(2000), slice(2000, None))
  )
  fitted = tree_models.LIBRARIES[library].fit(train, validation, {"learning_rate": 0.2}, 0, 1)
  auc = sklearn.metrics.roc_auc_score(validation.labels, fitted.score(validation))
  assert auc == pytest.approx(fitted.validation, abs=1e-6)
  assert auc > 0.95
  assert 1 <= fitted.trees <= 60


def test_ours_have_the_settings_of_their_configs(prepared):
  for method in trees.OURS:
    config = trees.create_config(method, "paper", prepared)
    schema, _ = data.load(prepared, **config.data)
    assert "education" not in [f.name for f in schema.id_features]
    assert config.train.batch_size == (512 if method == "census_best" else 1024)
    assert config.model.batch_ensemble == (8 if method == "batch_ensemble" else 1)
