"""LightGBM and CatBoost on prepared rows: one model per task, early stopping on validation rows.

Both get the ids of categorical columns as categories and continuous columns as numbers. These are
standardised, which trees do not notice, because their splits depend on the order of values alone.

Shape letters: N rows, C categorical columns, D continuous columns.
"""

import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mmoe_jax import data
from mmoe_jax.errors import UserError
from mmoe_jax.training.search_space import Dimension

ROUNDS = 3000  # Trees, at most.
PATIENCE = 60  # Trees without a better validation AUC until early stopping.


class Rows(NamedTuple):
  """Rows of a split for trees.

  Attributes:
    categories: (N, C) ids.
    numbers: (N, D) continuous columns.
    labels: (N,) 1 or 0.
  """

  categories: np.ndarray
  numbers: np.ndarray
  labels: np.ndarray


class Fitted(NamedTuple):
  """A trained model.

  Attributes:
    score: rows -> log odds (N,).
    trees: number of trees that early stopping kept.
    validation: AUC on validation rows.
    seconds: training time with the preparation of the library's data structures.
  """

  score: Callable[[Rows], np.ndarray]
  trees: int
  validation: float
  seconds: float


class Library(NamedTuple):
  """A library of boosted trees.

  Attributes:
    fit: (train rows, validation rows, settings, seed, threads) -> Fitted.
    space: search space.
    package: name of the Python package.
  """

  fit: Callable[[Rows, Rows, Mapping[str, Any], int, int], Fitted]
  space: tuple[Dimension, ...]
  package: str


def rows_of(split: data.Split, t: int) -> Rows:
  """Returns the rows of a split with the labels of its task number t."""
  labels_N = np.asarray(split.labels[:, t], np.float64)
  features = split.features
  return Rows(np.asarray(features["ids"]), np.asarray(features["numeric"]), labels_N)


def fit_lightgbm(
  train: Rows, validation: Rows, settings: Mapping[str, Any], seed: int, threads: int
) -> Fitted:
  """Trains LightGBM; bagging, columns per tree and ties depend on the seed.

  Args:
    train: train rows.
    validation: rows for early stopping.
    settings: LightGBM's parameters.
    seed: seed.
    threads: number of threads.

  References:
    Ke et al.: LightGBM: A Highly Efficient Gradient Boosting Decision Tree. NeurIPS 2017.
  """
  lightgbm = _import("lightgbm")
  start = time.perf_counter()
  categorical = list(range(train.categories.shape[1]))
  sets = [
    lightgbm.Dataset(_matrix(rows), rows.labels, categorical_feature=categorical)
    for rows in (train, validation)
  ]
  sets[1].set_reference(sets[0])
  fixed = {"objective": "binary", "metric": "auc", "bagging_freq": 1, "verbosity": -1}
  booster = lightgbm.train(
    fixed | {"seed": seed, "num_threads": threads} | dict(settings),
    sets[0],
    ROUNDS,
    valid_sets=[sets[1]],
    callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
  )
  seconds = time.perf_counter() - start
  best = booster.best_iteration or booster.current_iteration()

  def score(rows: Rows) -> np.ndarray:
    return booster.predict(_matrix(rows), raw_score=True, num_iteration=best, num_threads=threads)

  return Fitted(score, best, float(booster.best_score["valid_0"]["auc"]), seconds)


def fit_catboost(
  train: Rows, validation: Rows, settings: Mapping[str, Any], seed: int, threads: int
) -> Fitted:
  """Trains CatBoost; its order of rows, bootstrap weights and random scores depend on the seed.

  Args:
    train: train rows.
    validation: rows for early stopping.
    settings: CatBoost's parameters.
    seed: seed.
    threads: number of threads.

  References:
    Prokhorenkova et al.: CatBoost: Unbiased Boosting with Categorical Features. NeurIPS 2018.
  """
  catboost = _import("catboost")
  start = time.perf_counter()
  pools = [_pool(catboost, rows) for rows in (train, validation)]
  model = catboost.CatBoostClassifier(
    iterations=ROUNDS,
    eval_metric="AUC",
    early_stopping_rounds=PATIENCE,
    bootstrap_type="Bayesian",
    random_seed=seed,
    thread_count=threads,
    allow_writing_files=False,
    verbose=False,
    **settings,
  )
  model.fit(pools[0], eval_set=pools[1], use_best_model=True)
  seconds = time.perf_counter() - start

  def score(rows: Rows) -> np.ndarray:
    return model.predict(_pool(catboost, rows), "RawFormulaVal", thread_count=threads)

  validation_auc = model.get_best_score()["validation"]["AUC"]
  return Fitted(score, int(model.tree_count_), float(validation_auc), seconds)


def _dimensions(**space: tuple) -> tuple[Dimension, ...]:
  return tuple(Dimension(k, (k,), kind, tuple(bounds), ()) for k, (kind, *bounds) in space.items())


LIBRARIES = {
  "lightgbm": Library(
    fit_lightgbm,
    _dimensions(
      learning_rate=("log", 0.04, 0.15),
      num_leaves=("int", 8, 96),
      min_data_in_leaf=("int", 5, 200),
      feature_fraction=("uniform", 0.2, 1.0),
      bagging_fraction=("uniform", 0.5, 1.0),
      lambda_l2=("log", 1e-2, 30.0),
      cat_smooth=("log", 1.0, 100.0),
      cat_l2=("log", 1.0, 100.0),
    ),
    "lightgbm",
  ),
  "catboost": Library(
    fit_catboost,
    _dimensions(
      learning_rate=("log", 0.05, 0.2),
      depth=("int", 4, 8),
      l2_leaf_reg=("log", 1.0, 30.0),
      random_strength=("log", 0.1, 10.0),
      bagging_temperature=("uniform", 0.0, 2.0),
      one_hot_max_size=("int", 2, 20),
    ),
    "catboost",
  ),
}


def _matrix(rows: Rows) -> np.ndarray:
  return np.concatenate([rows.categories, rows.numbers], axis=1, dtype=np.float64)


def _pool(catboost: Any, rows: Rows) -> Any:
  count = rows.categories.shape[1]
  frame = pd.concat([pd.DataFrame(rows.categories), pd.DataFrame(rows.numbers)], axis=1)
  frame.columns = range(frame.shape[1])
  return catboost.Pool(frame, rows.labels, cat_features=list(range(count)))


def _import(package: str) -> Any:
  try:
    return importlib.import_module(package)
  except ImportError as error:
    raise UserError(
      f"{package} is not installed; run: python -m pip install -r studies/requirements-trees.txt"
    ) from error
