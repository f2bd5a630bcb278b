"""Hyper-parameter search: rounds of trials, trained as populations.

Trials are compared by the validation metric of config.select; test rows are not used. They are
drawn in rounds by a tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011, in Optuna's
implementation), which treats pending trials of a round as bad ones, so that a round spreads. Trials
of a round that differ only in floats are trained as one population.

Started again in its work directory, a search resumes: finished trials are kept, the interrupted
round is trained, and the following rounds are those of an uninterrupted search. A larger number of
trials continues a finished search.

Several machines can share a search, see search_shared.py.
"""

import contextlib
import json
import math
import os
import shlex
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmoe_jax import data, errors
from mmoe_jax.config import check_structure, override
from mmoe_jax.errors import SaveError, UserError, require
from mmoe_jax.evaluation import evaluate
from mmoe_jax.evaluation.tables import comma_separated, markdown
from mmoe_jax.files import write_atomically, write_json
from mmoe_jax.training import checks, population, search_shared, search_space
from mmoe_jax.training.search_study import (
  DATABASE,
  Settings,
  draw,
  finished_trials,
  open_study,
  tell,
)
from mmoe_jax.workdir import contract, preemption, tracking
from mmoe_jax.workdir.progress import format_duration

TRIALS_CSV = "trials.csv"
TRIALS_MD = "trials.md"
BEST = "best.json"
ROUND = 8
_POPULATIONS = "populations"


def run_search(
  config: Any,
  space: Any,
  trials: int,
  workdir: str,
  seed: int = 0,
  round_size: int = ROUND,
  report: Callable[[str], None] = print,
  storage: str | None = None,
) -> list[dict[str, Any]]:
  """Searches a space for the settings with the best validation metric.

  Args:
    config: settings as in configs/census.py; keys outside the space keep their values.
    space: keys to vary, see search_space.create_space.
    trials: number of trials in the work directory, or the storage, earlier ones included.
    workdir: folder for config.json, search.db (Optuna's), trials.csv, trials.md and best.json, and
      for checkpoints of a population until its trials are finished.
    seed: seed of the search; config.seed is that of training.
    round_size: number of trials that are drawn before any of them is trained.
    report: called with a line on the progress after each population.
    storage: journal file or URL of a database that several machines share, in place of search.db;
      each has a separate work directory, and all return the same trials.

  Returns:
    All finished trials, the best first, failed ones last: `number`, `settings` (overrides),
    `value` (metric of config.select, higher is better: losses are negative; None if the trial
    failed), `note` (why it failed), `validation` (metrics by name), `best_epoch`, `epochs`,
    `seconds` (its share of the population's).

  Raises:
    UserError: for impossible settings, or a space without a trainable trial.
    Preempted: after saving, if a signal asks to stop, see workdir/preemption.py.
    SaveError: if a population cannot be saved; its trials stay open, and the search can resume.
  """
  check_structure(config)
  dimensions = search_space.create_space(config, space)
  require(
    not config.train.memory_gib,
    f"config.train.memory_gib = {config.train.memory_gib}: must be 0 for a search",
  )
  require(
    set(tracking.parse(config.train.trackers)) <= set(tracking.parse(tracking.DEFAULT)),
    f"config.train.trackers = '{config.train.trackers}': must be {tracking.DEFAULT} for a search, "
    f"which writes {TRIALS_CSV}; track the best trial's run instead",
  )
  require(trials >= 1, f"--trials={trials}: must be at least 1")
  require(round_size >= 1, f"--round={round_size}: must be at least 1")
  require(0 <= seed < 2**32, f"--seed={seed}: must be from 0 to 2^32 - 1")
  trainer = _Trainer(config)
  start = time.perf_counter()
  with _open(config, space, workdir, seed, storage) as (study, machine):
    finished = finished_trials(study, dimensions)
    finished_before = len(finished)
    while len(finished) < trials:
      if machine is None:
        drawn = draw(study, dimensions, min(round_size, trials - len(finished)), seed)
      else:
        drawn = machine.draw(dimensions, trials, round_size, seed, report)
        finished = finished_trials(study, dimensions)
      groups = _group_by_fixed_settings(drawn)
      names = [_population_name(group, is_shared=machine is not None) for group in groups]
      _remove_other_populations(workdir, names)
      for group, name in zip(groups, names, strict=True):
        folder = os.path.join(workdir, _POPULATIONS, name)
        results = trainer.train([settings for _, settings in group], finished, folder)
        for (trial, _), result in zip(group, results, strict=True):
          tell(study, trial, result)
        # Deleted only now: a kill before the results are stored must not lose the population.
        shutil.rmtree(folder, ignore_errors=True)
        finished = finished_trials(study, dimensions)
        _write_tables(workdir, finished)
        seconds_each = (time.perf_counter() - start) / (len(finished) - finished_before)
        report(_format_progress(finished, trials, seconds_each))
        preemption.stop_if_requested()
      # The sampler learns nothing from failures alone.
      _require_success(finished)
    _require_success(finished)
    _write_tables(workdir, finished)
  return finished


