"""Search for hyper-parameters, a population of trials at a time.

  python -m mmoe_jax.tune --config configs/census.py --trials 64 --workdir runs/search \
    --space model.expert_dropout=uniform,0.0,0.5 --space "model.expert_hidden=choice,(16,),(32,)"

Trials are judged by the validation measure of config.select; test rows play no part. They are
drawn in rounds by a tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011, as Optuna has
it), which takes those of a round that are still to be trained for bad ones, so that they spread.
Trials of a round that differ in floats only are trained as one population.

Started again in its work directory a search goes on: finished trials stay, the round that was cut
off is trained on, and what follows is what would have followed. More --trials go on further.
"""

import contextlib
import csv
import io
import json
import math
import os
import shlex
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from absl import flags
from ml_collections import config_flags

from mmoe_jax import (
  cache,
  data,
  engine,
  errors,
  evaluate,
  parallel,
  population,
  search_space,
  workdirs,
)
from mmoe_jax.config import override
from mmoe_jax.errors import UserError, require
from mmoe_jax.table import write_atomically

TRIALS_CSV = "trials.csv"
TRIALS_MD = "trials.md"
BEST = "best.json"
ROUND = 8
_STORAGE = "search.db"
_POPULATIONS = "populations"
Settings = dict[str, Any]


