"""Compares MMoE with LightGBM and CatBoost on Census: the same rows, features and trials.

  python -m pip install -r requirements.txt -r studies/requirements-trees.txt
  python -m studies.trees --data_dir data/census --out runs/trees
  python -m studies.trees --data_dir data/census --out runs/trees --time

Each library has one model per task, with settings from a search on validation rows, by the sampler
that searches ours. Test scores stay in --out/PROTOCOL/METHOD; --out/table.md compares the methods
that are finished, and --results also gets trees/PROTOCOL.json. Started again, the study resumes:
each trial and each seed is one result. With --time it trains and scores one model of each method
and writes the result file trees/time.json.
"""

import dataclasses
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks import records
from configs import census, census_best
from mmoe_jax import cache, commands, data, parallel
from mmoe_jax.config import override
from mmoe_jax.errors import require, require_known
from mmoe_jax.files import read_json_object, save_array, write_atomically, write_json
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.training import loop, search
from mmoe_jax.training.search_study import draw, finished_trials, open_study, tell
from mmoe_jax.workdir import preemption
from studies import resumable, tree_models, trees_tables
from studies.tree_models import LIBRARIES

TASKS = ("income_50k", "marital_stat")
PROTOCOLS = ("demo", "paper")
# Searched with the trees' number of trials.
SPACE = {
  "optimizer.dense.learning_rate+optimizer.embedding.learning_rate": ("log", 2e-3, 2e-2),
  "model.embedding_dropout": ("uniform", 0.0, 0.3),
  "model.expert_dropout": ("uniform", 0.0, 0.5),
  "model.tower_dropout": ("uniform", 0.0, 0.3),
}
OURS = ("census", "census_search", "census_best", "batch_ensemble")
METHODS = ("lightgbm", "census", "census_search", "catboost", "batch_ensemble", "census_best")


@dataclasses.dataclass(frozen=True)
class Budget:
  """Size of the study.

  Attributes:
    seeds: number of seeds of each method.
    trials: number of trials of each search.
    minutes: time after which a library's search starts no further trial; 0 for no limit.
    threads: threads of the libraries; 0 for one per core.
  """

  seeds: int
  trials: int
  minutes: float
  threads: int

  @property
  def thread_count(self) -> int:
    """Number of threads."""
    return self.threads or len(os.sched_getaffinity(0))


# ---- Trees -----------------------------------------------------------------------------------


def search_library(
  library: str, rows: Mapping[str, tree_models.Rows], budget: Budget, folder: str
) -> dict[str, Any]:
  """Searches a library's settings for a task; returns the best trial, with those before it.

  Args:
    library: a key of LIBRARIES.
    rows: split -> rows.
    budget: size of the study.
    folder: folder of the search.
  """
  os.makedirs(folder, exist_ok=True)
  dimensions = LIBRARIES[library].space
  with open_study(folder) as study:
    finished = finished_trials(study, dimensions)
    while len(finished) < budget.trials:
      elapsed_s = sum(t["seconds"] for t in finished)
      if finished and budget.minutes and elapsed_s > 60 * budget.minutes:
        break
      trial, settings = draw(study, dimensions, 1, 0)[0]
      with preemption.deferred():
        fitted = LIBRARIES[library].fit(
          rows["train"], rows["validation"], settings, 0, budget.thread_count
        )
        tell(study, trial, {"value": fitted.validation, "seconds": fitted.seconds})
      finished = finished_trials(study, dimensions)
      print(f"{folder}: trial {len(finished)}, best {finished[0]['value']:.5f}", flush=True)
      preemption.stop_if_requested()
  return finished[0] | {"trials": len(finished), "seconds": sum(t["seconds"] for t in finished)}


