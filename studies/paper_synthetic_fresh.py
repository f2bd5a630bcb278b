"""Figure 5 of Ma et al. (KDD 2018) with millions of fresh rows per run, and why its losses spread.

  python -m studies.paper_synthetic_fresh --part search --out runs/fresh
  python -m studies.paper_synthetic_fresh --part study --runs 20 --out runs/fresh
  python -m studies.paper_synthetic_fresh --part causes --out runs/fresh
  python -m studies.paper_synthetic_fresh --part report --out runs/fresh

A run trains on 24 epochs of 250,000 rows, drawn on the device in each step, so that no row occurs
twice (fresh_rows.py). The search selects, for each model and p, the learning rate among the
paper's three, then the batch size and the schedule at that rate, by validation loss on other
seeds. The study trains the same runs for all models; run r has the same rows for each.

The causes repeat runs with the highest learning rate, tasks with other initialisations,
initialisations with other rows, and runs on four times as many rows.

Each part trains populations of --members runs in separate folders of --out and resumes when it is
started again; --minutes stops it before the next population. The report reads what is finished.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from benchmarks import records
from configs import synthetic as synthetic_config
from mmoe_jax import cache, commands, parallel
from mmoe_jax.config import override
from mmoe_jax.errors import require, require_known
from mmoe_jax.files import write_json
from studies import fresh_rows, fresh_runs, fresh_tables, resumable
from studies import synthetic_figures as figures
from studies.paper_synthetic import CORRELATIONS, MODELS, RATE, RATES, SEARCH_SEED
from studies.progress import Progress

SETTINGS = os.path.join(os.path.dirname(__file__), "paper_synthetic_fresh_settings.json")
ROWS = 250_000  # Per epoch; each epoch is a point of the curve of the loss.
EPOCHS = 24
HELD_OUT = 10_000
BATCH, SCHEDULE = "train.batch_size", "optimizer.dense.schedule"
FIRST = {BATCH: 256, SCHEDULE: "constant"}  # The rate is searched with these.
REFINED = tuple(
  {BATCH: b, SCHEDULE: s} for b, s in ((256, "cosine"), (1024, "constant"), (1024, "cosine"))
)
MEMBERS = 5  # Runs that train together.
PARTS = ("search", "study", "causes", "report")
CAUSES = ("rate", "task", "rows", "longer")
GROUPS, REPEATS = 5, 4  # Of the causes `task` and `rows`.
FIRST_RUNS = {"rate": 5, "longer": 10}  # Runs of the study that these causes repeat.
HIGHEST_RATE = max(RATES)
LONGER = 4


class Run(NamedTuple):
  """Seeds of a run.

  Attributes:
    seed: of the initialisation and the train rows.
    task: of the weight vectors and the held-out rows.
    stream: number of the sequence of train rows.
  """

  seed: int
  task: int
  stream: int = 0


class Population(NamedTuple):
  """Runs that train together.

  Attributes:
    folder: its folder within --out.
    model: name of the model.
    correlation: p.
    settings: settings of all runs, by dotted key.
    runs: the runs.
    rates: learning rate of each run; empty for that of `settings`.
    epochs: factor of the number of epochs.
  """

  folder: str
  model: str
  correlation: float
  settings: Mapping[str, Any]
  runs: Sequence[Run]
  rates: Sequence[float] = ()
  epochs: int = 1


class Size(NamedTuple):
  """Train rows per epoch, epochs, and rows of each held-out split."""

  rows: int = ROWS
  epochs: int = EPOCHS
  held_out: int = HELD_OUT


class Trainer:
  """Trains populations, or reads those that are trained, until time is up."""

  def __init__(self, out: str, size: Size, parts: int, minutes: float):
    """Starts a part of the study, of that many populations."""
    self._out, self._size, self._progress = out, size, Progress(parts)
    self._end = time.monotonic() + 60 * minutes

  def train(self, population: Population) -> dict[str, Any]:
    """Returns the content of the population's `benchmark.json`.

    Raises:
      SystemExit: if it is not trained and time is up.
    """
    folder = os.path.join(self._out, population.folder)
    was_there = resumable.is_done(folder)
    if not was_there and time.monotonic() > self._end:
      print("time is up; start the same command again to resume")
      raise SystemExit(0)
    done = train(population, folder, self._size, is_done=was_there)
    loss = np.nanmean(figures.final_losses(done["results"], "validation"))
    self._progress.finish(f"{population.folder}: validation loss {loss:.4f}", not was_there)
    return done


def train(population: Population, folder: str, size: Size, is_done: bool) -> dict[str, Any]:
  """Trains a population in a folder, or reads its results if it is trained."""
  config = override(synthetic_config.get_config(population.model), population.settings)
  config.train.epochs = size.epochs * population.epochs
  config.train.devices = 1
  members = [{"seed": run.seed} for run in population.runs]
  for member, rate in zip(members, population.rates, strict=False):
    member[RATE] = rate
  made_of = {
    "correlation": population.correlation,
    "tasks": [run.task for run in population.runs],
    "streams": [run.stream for run in population.runs],
    **size._asdict(),
  }
  made = []
  if not is_done:
    made = [
      fresh_rows.splits(r.task, population.correlation, size.rows, size.held_out, r.stream)
      for r in population.runs
    ]
  return resumable.train(
    config,
    members,
    folder,
    made_of,
    splits=[splits for _, splits in made],
    schema=made[0][0] if made else None,
    report_on=("validation", "test"),
    verbose=False,
  )


def name(model: str, correlation: float) -> str:
  """Returns the name of a model at a correlation, such as mmoe_p0.5."""
  return f"{model}_p{correlation:g}"


def run_search(
  models: Sequence[str],
  correlations: Sequence[float],
  seeds: int,
  out: str,
  size: Size,
  minutes: float,
  rates: Sequence[float] = RATES,
  refined: Sequence[Mapping[str, Any]] = REFINED,
  path: str = SETTINGS,
) -> None:
  """Selects rate, batch size and schedule of each model at each p; writes them to `path`.

  Args:
    models: names of models.
    correlations: each p.
    seeds: trainings of each setting.
    out: output folder.
    size: rows and epochs.
    minutes: start no population after them.
    rates: learning rates, with the settings FIRST.
    refined: further settings with the best of the rates.
    path: file of the chosen settings.
  """
  require(seeds >= 1, f"--search_seeds={seeds}: must be at least 1")
  trainer = Trainer(out, size, len(models) * len(correlations) * (1 + len(refined)), minutes)
  runs = [Run(SEARCH_SEED + s, SEARCH_SEED + s) for s in range(seeds)]
  for correlation in correlations:
    for model in models:
      of_rates = Population(
        os.path.join("search", name(model, correlation), "rates"),
        model,
        correlation,
        FIRST,
        runs * len(rates),
        [rate for rate in rates for _ in runs],
      )
      loss_RATExS = _validation_loss(trainer.train(of_rates)).reshape(len(rates), seeds)
      trials = [({RATE: r, **FIRST}, loss_S) for r, loss_S in zip(rates, loss_RATExS, strict=True)]
      best = _best(trials)
      for settings in refined:
        candidate = {**best, **settings}
        folder = os.path.join("search", name(model, correlation), _describe(settings))
        done = trainer.train(Population(folder, model, correlation, candidate, runs))
        trials.append((candidate, _validation_loss(done)))
      of_model = {
        "settings": _best(trials),
        "validation_loss": {_describe(each): loss_S.tolist() for each, loss_S in trials},
      }
      # Read again, because another process may have searched for other models.
      write_json(path, resumable.read_if_exists(path) | {name(model, correlation): of_model})


def study_populations(
  models: Sequence[str],
  correlations: Sequence[float],
  runs: int,
  members: int,
  chosen: Mapping[str, Any],
) -> Iterator[Population]:
  """Yields the populations of the study; those of the first runs come first."""
  for start in range(0, runs, members):
    seeds = range(start, min(runs, start + members))
    for correlation in correlations:
      for model in models:
        folder = os.path.join("study", name(model, correlation), f"runs_{start:04d}")
        settings = settings_of(chosen, model, correlation)
        yield Population(folder, model, correlation, settings, [Run(s, s) for s in seeds])


def cause_populations(
  causes: Sequence[str],
  models: Sequence[str],
  correlations: Sequence[float],
  chosen: Mapping[str, Any],
) -> Iterator[Population]:
  """Yields the populations that separate causes of the losses' level and spread.

  `rate` repeats the study's first runs with the highest learning rate; `longer` on LONGER times as
  many rows; `task` repeats each of GROUPS tasks with REPEATS initialisations and sequences of rows;
  `rows` repeats each of GROUPS initialisations of one task with REPEATS sequences of rows.
  """
  for cause in causes:
    for correlation in correlations:
      for model in models:
        settings = settings_of(chosen, model, correlation)
        folder = os.path.join("causes", cause, name(model, correlation))
        for start in range(0, FIRST_RUNS.get(cause, 0), MEMBERS):
          runs = [Run(seed, seed) for seed in range(start, start + MEMBERS)]
          of_runs = os.path.join(folder, f"runs_{start:04d}")
          if cause == "rate":
            high = {**settings, RATE: HIGHEST_RATE}
            yield Population(of_runs, model, correlation, high, runs)
          else:
            yield Population(of_runs, model, correlation, settings, runs, epochs=LONGER)
        for group in range(GROUPS) if cause in ("task", "rows") else ():
          if cause == "task":
            seeds = range(1000 + group * REPEATS, 1000 + (group + 1) * REPEATS)
            runs = [Run(seed, task=group) for seed in seeds]
          else:
            runs = [Run(2000 + group, 0, stream) for stream in range(REPEATS)]
          of_group = os.path.join(folder, f"group_{group:02d}")
          yield Population(of_group, model, correlation, settings, runs)


def settings_of(chosen: Mapping[str, Any], model: str, correlation: float) -> dict[str, Any]:
  """Returns the settings that the search selected for a model at a correlation."""
  of = name(model, correlation)
  require(of in chosen, f"{of} has no searched settings; run --part search first")
  return dict(chosen[of]["settings"])


def report(out: str, results: str) -> None:
  """Writes the runs of each part that is trained, completely or not, as a result file."""
  settings = {"first": FIRST, "rates": RATES}
  for part in PARTS[:-1]:
    runs = fresh_runs.read(out, part)
    if runs:
      print(records.write(results, f"{fresh_tables.FOLDER}/{part}", runs, settings=settings))


def _best(trials: Sequence[tuple[Mapping[str, Any], np.ndarray]]) -> dict[str, Any]:
  """Returns the settings of the lowest mean loss; those with which a run diverged are left out."""
  finite = [
    (loss_S.mean(), dict(settings)) for settings, loss_S in trials if np.isfinite(loss_S).all()
  ]
  require(len(finite) > 0, "training diverged with every setting of the search")
  return min(finite, key=lambda trial: trial[0])[1]


def _describe(settings: Mapping[str, Any]) -> str:
  return ",".join(f"{key.split('.')[-1]}={value}" for key, value in settings.items())


def _validation_loss(done: Mapping[str, Any]) -> np.ndarray:
  return figures.final_losses(done["results"], "validation")


def main(argv: list[str]) -> None:
  """Runs a part of the study."""
  del argv
  parallel.use_all_cores()
  cache.keep_programs()
  require_known(_PART.value, PARTS, "--part")
  for model in _MODELS.value:
    require_known(model, MODELS, "a name in --models")
  require(_RUNS.value >= 1, f"--runs={_RUNS.value}: must be at least 1")
  require(_MEMBERS.value >= 1, f"--members={_MEMBERS.value}: must be at least 1")
  correlations = [float(text) for text in _CORRELATIONS.value]
  size = Size(_ROWS.value, _EPOCHS.value, _HELD_OUT.value)
  if _PART.value == "report":
    report(_OUT.value, _RESULTS.value)
    return
  if _PART.value == "search":
    settings = (_SEARCH_SEEDS.value, _OUT.value, size, _MINUTES.value)
    rates = [float(text) for text in _RATES.value]
    run_search(_MODELS.value, correlations, *settings, rates, REFINED if _REFINE.value else ())
    return
  chosen = resumable.read_if_exists(SETTINGS)
  if _PART.value == "study":
    arguments = (_MODELS.value, correlations, _RUNS.value, _MEMBERS.value)
    populations = list(study_populations(*arguments, chosen))
  else:
    for cause in _CAUSES.value:
      require_known(cause, CAUSES, "a name in --causes")
    arguments = (_CAUSES.value, _MODELS.value, correlations)
    populations = list(cause_populations(*arguments, chosen))
  trainer = Trainer(_OUT.value, size, len(populations), _MINUTES.value)
  for population in populations:
    trainer.train(population)


if __name__ == "__main__":
  _PART = flags.DEFINE_string("part", None, "search, study, causes or report.", required=True)
  _RUNS = flags.DEFINE_integer("runs", 20, "Runs of each model and p.")
  _MEMBERS = flags.DEFINE_integer("members", MEMBERS, "Runs that train together.")
  _SEARCH_SEEDS = flags.DEFINE_integer("search_seeds", 2, "Trainings of each setting.")
  _CAUSES = flags.DEFINE_list("causes", list(CAUSES), "Which causes.")
  _RATES = flags.DEFINE_list("rates", list(map(str, RATES)), "Learning rates of the search.")
  _REFINE = flags.DEFINE_bool("refine", True, "Search batch size and schedule, too.")
  _MODELS = flags.DEFINE_list("models", list(MODELS), "Which models.")
  _CORRELATIONS = flags.DEFINE_list("correlations", list(map(str, CORRELATIONS)), "Which p.")
  _ROWS = flags.DEFINE_integer("rows", ROWS, "Train rows per epoch.")
  _EPOCHS = flags.DEFINE_integer("epochs", EPOCHS, "Epochs of a run.")
  _HELD_OUT = flags.DEFINE_integer("held_out", HELD_OUT, "Validation and test rows of a run.")
  _MINUTES = flags.DEFINE_float("minutes", 1e9, "Start no population after that many minutes.")
  _RESULTS = flags.DEFINE_string("results", records.FOLDER, "Folder of result files to write to.")
  _OUT = flags.DEFINE_string("out", None, "Where populations and tables go.", required=True)
  commands.run(main, resumes=True)