def search(
  config: Any,
  space: Any,
  trials: int,
  workdir: str,
  seed: int = 0,
  round_size: int = ROUND,
  say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
  """Searches a space for the settings with the best validation measure.

  Args:
    config: as configs/census.py gives it; what the space does not name stays as it is there.
    space: what to vary, see search_space.create_space.
    trials: how many trials there shall be in the work directory, earlier ones included.
    workdir: where config.json, search.db (Optuna's), trials.csv, trials.md and best.json go.
      Checkpoints of a population go there too until its trials are finished.
    seed: of the search; that of training is config.seed.
    round_size: how many trials are drawn before any of them is trained.
    say: takes a line after each population: how far the search is.

  Returns:
    All finished trials, best first, those that failed last: `number`, `settings` (flat overrides),
    `value` (the measure of config.select, higher being better: losses count negative; None if the
    trial failed), `note` (why it failed), `validation` (metrics by name), `best_epoch`, `epochs`,
    `seconds` (its share of its population's).

  Raises:
    UserError: for what the user can mend, such as a space in which no trial can be trained.
  """
  dimensions = search_space.create_space(config, space)
  require(not config.train.memory_gib, "config.train.memory_gib: a search holds rows in memory")
  require(trials >= 1, f"--trials={trials}: must be at least 1")
  require(round_size >= 1, f"--round={round_size}: must be at least 1")
  require(0 <= seed < 2**32, f"--seed={seed}: must be from 0 to 2^32 - 1")
  objective = _Objective(config)
  began = time.perf_counter()
  with workdirs.lock(workdir), _open_study(workdir) as study:
    _claim(workdir, config, space, seed)
    finished = _finished(study, dimensions)
    at_first = len(finished)
    while len(finished) < trials:
      drawn = _draw(study, dimensions, min(round_size, trials - len(finished)), seed)
      for group in _groups(drawn):
        number, settings = group[0][0].number, [own for _, own in group]
        results = objective(settings, finished, os.path.join(workdir, _POPULATIONS, str(number)))
        for (trial, _), result in zip(group, results, strict=True):
          _tell(study, trial, result)
        finished = _finished(study, dimensions)
        _write_tables(workdir, finished)
        each = (time.perf_counter() - began) / (len(finished) - at_first)
        say(_progress(finished, trials, each * max(0, trials - len(finished))))
      # Nothing is learnt from failures: better to stop and say why.
      _require_success(finished)
    _require_success(finished)
    _write_tables(workdir, finished)
  return finished


def _require_success(finished: Sequence[Mapping[str, Any]]) -> None:
  require(
    finished[0]["value"] is not None,
    f"none of {len(finished)} trials could be trained; trial {finished[0]['number']}: "
    f"{finished[0]['note']}",
  )


class _Objective:
  """Trains groups of trials and reads their validation measure."""

  def __init__(self, config: Any):
    self._config = config
    tasks = tuple(config.select.tasks or config.data.tasks)
    self._select = override(config, {"select.tasks": tasks}).select
    self._schemas: dict[str, data.Schema] = {}
    self._schema(config)  # What is wrong with the data is no trial's fault.

  def __call__(
    self, settings: Sequence[Settings], finished: Sequence[Mapping[str, Any]], folder: str
  ) -> list[dict[str, Any]]:
    """Results of trials whose settings differ in floats only: value, or None and a note; …"""
    # Training is deterministic: settings that were met before have their result.
    known = {_text(t["settings"]): t for t in finished}
    new: dict[str, Settings] = {}
    for own in settings:
      if _text(own) not in known:
        try:
          self._check(own)
          new[_text(own)] = own
        except UserError as error:
          known[_text(own)] = {"value": None, "note": errors.describe(error)}
    if new:
      known |= zip(new, self._train(list(new.values()), folder), strict=True)
      shutil.rmtree(folder, ignore_errors=True)
    return [known[_text(own)] for own in settings]

  def _train(self, settings: Sequence[Settings], folder: str) -> list[dict[str, Any]]:
    fixed, _ = _split(settings[0])
    members = [_split(own)[1] for own in settings]
    began = time.perf_counter()
    try:
      # What the search varies is no setting of this training.
      config = override(self._config, {**fixed, "search": ()})
      # Test rows are not even looked at.
      results = population.train_population(config, members, folder, report_on=("validation",))
    except UserError as error:
      return [{"value": None, "note": errors.describe(error)}] * len(members)
    seconds = (time.perf_counter() - began) / len(members)
    return [self._result(result) | {"seconds": seconds} for result in results]

  def _result(self, result: Mapping[str, Any]) -> dict[str, Any]:
    if "error" in result:
      return {"value": None, "note": result["error"]}
    named = {k: math.nan if v is None else v for k, v in result["validation"].items()}
    value = float(evaluate.selection(named, self._select, self._select.tasks))
    kept = {k: result[k] for k in ("validation", "best_epoch", "epochs")}
    if not math.isfinite(value):
      return kept | {"value": None, "note": f"validation {self._select.metric} is undefined"}
    return kept | {"value": value, "note": ""}

  def _check(self, settings: Settings) -> None:
    """Raises UserError for settings that no run could have: they would stop a population."""
    config = override(self._config, settings)
    schema = self._schema(config)
    engine.check_config(config, schema)
    engine.create_learner(config, schema, 1)

  def _schema(self, config: Any) -> data.Schema:
    key = repr(sorted(config.data.items()))
    if key not in self._schemas:
      self._schemas[key] = data.load(config.data_dir, **config.data)[0]
    return self._schemas[key]


def _split(settings: Settings) -> tuple[Settings, Settings]:
  """Settings that all members of a population share, and those that may differ: the floats."""
  floats = {k: v for k, v in settings.items() if isinstance(v, float)}
  return {k: v for k, v in settings.items() if k not in floats}, floats


def _text(settings: Settings) -> str:
  return json.dumps(settings, sort_keys=True)


def _groups(drawn: Sequence[tuple[Any, Settings]]) -> list[list[tuple[Any, Settings]]]:
  """Trials that can be trained as one population, in the order of their first ones."""
  groups: dict[str, list[tuple[Any, Settings]]] = {}
  for trial, settings in drawn:
    groups.setdefault(_text(_split(settings)[0]), []).append((trial, settings))
  return list(groups.values())


@contextlib.contextmanager
def _open_study(workdir: str) -> Iterator[optuna.Study]:
  """The study in a work directory, which keeps what was told even if the process is killed."""
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  # SQLite: Optuna's journal file cannot be read any more after a line that a kill cut short.
  url = f"sqlite:///{os.path.abspath(os.path.join(workdir, _STORAGE))}"
  storage = optuna.storages.RDBStorage(url)
  try:
    yield optuna.create_study(
      storage=storage, study_name="search", direction="maximize", load_if_exists=True
    )
  finally:
    storage.remove_session()
    storage.engine.dispose()


def _claim(workdir: str, config: Any, space: Any, seed: int) -> None:
  settings = json.loads(config.to_json_best_effort())
  settings["search"] = json.loads(json.dumps({"space": dict(space), "seed": seed}))
  if os.path.exists(os.path.join(workdir, workdirs.CONFIG)):
    workdirs.require_same(workdir, settings)
  else:
    text = json.dumps(settings, indent=1)
    write_atomically(os.path.join(workdir, workdirs.CONFIG), text)


def _draw(
  study: optuna.Study, space: Sequence[search_space.Dimension], count: int, seed: int
) -> list[tuple[optuna.Trial, Settings]]:
  """The trials of a round: what a killed process left of the last one, or new ones."""
  left = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING])
  number = len(study.get_trials(deepcopy=False))
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    # A sampler of its own for each round, so that what it draws depends on the trials before and
    # not on whether the search was interrupted.
    draws = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(seed=draws, multivariate=True, constant_liar=True)
  if left:
    trials = [optuna.Trial(study, trial._trial_id) for trial in left]
  else:
    trials = (study.ask() for _ in range(count))
  return [(trial, search_space.suggest(trial, space)) for trial in trials]


def _tell(study: optuna.Study, trial: optuna.Trial, result: Mapping[str, Any]) -> None:
  for key in ("note", "validation", "best_epoch", "epochs", "seconds"):
    trial.set_user_attr(key, result.get(key))
  if result["value"] is None:
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
  else:
    study.tell(trial, result["value"])


