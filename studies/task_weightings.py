"""Compares task weightings at equal search budgets: Census groups 1 and 2, and simulated clicks.

  python -m studies.task_weightings --data_dir data/census --out runs/task_weightings
  python -m studies.task_weightings --data_dir data/census --out runs/task_weightings --time

Each weighting gets the same number of trials on validation rows, in one round without a sampler:
learning rates at equal steps of their logarithm, and levels of the weighting's own setting in an
order that spreads the pairs. The best trial is trained with each seed. Writes `table.md`, and with
--results the files task_weightings/GROUP.json. Started again, it resumes. With --time it measures
the time per epoch of each weighting, interleaved, and the file task_weightings/time.json.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import records
from configs import census
from mmoe_jax import cache, commands, data, parallel
from mmoe_jax.config import override
from mmoe_jax.errors import require, require_known
from mmoe_jax.evaluation import statistics
from mmoe_jax.files import write_atomically, write_json
from mmoe_jax.training import run as training_run
from studies import clicks, paired, paper_census, resumable, task_weightings_tables
from studies.progress import Progress
from studies.task_weightings_tables import BASELINE

RATE = ("optimizer.dense.learning_rate", "optimizer.embedding.learning_rate")
RATES = (2e-3, 2e-2)  # Least and greatest learning rate of the search.
SEARCH_SEED = 1000  # None of the seeds of the study.
EPOCHS = paper_census.EPOCHS
GROUPS = {**paper_census.GROUPS, "clicks": tuple(clicks.TRUTH)}


@dataclasses.dataclass(frozen=True)
class Method:
  """A weighting and the setting of it that is searched.

  Attributes:
    weighting: key of census.WEIGHTINGS.
    key: setting, of the config; `ratio` of the first task's static weight to the second's; empty
      for none.
    low: least value.
    high: greatest value; levels have equal steps of their logarithm.
  """

  weighting: str
  key: str = ""
  low: float = 1.0
  high: float = 1.0


METHODS = {
  "static_equal": Method("static"),
  "static_searched": Method("static", "ratio", 0.2, 5.0),
  "uncertainty": Method("uncertainty", "loss.weighting.learning_rate", 1e-3, 1e-1),
  "dwa": Method("dwa", "loss.weighting.temperature", 0.5, 8.0),
  "gradnorm": Method("gradnorm", "loss.weighting.alpha", 0.1, 2.0),
  "pcgrad": Method("pcgrad"),
}


def create_config(group: str, method: str, data_dir: str) -> Any:
  """Returns the config of a weighting on a group of tasks, without the searched settings.

  Args:
    group: a key of GROUPS.
    method: a key of METHODS.
    data_dir: prepared data of the group.
  """
  weighting = METHODS[method].weighting
  if group == "clicks":
    config = clicks.config_of("mmoe", data_dir)
    chosen = census.get_config(f"mmoe,weighting={weighting}").loss.weighting
    config.loss.weighting = chosen
    config.select.tasks = ()
  else:
    tasks = "+".join(GROUPS[group])
    config = census.get_config(f"mmoe,tasks={tasks},protocol=paper,weighting={weighting}")
    config.data_dir = data_dir
  config.train.epochs = EPOCHS
  config.loss.task_weights = (1.0, 1.0)
  return config


def trials_of(method: str, trials: int) -> list[dict[str, Any]]:
  """Returns the settings that the search compares.

  The i-th trial has the i-th learning rate and, by van der Corput's sequence, a level of the
  weighting's own setting: neighbouring rates get distant levels.

  Args:
    method: a key of METHODS.
    trials: number of settings.
  """
  spec = METHODS[method]
  rates = np.geomspace(*RATES, trials)
  levels = np.geomspace(spec.low, spec.high, trials)
  order = np.argsort(np.argsort([_van_der_corput(i) for i in range(trials)]))
  found = []
  for rate, level in zip(rates, levels[order], strict=True):
    settings: dict[str, Any] = dict.fromkeys(RATE, float(rate))
    if spec.key == "ratio":
      settings["loss.task_weights"] = weights_of(float(level))
    elif spec.key:
      settings[spec.key] = float(level)
    found.append(settings)
  return found


def weights_of(ratio: float) -> tuple[float, float]:
  """Returns two weights with the sum 2 and that ratio."""
  return 2 * ratio / (1 + ratio), 2 / (1 + ratio)


def _van_der_corput(i: int) -> float:
  """Returns the binary digits of i, mirrored at the point."""
  value, unit = 0.0, 0.5
  while i:
    value += unit * (i & 1)
    i, unit = i >> 1, unit / 2
  return value


def search(config: Any, method: str, trials: int, folder: str) -> dict[str, Any]:
  """Trains the trials as one population and returns the best one on validation rows.

  Returns:
    `settings`, `value` (the mean validation AUC of the tasks), and `values` of all trials.
  """
  settings = trials_of(method, trials)
  members = [{"seed": SEARCH_SEED, **each} for each in settings]
  done = resumable.train(config, members, folder, report_on=("validation",), verbose=False)
  values = [
    None if "error" in r else paper_census.selection_value(r, config) for r in done["results"]
  ]
  best = max(
    (i for i, value in enumerate(values) if value is not None), key=lambda i: values[i] or 0.0
  )
  return {"settings": settings[best], "value": values[best], "values": values}


def run_method(
  group: str, method: str, seeds: int, trials: int, out: str, data_dir: str
) -> tuple[list[dict[str, Any]], np.ndarray]:
  """Searches and trains a weighting on a group; returns a run per seed, and test logits (M, N, T).

  Args:
    group: a key of GROUPS.
    method: a key of METHODS.
    seeds: number of seeds.
    trials: number of settings of the search.
    out: output folder.
    data_dir: prepared data of the group.
  """
  config, folder = create_config(group, method, data_dir), os.path.join(out, group, method)
  chosen = search(config, method, trials, os.path.join(folder, "search"))
  write_json(os.path.join(folder, "chosen.json"), chosen)
  config = override(config, chosen["settings"])
  members = [{"seed": seed} for seed in range(seeds)]
  done = resumable.train(
    config,
    members,
    os.path.join(folder, "seeds"),
    report_on=("validation", "test"),
    save_logits=("test",),
    verbose=False,
  )
  own = METHODS[method].key
  runs = []
  for seed, result in enumerate(done["results"]):
    run = {"method": method, "seed": seed, "learning_rate": chosen["settings"][RATE[0]]}
    weights = config.loss.task_weights
    run["setting"] = weights[0] / weights[1] if own == "ratio" else chosen["settings"].get(own)
    for split in ("validation", "test"):
      for task in GROUPS[group]:
        for name in ("auc", "log_loss"):
          metric = result.get(split, {}).get(f"{task}/{name}")
          run[f"{split}/{task}/{name}"] = metric
    runs.append(run)
  logits = np.load(os.path.join(folder, "seeds", "logits_test.npy"), mmap_mode="r")
  return runs, logits


def run_group(
  group: str, methods: Sequence[str], seeds: int, trials: int, out: str, data_dir: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Runs all weightings of a group; returns the runs, and covariances of each test AUC."""
  runs, placed = [], {task: {} for task in GROUPS[group]}
  config = create_config(group, BASELINE, data_dir)
  labels_NxT = np.asarray(data.load(data_dir, **config.data)[1]["test"].labels, np.float64)
  progress = Progress(len(methods))
  for method in methods:
    is_new = not resumable.is_done(os.path.join(out, group, method, "seeds"))
    found, logits = run_method(group, method, seeds, trials, out, data_dir)
    runs += found
    names = [f"test/{task}/auc" for task in GROUPS[group]]
    # A seed that diverged has no metrics.
    kept = [r["seed"] for r in found if r[names[0]] is not None]
    for t, task in enumerate(GROUPS[group]):
      placed[task][method] = statistics.mean_placements(logits[kept, :, t], labels_NxT[:, t])
    means = [f"{np.mean([r[name] for r in found if r['seed'] in kept]):.4f}" for name in names]
    progress.finish(f"{group} {method}: test AUC {', '.join(means)}", is_new)
  rows = {f"test/{task}/auc": paired.covariances(each) for task, each in placed.items()}
  return runs, rows