def run_library(
  library: str, task: str, splits: Mapping[str, data.Split], budget: Budget, folder: str
) -> None:
  """Searches and trains a library on a task; one JSON file and one score file per seed.

  Args:
    library: a key of LIBRARIES.
    task: one of TASKS.
    splits: the splits, with the labels of TASKS.
    budget: size of the study.
    folder: folder of the library and task.
  """
  t = TASKS.index(task)
  rows = {name: tree_models.rows_of(split, t) for name, split in splits.items()}
  chosen = search_library(library, rows, budget, os.path.join(folder, "search"))
  write_json(os.path.join(folder, "chosen.json"), chosen)
  settings = chosen["settings"]
  for seed in range(budget.seeds):
    path = os.path.join(folder, f"seed_{seed}.json")
    # More trials may choose other settings; then the seeds are trained again.
    if resumable.read_if_exists(path).get("settings") == settings:
      continue
    with preemption.deferred():
      fitted = LIBRARIES[library].fit(
        rows["train"], rows["validation"], settings, seed, budget.thread_count
      )
      start = time.perf_counter()
      scores_N = np.asarray(fitted.score(rows["test"]), np.float64)
      seconds = time.perf_counter() - start
      save_array(os.path.join(folder, f"scores_{seed}.npy"), scores_N)
      write_json(
        path,
        {"seed": seed, "settings": settings, "trees": fitted.trees, "validation": fitted.validation}
        | {"train_seconds": fitted.seconds, "score_seconds": seconds},
      )
      print(f"{path}: validation AUC {fitted.validation:.5f}, {fitted.trees} trees", flush=True)
    preemption.stop_if_requested()


def read_library(folder: str, seeds: int) -> np.ndarray | None:
  """Returns the test log odds (M, N, T) of the seeds that all tasks have; None without any."""
  folders = [os.path.join(folder, task) for task in TASKS]
  chosen = [
    resumable.read_if_exists(os.path.join(f, "chosen.json")).get("settings") for f in folders
  ]
  found = []
  for seed in range(seeds):
    done = [resumable.read_if_exists(os.path.join(f, f"seed_{seed}.json")) for f in folders]
    if all(d and d["settings"] == c for d, c in zip(done, chosen, strict=True)):
      each = [np.load(os.path.join(f, f"scores_{seed}.npy")) for f in folders]
      found.append(np.stack(each, axis=1))
  return np.stack(found) if found else None


# ---- Ours ------------------------------------------------------------------------------------


def create_config(method: str, protocol: str, data_dir: str) -> Any:
  """Returns the config of one of OURS."""
  module = census_best if method == "census_best" else census
  config = module.get_config(f"mmoe,tasks={'+'.join(TASKS)},protocol={protocol}")
  config.data_dir = data_dir
  if method == "batch_ensemble":  # The settings of studies/README.md.
    config.model.batch_ensemble = 8
    config.train.epochs = 24
    for group in ("dense", "embedding"):
      config.optimizer[group].learning_rate = 1e-2
  return config


def run_ours(method: str, protocol: str, data_dir: str, budget: Budget, folder: str) -> None:
  """Trains the seeds of one of OURS as a population, after a search if it has one."""
  config = create_config(method, protocol, data_dir)
  if method == "census_search":
    best = search.run_search(config, SPACE, budget.trials, os.path.join(folder, "search"))[0]
    write_json(os.path.join(folder, "chosen.json"), best)
    config = override(config, best["settings"])
  members = [{"seed": seed} for seed in range(budget.seeds)]
  resumable.train(
    config,
    members,
    os.path.join(folder, "seeds"),
    report_on=("validation", "test"),
    save_logits=("test",),
    verbose=False,
  )


def read_ours(folder: str) -> np.ndarray | None:
  """Returns the test logits (M, N, T) of the members that converged; None if not trained."""
  folder = os.path.join(folder, "seeds")
  if not resumable.is_done(folder):
    return None
  results = read_json_object(os.path.join(folder, resumable.DONE))["results"]
  kept = [m for m, result in enumerate(results) if "error" not in result]
  return np.load(os.path.join(folder, "logits_test.npy"), mmap_mode="r")[kept]


# ---- The study -------------------------------------------------------------------------------