def _finished(study: optuna.Study, space: Sequence[search_space.Dimension]) -> list[dict[str, Any]]:
  """The finished trials as `search` returns them."""
  finished = []
  for trial in study.get_trials(deepcopy=False):
    if trial.state.is_finished():
      settings = search_space.suggest(optuna.trial.FixedTrial(trial.params), space)
      finished.append(
        {"number": trial.number, "settings": settings, "value": trial.value, **trial.user_attrs}
      )
  return sorted(finished, key=lambda t: (t["value"] is None, -(t["value"] or 0.0), t["number"]))


def _progress(finished: Sequence[Mapping[str, Any]], trials: int, seconds_left: float) -> str:
  best, failed = finished[0], sum(t["value"] is None for t in finished)
  so_far = "none yet" if best["value"] is None else f"{best['value']:.5f} (trial {best['number']})"
  return (
    f"{len(finished)} of {trials} trials{f', {failed} failed' if failed else ''}; "
    f"best {so_far}; about {seconds_left:.0f} s left"
  )


def _write_tables(workdir: str, finished: Sequence[Mapping[str, Any]]) -> None:
  settings = list(finished[0]["settings"])
  metrics = list(next((t["validation"] for t in finished if t["validation"]), {}))
  told = ("best_epoch", "epochs", "seconds", "note")
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["trial", "value", *settings, *(f"validation/{m}" for m in metrics), *told])
  for t in finished:
    measured = [(t["validation"] or {}).get(m) for m in metrics]
    values = [t["settings"][key] for key in settings]
    writer.writerow([t["number"], t["value"], *values, *measured, *(t[key] for key in told)])
  write_atomically(os.path.join(workdir, TRIALS_CSV), text.getvalue())
  write_atomically(os.path.join(workdir, TRIALS_MD), table(finished))
  if finished[0]["value"] is not None:
    best = json.dumps(finished[0]["settings"], indent=1)
    write_atomically(os.path.join(workdir, BEST), best)


def table(finished: Sequence[Mapping[str, Any]]) -> str:
  """Trials in Markdown, as `search` returns them; of the metrics those on all rows."""
  settings = list(finished[0]["settings"])
  metrics = next((t["validation"] for t in finished if t["validation"]), {})
  plain = [m for m in metrics if not m.endswith("_16_and_over") and "_weighted" not in m]
  head = ["trial", "value", *settings, *plain, "best epoch", "epochs", "seconds", "note"]
  lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
  for t in finished:
    measured = [(t["validation"] or {}).get(m) for m in plain]
    cells = [t["number"], _cell(t["value"], 6), *(_cell(t["settings"][k], 4) for k in settings)]
    cells += [_cell(value, 5) for value in measured]
    cells += [_cell(t["best_epoch"]), _cell(t["epochs"]), _cell(t["seconds"], 4), t["note"]]
    lines.append("| " + " | ".join(map(str, cells)) + " |")
  return "\n".join(lines) + "\n"


def _cell(value: Any, digits: int = 0) -> str:
  if value is None:
    return ""
  return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def command(config_file: str, settings: Mapping[str, Any], workdir: str) -> str:
  """The command line that trains a config with other values for some keys."""
  values = [f"--config.{key}={value}" for key, value in settings.items()]
  words = ["--config", config_file, *values, "--workdir", workdir]
  return "python -m mmoe_jax.main " + " ".join(map(shlex.quote, words))


def main(argv: list[str]) -> None:
  """The command line."""
  del argv
  parallel.use_all_cores()
  cache.keep_programs()
  config, flag = _CONFIG.value, flags.FLAGS["config"]
  space = search_space.parse_space(_SPACE.value) or config.search
  finished = search(config, space, _TRIALS.value, _WORKDIR.value, _SEED.value, _ROUND.value)
  best = finished[0]
  given = {k: v for k, v in flag.override_values.items() if k != "search"}
  folder = os.path.join(_WORKDIR.value, "best")
  print(f"\nbest: trial {best['number']}, {config.select.metric} {abs(best['value']):.5f}")
  for name in config.select.tasks or config.data.tasks:
    metric = f"{name}/{config.select.metric}"
    print(f"  validation {metric} {best['validation'][metric]:.5f}")
  print(f"\n{command(flag.config_filename, given | best['settings'], folder)}\n")
  print(f"all trials are in {os.path.join(_WORKDIR.value, TRIALS_MD)}")


if __name__ == "__main__":
  _CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE.py or FILE.py:ARG; --config.KEY=VALUE overrides.", lock_config=True
  )
  _TRIALS = flags.DEFINE_integer("trials", None, "How many trials, earlier ones included.")
  _WORKDIR = flags.DEFINE_string("workdir", None, "Where the search leaves everything, or goes on.")
  _SPACE = flags.DEFINE_multi_string(
    "space",
    [],
    "KEY[+KEY]=KIND,VALUE,… to vary, in place of config.search; log, uniform or int "
    "with the least and greatest value, or choice with all.",
  )
  _SEED = flags.DEFINE_integer("seed", 0, "Of the search.")
  _ROUND = flags.DEFINE_integer("round", ROUND, "Trials drawn, and trained together, at a time.")
  flags.mark_flags_as_required(["config", "trials", "workdir"])
  errors.run(main)
