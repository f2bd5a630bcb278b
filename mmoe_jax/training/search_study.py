"""Storage of a search's trials in an Optuna study, which survives kills."""

import contextlib
import os
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import sqlalchemy

from mmoe_jax.training import search_space

Settings = dict[str, Any]
_DATABASE = "search.db"


@contextlib.contextmanager
def open_study(workdir: str) -> Iterator[optuna.Study]:
  """Opens the study in a work directory, which is created if absent."""
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  # SQLite, because Optuna cannot read a journal file after a truncated line.
  path = os.path.abspath(os.path.join(workdir, _DATABASE))
  # Connected by path, because `?` and `%` in a URL would name another file.
  storage = optuna.storages.RDBStorage(
    "sqlite://",
    engine_kwargs={
      "creator": lambda: sqlite3.connect(path, timeout=60),
      "poolclass": sqlalchemy.pool.NullPool,
    },
  )
  try:
    yield optuna.create_study(
      storage=storage, study_name="search", direction="maximize", load_if_exists=True
    )
  finally:
    storage.remove_session()
    storage.engine.dispose()


def draw(
  study: optuna.Study, space: Sequence[search_space.Dimension], count: int, seed: int
) -> list[tuple[optuna.Trial, Settings]]:
  """Returns the open trials of an interrupted round, or new ones.

  Args:
    study: the study.
    space: the search space.
    count: number of new trials.
    seed: seed of the search.
  """
  running = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING])
  number = len(study.get_trials(deepcopy=False))
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    # A new sampler per round, so that draws depend on earlier trials and not on interruptions.
    round_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(
      seed=round_seed, multivariate=True, constant_liar=True
    )
  if running:
    trials = [optuna.Trial(study, trial._trial_id) for trial in running]
  else:
    trials = (study.ask() for _ in range(count))
  return [(trial, search_space.suggest(trial, space)) for trial in trials]


def tell(study: optuna.Study, trial: optuna.Trial, result: Mapping[str, Any]) -> None:
  """Stores the result of a trial: `value`, None if it failed, and further entries."""
  for key in ("note", "validation", "best_epoch", "epochs", "seconds"):
    trial.set_user_attr(key, result.get(key))
  if result["value"] is None:
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
  else:
    study.tell(trial, result["value"])


def finished_trials(
  study: optuna.Study, space: Sequence[search_space.Dimension]
) -> list[dict[str, Any]]:
  """Returns the finished trials, the best first, failed ones last; see search.run_search."""
  finished = []
  for trial in study.get_trials(deepcopy=False):
    if trial.state.is_finished():
      settings = search_space.suggest(optuna.trial.FixedTrial(trial.params), space)
      finished.append(
        {"number": trial.number, "settings": settings, "value": trial.value, **trial.user_attrs}
      )
  return sorted(finished, key=lambda t: (t["value"] is None, -(t["value"] or 0.0), t["number"]))