def run_method(
  method: str,
  protocol: str,
  tasks: Sequence[str],
  splits: Mapping[str, data.Split],
  budget: Budget,
  where: tuple[str, str],
) -> None:
  """Trains what is missing of a method.

  Args:
    method: one of METHODS.
    protocol: one of PROTOCOLS.
    tasks: tasks of a library; ours train all tasks at once.
    splits: the rows.
    budget: size of the study.
    where: prepared data, and output folder.
  """
  data_dir, out = where
  folder = os.path.join(out, protocol, method)
  if method in OURS:
    run_ours(method, protocol, data_dir, budget, folder)
    return
  for task in tasks:
    run_library(method, task, splits, budget, os.path.join(folder, task))


def collect(
  protocol: str, out: str, seeds: int, test: data.Split
) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
  """Returns runs and covariances of the methods that have results; None without any.

  Args:
    protocol: one of PROTOCOLS.
    out: output folder.
    seeds: number of seeds.
    test: test rows.
  """
  scores = {}
  for method in METHODS:
    folder = os.path.join(out, protocol, method)
    found = read_ours(folder) if method in OURS else read_library(folder, seeds)
    if found is not None:
      scores[method] = found
  if not scores:
    return None
  return trees_tables.summarise(scores, np.asarray(test.labels, np.float64), test.slices, TASKS)


def describe(protocol: str, out: str) -> dict[str, Any]:
  """Returns the searches' results: method/task -> settings, validation AUC, trials and seconds."""
  found: dict[str, Any] = {}
  for name in METHODS:
    for task in ("", *TASKS):
      path = os.path.join(out, protocol, name, task, "chosen.json")
      if os.path.exists(path):
        chosen = read_json_object(path)
        keys = ("settings", "value", "trials", "seconds")
        found["/".join(filter(None, (name, task)))] = {k: chosen[k] for k in keys if k in chosen}
  return found


# ---- Time ------------------------------------------------------------------------------------


def measure_time(methods: Sequence[str], budget: Budget, where: tuple) -> list[dict[str, Any]]:
  """Trains one model of each method and scores the test rows; of trees one model per task."""
  data_dir, out = where
  _, splits = load(data_dir, "demo")
  runs = []
  for method in methods:
    if method in OURS:
      runs.append(_time_ours(method, data_dir, out, splits["test"]))
      continue
    for t, task in enumerate(TASKS):
      path = os.path.join(out, "demo", method, task, "chosen.json")
      if not os.path.exists(path):
        continue
      rows = {name: tree_models.rows_of(split, t) for name, split in splits.items()}
      settings = read_json_object(path)["settings"]
      cpu_start = time.process_time()
      fitted = LIBRARIES[method].fit(
        rows["train"], rows["validation"], settings, 0, budget.thread_count
      )
      run = {"method": method, "task": task, "train_seconds": fitted.seconds}
      run["cpu_seconds"] = time.process_time() - cpu_start
      runs.append(run | {"score_seconds": _least_time(lambda f=fitted, r=rows: f.score(r["test"]))})
  require(len(runs) > 0, f"{out}: no search has finished; run the study without --time first")
  return runs


def _time_ours(method: str, data_dir: str, out: str, test: data.Split) -> dict[str, Any]:
  config = create_config(method, "demo", data_dir)
  path = os.path.join(out, "demo", method, "chosen.json")
  if os.path.exists(path):
    config = override(config, read_json_object(path)["settings"])
  workdir = os.path.join(out, "time", method)
  shutil.rmtree(workdir, ignore_errors=True)
  start, cpu_start = time.perf_counter(), time.process_time()
  loop.train_and_evaluate(config, workdir)
  seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
  features, predictor = test.features, Predictor(workdir)
  return {
    "method": method,
    "task": "+".join(TASKS),
    "train_seconds": seconds,
    "cpu_seconds": cpu_seconds,
    "score_seconds": _least_time(lambda: predictor.score(features)),
  }


