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
DATABASE = "search.db"
STUDY = "search"
_ENTRIES = ("note", "validation", "best_epoch", "epochs", "seconds")  # Of a finished trial.
_ROUND = "round"  # Attribute of a trial: number of the first trial of its round, and its size.


@contextlib.contextmanager
def open_study(workdir: str) -> Iterator[optuna.Study]:
  """Opens the study in a work directory, which is created if absent."""
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  # SQLite, because Optuna cannot read a journal file after a truncated line.
  path = os.path.abspath(os.path.join(workdir, DATABASE))
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
      storage=storage, study_name=STUDY, direction="maximize", load_if_exists=True
    )
  finally:
    storage.remove_session()
    storage.engine.dispose()


def draw(
  study: optuna.Study, space: Sequence[search_space.Dimension], count: int, seed: int
) -> list[tuple[optuna.Trial, Settings]]:
  """Returns the open trials of an interrupted round, or new ones.

  A trial is stored with its settings at once, and knows its round: after a kill within, the others
  are drawn as they would have been.

  Args:
    study: the study.
    space: the search space.
    count: number of new trials.
    seed: seed of the search.
  """
  trials = study.get_trials(deepcopy=False)
  unfinished = open_trials(trials)
  first, size = len(trials), count
  if unfinished:  # Rounds of earlier versions are whole.
    first, size = unfinished[0].user_attrs.get(_ROUND, (0, 0))
  if len(trials) < first + size:
    drawn = draw_round(trials[:first], space, size, (seed, first), {_ROUND: (first, size)})
    for template in drawn[len(trials) - first :]:
      study.add_trial(template)
    unfinished = open_trials(study.get_trials(deepcopy=False))
  return restore(study, unfinished, space)


def open_trials(trials: Sequence[optuna.trial.FrozenTrial]) -> list[optuna.trial.FrozenTrial]:
  """Returns the trials that are drawn and not finished."""
  return [trial for trial in trials if trial.state == optuna.trial.TrialState.RUNNING]


def restore(
  study: optuna.Study,
  trials: Sequence[optuna.trial.FrozenTrial],
  space: Sequence[search_space.Dimension],
) -> list[tuple[optuna.Trial, Settings]]:
  """Returns stored trials, for `tell`, and their settings."""
  found = [optuna.Trial(study, trial._trial_id) for trial in trials]
  return [(trial, search_space.suggest(trial, space)) for trial in found]


def draw_round(
  before: Sequence[optuna.trial.FrozenTrial],
  space: Sequence[search_space.Dimension],
  size: int,
  seeds: Sequence[int],
  attributes: Mapping[str, Any],
) -> list[optuna.trial.FrozenTrial]:
  """Returns the trials of a round, which depend on the earlier trials and the seeds only.

  Args:
    before: earlier trials, of which open ones are treated as bad.
    space: the search space.
    size: number of trials.
    seeds: seeds, of which one is computed.
    attributes: attributes of each trial.
  """
  first = len(before)
  round_seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    sampler = optuna.samplers.TPESampler(seed=round_seed, multivariate=True, constant_liar=True)
  study = optuna.create_study(direction="maximize", sampler=sampler)
  study.add_trials(before)
  for _ in range(size):
    search_space.suggest(study.ask(), space)
  return [
    optuna.trial.create_trial(
      state=trial.state,
      params=trial.params,
      distributions=trial.distributions,
      user_attrs=dict(attributes),
    )
    for trial in study.get_trials()[first:]
  ]


def tell(study: optuna.Study, trial: optuna.Trial, result: Mapping[str, Any]) -> None:
  """Stores the result of a trial: `value`, None if it failed, and further entries.

  Of a trial that another machine has finished, its result stays.
  """
  with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
    for key in _ENTRIES:
      trial.set_user_attr(key, result.get(key))
    if result["value"] is None:
      study.tell(trial, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
    else:
      study.tell(trial, result["value"], skip_if_finished=True)


def finished_trials(
  study: optuna.Study, space: Sequence[search_space.Dimension]
) -> list[dict[str, Any]]:
  """Returns the finished trials, the best first, failed ones last; see search.run_search."""
  finished = []
  for trial in study.get_trials(deepcopy=False):
    if trial.state.is_finished():
      settings = search_space.suggest(optuna.trial.FixedTrial(trial.params), space)
      finished.append(
        {"number": trial.number, "settings": settings, "value": trial.value}
        | {key: trial.user_attrs.get(key) for key in _ENTRIES}
      )
  return sorted(finished, key=lambda t: (t["value"] is None, -(t["value"] or 0.0), t["number"]))
