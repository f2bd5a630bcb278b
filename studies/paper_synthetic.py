"""Synthetic study of Ma et al. (KDD 2018), figures 2, 4 and 5: tasks with a given correlation.

  python -m studies.paper_synthetic --search --out runs/paper_synthetic_search
  python -m studies.paper_synthetic --runs 200 --out runs/paper_synthetic

Figure 2 is the correlation of the labels against the cosine p of the tasks' weights. Figures 4
and 5 are the loss of Shared-Bottom, OMoE and MMoE of about equal size at p = 0.5, 0.9 and 1, in
200 runs with different data and initialisation; run r has the same data for the three models, so
that comparisons are paired. The search selects each model's learning rate among the paper's three
by validation loss, on data of other seeds, and writes studies/paper_synthetic_settings.json.

Runs train in populations of --members, each in a separate folder in --out, so that an interrupted
study resumes. Writes table.md, table.json, table.csv and plots, and with --results result files.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from benchmarks import records
from benchmarks.machine import describe_machine
from configs import synthetic as synthetic_config
from data_prep import synthetic
from mmoe_jax import cache, commands, data, parallel
from mmoe_jax.config import override
from mmoe_jax.errors import require, require_known
from mmoe_jax.evaluation import tables
from mmoe_jax.files import write_atomically, write_json
from studies import plots, published, resumable
from studies import synthetic_figures as figures
from studies.progress import Progress

SETTINGS = os.path.join(os.path.dirname(__file__), "paper_synthetic_settings.json")
MODELS = ("shared_bottom", "omoe", "mmoe")
CORRELATIONS = (0.5, 0.9, 1.0)
RATES = (1e-4, 1e-3, 1e-2)  # The paper's choices.
RATE = "optimizer.dense.learning_rate"
# Validation loss if it is measured per epoch, otherwise training loss.
CURVES = ("validation/{task}/mse", "train/{task}/loss")
FIGURE_2 = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
FIGURE_2_ROWS = 20_000  # Rows of a data set for figure 2; the standard error is at most 0.007.
SEARCH_SEED = 1_000_000  # The search's data differ from the study's.
TASKS = ("task_1", "task_2")


class Size(NamedTuple):
  """Rows of a run's train split, and of each other split; the paper gives neither."""

  rows: int = synthetic.ROWS
  held_out: int = synthetic.HELD_OUT


def create_config(model: str, epochs: int | None) -> Any:
  """Returns the config of a model on the synthetic tasks."""
  config = synthetic_config.get_config(model)
  if epochs is not None:
    config.train.epochs = epochs
  return config


def make(
  seeds: Sequence[int], correlation: float, size: Size
) -> list[tuple[data.Schema, dict[str, data.Split]]]:
  """Draws the data of each seed, on all cores."""
  with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
    return list(pool.map(lambda seed: synthetic.splits(seed, correlation, *size), seeds))


def mean_curves(folder: str) -> np.ndarray:
  """Returns the mean loss over tasks of each epoch and member, (K, M)."""
  of_tasks = [resumable.read_curves(folder, [c.format(task=t) for c in CURVES])[1] for t in TASKS]
  return np.mean(of_tasks, 0)


def run_search(
  models: Sequence[str],
  correlations: Sequence[float],
  seeds: int,
  out: str,
  epochs: int | None,
  size: Size,
  path: str = SETTINGS,
) -> None:
  """Trains every model at every learning rate; writes that of the lowest mean validation loss."""
  require(seeds >= 1, f"--search_seeds={seeds}: must be at least 1")
  progress = Progress(len(models) * len(correlations))
  loss: dict[str, list[np.ndarray]] = {model: [] for model in models}
  for correlation in correlations:
    made = make(range(SEARCH_SEED, SEARCH_SEED + seeds), correlation, size)
    made_of = {"correlation": correlation, "first_seed": SEARCH_SEED, **size._asdict()}
    for model in models:
      config = create_config(model, epochs)
      members = [{"seed": s, RATE: r} for r in RATES for s in range(seeds)]
      folder = os.path.join(out, f"{model}_p{correlation:g}")
      was_there = resumable.is_done(folder)
      splits = [made[m["seed"]][1] for m in members]
      done = resumable.train(
        config,
        members,
        folder,
        made_of,
        splits=splits,
        schema=made[0][0],
        report_on=("validation",),
      )
      loss_RATExS = figures.final_losses(done["results"], "validation").reshape(len(RATES), seeds)
      loss[model].append(loss_RATExS.mean(1))
      progress.finish(f"{model} at p = {correlation:g}", not was_there)
  chosen = resumable.read_if_exists(path)
  for model in models:
    # A learning rate at which any training diverged is NaN, and not selected.
    mean_RATE = np.mean(loss[model], 0)
    require(bool(np.isfinite(mean_RATE).any()), f"{model}: diverged at every learning rate")
    best = int(np.nanargmin(mean_RATE))
    chosen[model] = {
      "settings": {RATE: RATES[best]},
      "validation_loss": dict(zip(map(str, RATES), mean_RATE.tolist(), strict=True)),
      "trials": len(RATES),
      "trainings_of_each": seeds * len(correlations),
    }
    print(f"{model}: learning rate {RATES[best]:g} of {chosen[model]['validation_loss']}")
  write_json(path, chosen)