def measure_time(
  group: str, methods: Sequence[str], rounds: int, data_dir: str
) -> list[dict[str, Any]]:
  """Measures the seconds per epoch of a single run of each weighting, interleaved.

  Seconds of processors (`cpu_seconds`) depend less on other work on the machine.

  Args:
    group: a key of GROUPS.
    methods: keys of METHODS.
    rounds: number of epochs per weighting, after one that is not counted.
    data_dir: prepared data of the group.
  """
  compiled, states = {}, {}
  schema, splits = data.load(data_dir, **create_config(group, BASELINE, data_dir).data)
  for method in methods:
    config = create_config(group, method, data_dir)
    config.train.epochs = rounds + 1
    compiled[method] = training_run.compile_run(config, schema, splits["train"])
    states[method] = compiled[method].state
  found = []
  for round_number in range(rounds + 1):
    for method in methods:
      start, cpu_start = time.perf_counter(), time.process_time()
      states[method], losses = compiled[method].train_epoch(states[method], round_number + 1)
      jax.block_until_ready((states[method], losses))
      run = {"group": group, "method": method, "round": round_number}
      run |= {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
      }
      found += [run] if round_number else []
  return found


def main(argv: list[str]) -> None:
  """Runs the study, or measures times."""
  del argv
  for flag, known in ((_GROUPS, GROUPS), (_METHODS, METHODS)):
    require(len(flag.value) > 0, f"--{flag.name} is empty; known: {', '.join(known)}")
    for name in flag.value:
      require_known(name, known, f"a name in --{flag.name}")
  require(BASELINE in _METHODS.value, f"--methods must include {BASELINE}, the reference")
  require(_SEEDS.value >= 2, f"--seeds={_SEEDS.value}: must be at least 2, for intervals")
  require(_TRIALS.value >= 1, f"--trials={_TRIALS.value}: must be at least 1")
  require(_ROUNDS.value >= 1, f"--rounds={_ROUNDS.value}: must be at least 1")
  parallel.use_all_cores()
  cache.keep_programs()
  settings = {"epochs": EPOCHS, "seeds": _SEEDS.value, "trials": _TRIALS.value}
  times, measured = [], {}
  for group in _GROUPS.value:
    data_dir = _DATA_DIR.value
    if group == "clicks":
      folder = os.path.join(_OUT.value, "clicks_data")
      data_dir = clicks.prepare(folder, 2_000, 500, _CLICKS_ROWS.value)
      settings = settings | {"rows": _CLICKS_ROWS.value, "users": 2_000, "items": 500}
    if _TIME.value:
      times += measure_time(group, _METHODS.value, _ROUNDS.value, data_dir)
      continue
    runs, rows = run_group(group, _METHODS.value, _SEEDS.value, _TRIALS.value, _OUT.value, data_dir)
    measured[group] = (runs, rows)
    name, own = f"task_weightings/{group}", settings | {"group": group}
    records.write(_RESULTS.value, name, runs, settings=own, rows=rows, note=_NOTE.value)
  if _TIME.value:
    rounds = {"rounds": _ROUNDS.value}
    records.write(_RESULTS.value, "task_weightings/time", times, settings=rounds, note=_NOTE.value)
    text = task_weightings_tables.format_times(times)
  else:
    text = task_weightings_tables.format_comparison(measured)
  name = "time.md" if _TIME.value else "table.md"
  write_atomically(os.path.join(_OUT.value, name), text + "\n")
  print(text)


if __name__ == "__main__":
  _OUT = flags.DEFINE_string("out", None, "Folder of runs and tables.", required=True)
  _DATA_DIR = flags.DEFINE_string("data_dir", "data/census", "Prepared Census.")
  _GROUPS = flags.DEFINE_list("groups", list(GROUPS), "Groups of tasks.")
  _METHODS = flags.DEFINE_list("methods", list(METHODS), "Weightings.")
  _SEEDS = flags.DEFINE_integer("seeds", 20, "Seeds of each weighting.")
  _TRIALS = flags.DEFINE_integer("trials", 8, "Settings that the search compares, per weighting.")
  _CLICKS_ROWS = flags.DEFINE_integer("clicks_rows", 250_000, "Impressions to simulate.")
  _TIME = flags.DEFINE_bool("time", False, "Measure times per epoch instead.")
  _ROUNDS = flags.DEFINE_integer("rounds", 5, "Measured epochs per weighting, with --time.")
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  _NOTE = flags.DEFINE_string("note", "", "Sentence for the result files, such as on the machine.")
  commands.run(main, resumes=True)