class _Trainer:
  """Trains groups of trials and reads their validation metric."""

  def __init__(self, config: Any):
    self._config = config
    tasks = tuple(config.select.tasks or config.data.tasks)
    self._select = override(config, {"select.tasks": tasks}).select
    self._schemas: dict[str, data.Schema] = {}
    self._schema(config)  # Errors in the data end the search here, not in a trial.

  def train(
    self, settings: Sequence[Settings], finished: Sequence[Mapping[str, Any]], folder: str
  ) -> list[dict[str, Any]]:
    """Trains trials that differ only in floats.

    Args:
      settings: settings of the trials.
      finished: finished trials, whose results are reused for equal settings.
      folder: work directory of the population.

    Returns:
      For each trial `value` and the other entries of `run_search`, or None and a `note`.
    """
    # Training is deterministic, so equal settings have equal results.
    results = {_key(trial["settings"]): trial for trial in finished}
    new: dict[str, Settings] = {}
    for trial_settings in settings:
      if _key(trial_settings) in results:
        continue
      try:
        self._check(trial_settings)
        new[_key(trial_settings)] = trial_settings
      except UserError as error:
        results[_key(trial_settings)] = {"value": None, "note": errors.describe(error)}
    if new:
      results |= zip(new, self._train_population(list(new.values()), folder), strict=True)
    return [results[_key(trial_settings)] for trial_settings in settings]

  def _train_population(self, settings: Sequence[Settings], folder: str) -> list[dict[str, Any]]:
    fixed, _ = _separate_floats(settings[0])
    members = [_separate_floats(each)[1] for each in settings]
    start = time.perf_counter()
    # The search space is not a setting of this training.
    config = override(self._config, {**fixed, "search": ()})
    try:
      results = population.train_population(
        config, members, folder, report_on=("validation",), verbose=False
      )
    except SaveError:
      raise  # A fault of the machine says nothing about the settings.
    except UserError as error:
      return [{"value": None, "note": errors.describe(error)}] * len(members)
    seconds = (time.perf_counter() - start) / len(members)
    return [self._result(result) | {"seconds": seconds} for result in results]

  def _result(self, result: Mapping[str, Any]) -> dict[str, Any]:
    if "error" in result:
      return {"value": None, "note": result["error"]}
    metrics = {k: math.nan if v is None else v for k, v in result["validation"].items()}
    value = float(evaluate.selection(metrics, self._select, self._select.tasks))
    entries = {k: result[k] for k in ("validation", "best_epoch", "epochs")}
    if not math.isfinite(value):
      return entries | {"value": None, "note": f"validation {self._select.metric} is undefined"}
    return entries | {"value": value, "note": ""}

  def _check(self, settings: Settings) -> None:
    """Raises UserError for impossible settings, which would stop the whole population."""
    config = override(self._config, settings)
    checks.check_config(config, self._schema(config))

  def _schema(self, config: Any) -> data.Schema:
    key = repr(sorted(config.data.items()))
    if key not in self._schemas:
      self._schemas[key] = data.load(config.data_dir, **config.data)[0]
    return self._schemas[key]


def format_trials(finished: Sequence[Mapping[str, Any]]) -> str:
  """Formats trials, as `run_search` returns them, as Markdown; metrics are those on all rows."""
  settings = list(finished[0]["settings"])
  metrics = next((t["validation"] for t in finished if t["validation"]), {})
  metrics = [m for m in metrics if not m.endswith("_16_and_over") and "_weighted" not in m]
  header = ["trial", "value", *settings, *metrics, "best epoch", "epochs", "seconds", "note"]
  rows = []
  for t in finished:
    values = [(t["validation"] or {}).get(m) for m in metrics]
    cells = [t["number"], _format(t["value"], 6), *(_format(t["settings"][k], 4) for k in settings)]
    cells += [_format(value, 5) for value in values]
    cells += [_format(t["best_epoch"]), _format(t["epochs"]), _format(t["seconds"], 4), t["note"]]
    rows.append(cells)
  return markdown(header, rows) + "\n"


def command(config_file: str, settings: Mapping[str, Any], workdir: str) -> str:
  """Returns the command line that trains a config with other values for some keys."""
  values = [f"--config.{key}={value}" for key, value in settings.items()]
  words = ["--config", config_file, *values, "--workdir", workdir]
  return "python -m mmoe_jax.main " + " ".join(map(shlex.quote, words))