def _least_time(function: Any, repeats: int = 3) -> float:
  """Returns the least time of a call after a first one, which may compile."""
  function()
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    function()
    times.append(time.perf_counter() - start)
  return min(times)


def load(data_dir: str, protocol: str) -> tuple[data.Schema, dict[str, data.Split]]:
  """Loads the rows for trees: categories as ids, continuous columns as numbers."""
  return data.load(data_dir, TASKS, protocol, "standardize")


def main(argv: list[str]) -> None:
  """Runs the study, or measures times."""
  del argv
  for flag, known in ((_PROTOCOLS, PROTOCOLS), (_METHODS, METHODS), (_TASKS, TASKS)):
    require(len(flag.value) > 0, f"--{flag.name} is empty; known: {', '.join(known)}")
    for name in flag.value:
      require_known(name, known, f"a name in --{flag.name}")
  for flag, least in ((_SEEDS, 2), (_TRIALS, 1), (_MINUTES, 0), (_THREADS, 0)):
    require(flag.value >= least, f"--{flag.name}={flag.value}: must be at least {least}")
  parallel.use_all_cores()
  cache.keep_programs()
  budget = Budget(_SEEDS.value, _TRIALS.value, _MINUTES.value, _THREADS.value)
  where, packages = (_DATA_DIR.value, _OUT.value), tuple(LIBRARIES)
  if _TIME.value:
    runs = measure_time(_METHODS.value, budget, where)
    settings = {"threads": budget.thread_count}
    keep = {"settings": settings, "packages": packages, "note": _NOTE.value}
    records.write(_RESULTS.value, "trees/time", runs, **keep)
    name, text = "time.md", trees_tables.format_times(runs)
  else:
    parts = []
    for protocol in _PROTOCOLS.value:
      _, splits = load(_DATA_DIR.value, protocol)
      for method in () if _TABLES.value else _METHODS.value:
        run_method(method, protocol, _TASKS.value, splits, budget, where)
      found = collect(protocol, _OUT.value, _SEEDS.value, splits["test"])
      if found is None:
        continue
      settings = {"protocol": protocol, "trials": _TRIALS.value}
      settings |= {"chosen": describe(protocol, _OUT.value)}
      keep = {"settings": settings, "rows": found[1], "packages": packages, "note": _NOTE.value}
      records.write(_RESULTS.value, f"trees/{protocol}", found[0], **keep)
      parts.append(trees_tables.format_comparison(protocol, *found))
    name, text = "table.md", "\n\n".join(parts) or "no method is finished"
  write_atomically(os.path.join(_OUT.value, name), text + "\n")
  print(text)


if __name__ == "__main__":
  _OUT = flags.DEFINE_string("out", None, "Folder of runs and tables.", required=True)
  _DATA_DIR = flags.DEFINE_string("data_dir", "data/census", "Prepared Census.")
  _PROTOCOLS = flags.DEFINE_list("protocols", list(PROTOCOLS), "Protocols.")
  _METHODS = flags.DEFINE_list("methods", list(METHODS), "Methods to train; tables have all.")
  _TASKS = flags.DEFINE_list("tasks", list(TASKS), "Tasks of libraries to train; tables have all.")
  _SEEDS = flags.DEFINE_integer("seeds", 20, "Seeds of each method.")
  _TRIALS = flags.DEFINE_integer("trials", 16, "Trials of each search.")
  _MINUTES = flags.DEFINE_float("minutes", 0.0, "Time limit of a library's search; 0: no limit.")
  _THREADS = flags.DEFINE_integer("threads", 0, "Threads of the libraries; 0: one per core.")
  _TABLES = flags.DEFINE_bool("tables", False, "Train nothing; compare what is finished.")
  _TIME = flags.DEFINE_bool("time", False, "Measure training and scoring times instead.")
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  _NOTE = flags.DEFINE_string("note", "", "Sentence for the result files, such as on the machine.")
  commands.run(main, resumes=True)