def run_study(
  models: Sequence[str],
  correlations: Sequence[float],
  runs: int,
  members: int,
  label_seeds: int,
  out: str,
  epochs: int | None,
  size: Size,
  path: str = SETTINGS,
  results: str | None = None,
) -> dict[str, Any]:
  """Trains the missing populations, writes tables and plots; returns the content of table.json.

  With a folder of `results` also writes the result files synthetic/losses and synthetic/labels.
  """
  require(runs >= 1, f"--runs={runs}: must be at least 1")
  require(members >= 1, f"--members={members}: must be at least 1")
  chosen = resumable.read_if_exists(path)
  configs = {
    m: override(create_config(m, epochs), chosen[m]["settings"] if m in chosen else {})
    for m in models
  }
  rows_2 = min(size.rows, FIGURE_2_ROWS)
  figure_2 = figures.label_correlations(FIGURE_2, label_seeds, rows_2) if label_seeds else []
  starts = range(0, runs, members)
  progress = Progress(len(correlations) * len(starts) * len(models))
  rows, pairs, listed, curves = [], [], [], {}
  for correlation in correlations:
    losses: dict[str, list[np.ndarray]] = {model: [] for model in models}
    of_p: dict[str, list[np.ndarray]] = {model: [] for model in models}
    for start in starts:
      seeds = range(start, min(runs, start + members))
      made_of = {"correlation": correlation, "first_seed": start, **size._asdict()}
      made: list[tuple[data.Schema, dict[str, data.Split]]] = []
      for model in models:
        folder = os.path.join(out, f"{model}_p{correlation:g}", f"runs_{start:04d}")
        was_there = resumable.is_done(folder)
        if not (made or was_there):
          made = make(seeds, correlation, size)
        done = resumable.train(
          configs[model],
          [{"seed": seed} for seed in seeds],
          folder,
          made_of,
          splits=[splits for _, splits in made],
          schema=made[0][0] if made else None,
          report_on=("validation", "test"),
        )
        loss_M = figures.final_losses(done["results"], "test")
        losses[model].append(loss_M)
        of_p[model].append(mean_curves(folder))
        listed.append({"correlation": correlation, "model": model, "start": start, **done})
        what = f"p = {correlation:g}, {model}, runs {seeds[0]} to {seeds[-1]}"
        progress.finish(f"{what}: loss {np.nanmean(loss_M):.4f}", not was_there)
    of_models = {model: np.concatenate(parts) for model, parts in losses.items()}
    rows += figures.summarise(correlation, of_models)
    pairs += figures.compare(correlation, of_models)
    curves[correlation] = {model: figures.join_curves(parts) for model, parts in of_p.items()}
  content = {
    "machine": describe_machine(),
    "wall_seconds": sum(p["seconds"] for p in listed),
    "chosen": chosen,
    "figure_2": figure_2,
    "rows": rows,
    "pairs": pairs,
    "curves": {
      f"{p:g}": {
        model: dict(zip(("mean", "low", "high"), figures.curve_summary(curves_KxR), strict=True))
        for model, curves_KxR in of_models.items()
      }
      for p, of_models in curves.items()
    },
    "populations": listed,
  }
  write(content, curves, [m for m in models if m not in chosen], out)
  _write_results(results, content, {"chosen": chosen, "epochs": epochs, **size._asdict()}, rows_2)
  return content


def _write_results(
  folder: str | None, content: Mapping[str, Any], settings: Mapping[str, Any], rows_2: int
) -> None:
  """Writes the result files of figures 4 and 5, and of figure 2."""
  runs = figures.runs_of(content["populations"])
  records.write(folder, "synthetic/losses", runs, settings=settings)
  if content["figure_2"]:
    drawn = [{"cosine": p["cosine"], "values": p.pop("drawn")} for p in content["figure_2"]]
    records.write(folder, "synthetic/labels", drawn, settings={"rows": rows_2})