def _require_success(finished: Sequence[Mapping[str, Any]]) -> None:
  require(
    finished[0]["value"] is not None,
    f"none of {len(finished)} trials could be trained; trial {finished[0]['number']}: "
    f"{finished[0]['note']}",
  )


def _separate_floats(settings: Settings) -> tuple[Settings, Settings]:
  """Separates settings that members of a population share from those that may differ: floats."""
  floats = {k: v for k, v in settings.items() if isinstance(v, float)}
  return {k: v for k, v in settings.items() if k not in floats}, floats


def _key(settings: Settings) -> str:
  return json.dumps(settings, sort_keys=True)


def _group_by_fixed_settings(
  drawn: Sequence[tuple[Any, Settings]],
) -> list[list[tuple[Any, Settings]]]:
  """Groups trials that can be trained as one population, in the order of their first ones."""
  groups: dict[str, list[tuple[Any, Settings]]] = {}
  for trial, settings in drawn:
    groups.setdefault(_key(_separate_floats(settings)[0]), []).append((trial, settings))
  return list(groups.values())


def _population_name(group: Sequence[tuple[Any, Settings]], is_shared: bool) -> str:
  """Returns the folder of a group; if shared, another machine may have finished part of it."""
  numbers = [trial.number for trial, _ in group]
  digest = zlib.crc32(repr(numbers).encode())
  return f"{numbers[0]}-{digest:08x}" if is_shared else str(numbers[0])


def _remove_other_populations(workdir: str, names: Sequence[str]) -> None:
  """Removes populations of which a process was killed after it had stored the first trial."""
  folder = os.path.join(workdir, _POPULATIONS)
  for name in os.listdir(folder) if os.path.isdir(folder) else []:
    if name not in names:
      shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


@contextlib.contextmanager
def _open(
  config: Any, space: Any, workdir: str, seed: int, storage: str | None
) -> Iterator[tuple[Any, search_shared.Machine | None]]:
  """Opens and claims the study of a search; with a storage, also as one of its machines."""
  settings = json.loads(config.to_json_best_effort())
  settings["search"] = json.loads(json.dumps({"space": dict(space), "seed": seed}))
  if storage is None:
    with contract.lock(workdir):
      require(
        not os.path.exists(os.path.join(workdir, search_shared.MACHINE)),
        f"{workdir} is of a search with --storage; give it, or use another --workdir",
      )
      with open_study(workdir) as study:
        _claim(workdir, settings)
        yield study, None
    return
  digest = data.verify(config.data_dir)
  with search_shared.open_study(storage) as study, contract.lock(workdir):
    require(
      not os.path.exists(os.path.join(workdir, DATABASE)),
      f"{workdir} is of a search without --storage; use another --workdir",
    )
    search_shared.claim(study, settings, digest, storage)
    _claim(workdir, settings)
    with search_shared.Machine(study, workdir) as machine:
      yield study, machine


def _claim(workdir: str, settings: Mapping[str, Any]) -> None:
  """Writes config.json, or validates that the search there has the same settings."""
  path = os.path.join(workdir, contract.CONFIG)
  if os.path.exists(path):
    contract.require_same(workdir, settings)
  else:
    write_json(path, settings)


def _format_progress(
  finished: Sequence[Mapping[str, Any]], trials: int, seconds_each: float
) -> str:
  best, failed = finished[0], sum(t["value"] is None for t in finished)
  value = "none" if best["value"] is None else f"{best['value']:.5f} (trial {best['number']})"
  left_s = seconds_each * max(0, trials - len(finished))
  return (
    f"{len(finished)} of {trials} trials{f', {failed} failed' if failed else ''}; "
    f"best {value}; about {format_duration(left_s)} left"
  )


def _write_tables(workdir: str, finished: Sequence[Mapping[str, Any]]) -> None:
  metrics = list(next((t["validation"] for t in finished if t["validation"]), {}))
  rows = []
  for t in finished:
    row = {"trial": t["number"], "value": t["value"], **t["settings"]}
    row |= {f"validation/{m}": (t["validation"] or {}).get(m) for m in metrics}
    rows.append(row | {k: t[k] for k in ("best_epoch", "epochs", "seconds", "note")})
  write_atomically(os.path.join(workdir, TRIALS_CSV), comma_separated(rows))
  write_atomically(os.path.join(workdir, TRIALS_MD), format_trials(finished))
  if finished[0]["value"] is not None:
    write_json(os.path.join(workdir, BEST), finished[0]["settings"])


def _format(value: Any, digits: int = 0) -> str:
  if value is None:
    return ""
  return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