def write(
  content: Mapping[str, Any],
  curves: Mapping[float, Mapping[str, np.ndarray]],
  untuned: Sequence[str],
  out: str,
) -> None:
  """Writes the tables and plots of a study.

  Args:
    content: content of table.json.
    curves: correlation -> model -> loss of each epoch and run, (K, R).
    untuned: models whose learning rate was not searched.
    out: output folder.
  """
  write_json(os.path.join(out, "table.json"), content)
  write_atomically(os.path.join(out, "table.csv"), tables.comma_separated(content["rows"]))
  text = figures.markdown(content["figure_2"], content["rows"], content["pairs"], untuned)
  write_atomically(os.path.join(out, "table.md"), text)
  print(text)
  if content["figure_2"]:
    measured = [(r["cosine"], r["mean"], r["low"], r["high"]) for r in content["figure_2"]]
    title = "Figure 2: relatedness of tasks"
    path = os.path.join(out, "figure_2.png")
    plots.correlations(path, measured, published.LABEL_CORRELATION, title)
  panels = {
    f"p = {p:g}": {m: figures.curve_summary(c) for m, c in of_models.items()}
    for p, of_models in curves.items()
  }
  title = "Figure 4: mean loss and its 95 % interval"
  plots.curves(os.path.join(out, "figure_4.png"), panels, title, "squared error, validation rows")
  final: dict[str, dict[str, np.ndarray]] = {}
  for p in content["populations"]:
    of_p = final.setdefault(f"p = {p['correlation']:g}", {})
    loss_M = figures.final_losses(p["results"], "test")
    of_p[p["model"]] = np.append(of_p.get(p["model"], []), loss_M[np.isfinite(loss_M)])
  title = "Figure 5: final loss of each run (dotted: mean)"
  plots.histograms(os.path.join(out, "figure_5.png"), final, title, "squared error, test rows")


def main(argv: list[str]) -> None:
  """Runs the search or the study."""
  del argv
  parallel.use_all_cores()
  cache.keep_programs()
  require(len(_MODELS.value) > 0, f"--models is empty; known: {', '.join(MODELS)}")
  for model in _MODELS.value:
    require_known(model, MODELS, "a name in --models")
  correlations = [_correlation(text) for text in _CORRELATIONS.value]
  require(len(correlations) > 0, "--correlations is empty; give numbers from 0 to 1")
  size = Size(_ROWS.value, _HELD_OUT.value)
  if _SEARCH.value:
    run_search(_MODELS.value, correlations, _SEARCH_SEEDS.value, _OUT.value, _EPOCHS.value, size)
  else:
    counts = (_RUNS.value, _MEMBERS.value, _LABEL_SEEDS.value)
    run_study(
      _MODELS.value, correlations, *counts, _OUT.value, _EPOCHS.value, size, results=_RESULTS.value
    )
  print(f"everything is in {_OUT.value}")


def _correlation(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = np.nan
  require(0 <= value <= 1, f"--correlations holds '{text}'; give numbers from 0 to 1")
  return value


if __name__ == "__main__":
  _SEARCH = flags.DEFINE_bool("search", False, "Choose learning rates on validation rows instead.")
  _SEARCH_SEEDS = flags.DEFINE_integer("search_seeds", 5, "Trainings of each rate and p.")
  _RUNS = flags.DEFINE_integer("runs", 200, "Runs of each model and p.")
  _MEMBERS = flags.DEFINE_integer("members", 50, "Runs that train together, as memory allows.")
  _LABEL_SEEDS = flags.DEFINE_integer("label_seeds", 50, "Data sets a point of figure 2; 0: none.")
  _ROWS = flags.DEFINE_integer("rows", synthetic.ROWS, "Train rows of a run.")
  _HELD_OUT = flags.DEFINE_integer("held_out", synthetic.HELD_OUT, "Its validation and test rows.")
  _MODELS = flags.DEFINE_list("models", list(MODELS), "Which models.")
  _CORRELATIONS = flags.DEFINE_list("correlations", list(map(str, CORRELATIONS)), "Which p.")
  _EPOCHS = flags.DEFINE_integer("epochs", None, "Of each training; the config's where not given.")
  _OUT = flags.DEFINE_string("out", None, "Where populations, tables and plots go.", required=True)
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  commands.run(main, resumes=True)
