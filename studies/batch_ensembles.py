"""Compares batch ensembles with the mean score of separate seeds on Census.

  python -m studies.batch_ensembles --out runs/batch_ensembles --results results

Trains `configs/census.py`, the same with the batch ensemble's learning rate and epochs, and batch
ensembles (TabM-mini), each as a population of seeds; a study that was interrupted resumes. Mean
scores are over groups of seeds. Prints AUCs with intervals over seeds and test rows, and writes
--results/batch_ensembles.json.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks import records
from configs import census
from mmoe_jax import cache, commands, data, parallel
from mmoe_jax.errors import require
from mmoe_jax.evaluation import statistics
from studies import paired, resumable

SPLITS = ("validation", "test")
TASKS = ("income_50k", "marital_stat")
MEMBERS = 8  # Of a batch ensemble, and seeds of a mean score.
# The best of nine settings of a batch ensemble on validation rows.
RATE, EPOCHS = 1e-2, 24
ONE, MEAN, ENSEMBLE = "one seed", f"mean score of {MEMBERS} seeds", f"batch ensemble of {MEMBERS}"
ONE_LONG = "one seed, its rate and epochs"
MEAN_LONG = "mean score of seeds, its rate and epochs"


def create_config(data_dir: str, is_long: bool, members: int, epochs: int | None) -> Any:
  """Returns configs/census.py, with a batch ensemble's rate and epochs where `is_long`."""
  config = census.get_config()
  config.data_dir = data_dir
  config.model.batch_ensemble = members
  if is_long:
    config.train.epochs = EPOCHS
    for group in ("dense", "embedding"):
      config.optimizer[group].learning_rate = RATE
  if epochs is not None:
    config.train.epochs = epochs
  return config


def group_means(logits_MxNxT: np.ndarray, size: int) -> np.ndarray:
  """Returns mean probabilities of groups of `size` members, (G, N, T); an incomplete one is cut."""
  groups = len(logits_MxNxT) // size
  scores_MxNxT = 1 / (1 + np.exp(-np.asarray(logits_MxNxT[: groups * size], np.float64)))
  return scores_MxNxT.reshape(groups, size, *scores_MxNxT.shape[1:]).mean(1)


def result_of(
  scores: Mapping[str, Mapping[str, np.ndarray]],
  labels: Mapping[str, np.ndarray],
  parameters: Mapping[str, int],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Returns the runs of the result file and covariances over test rows by task.

  Args:
    scores: method -> split -> (M, N, T).
    labels: split -> (N, T).
    parameters: method -> number of parameters.
  """
  runs = []
  placed: dict[str, dict[str, statistics.Placements]] = {task: {} for task in TASKS}
  for method, of_splits in scores.items():
    for seed in range(len(of_splits["test"])):
      run = {"method": method, "seed": seed, "parameters": parameters[method]}
      for split, scores_MxNxT in of_splits.items():
        for t, task in enumerate(TASKS):
          found = statistics.placements(scores_MxNxT[seed, :, t], labels[split][:, t])
          run[f"{split}/{task}/auc"] = found.auc
      runs.append(run)
    for t, task in enumerate(TASKS):
      placed[task][method] = statistics.mean_placements(
        of_splits["test"][:, :, t], labels["test"][:, t]
      )
  return runs, {task: paired.covariances(placed[task]) for task in TASKS}


def run_study(
  seeds: int, long_seeds: int, out: str, data_dir: str, epochs: int | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Trains the missing populations; returns what `result_of` does."""
  populations = {
    ONE: (create_config(data_dir, False, 1, epochs), seeds),
    ONE_LONG: (create_config(data_dir, True, 1, epochs), long_seeds),
    ENSEMBLE: (create_config(data_dir, True, MEMBERS, epochs), long_seeds),
  }
  logits: dict[str, dict[str, np.ndarray]] = {}
  parameters: dict[str, int] = {}
  for method, (config, count) in populations.items():
    folder = os.path.join(out, method.replace(", ", "_").replace(" ", "_"))
    members = [{"seed": seed} for seed in range(count)]
    done = resumable.train(config, members, folder, save_logits=SPLITS, report_on=SPLITS)
    failed = sum("error" in result for result in done["results"])
    require(not failed, f"{folder}: {failed} of {count} seeds diverged")
    parameters[method] = done["results"][0]["parameters"]
    logits[method] = {s: np.load(os.path.join(folder, f"logits_{s}.npy")) for s in SPLITS}
    print(f"{method}: {count} seeds", flush=True)
  scores = dict(logits)
  for name, of, size in ((MEAN, ONE, MEMBERS), (MEAN_LONG, ONE_LONG, long_seeds)):
    scores[name] = {split: group_means(l_MxNxT, size) for split, l_MxNxT in logits[of].items()}
    parameters[name] = size * parameters[of]
  _, splits = data.load(data_dir, TASKS, "", "both")
  labels = {name: np.asarray(splits[name].labels, np.float64) for name in SPLITS}
  return result_of(scores, labels, parameters)


def format_estimates(runs: Sequence[Mapping[str, Any]], rows: Mapping[str, Any]) -> str:
  """Returns a line per method and task: test AUC, and its difference to the mean of seeds."""
  lines = []
  for method in dict.fromkeys(run["method"] for run in runs):
    for task in TASKS:
      key = f"test/{task}/auc"
      mean = np.mean([run[key] for run in runs if run["method"] == method])
      line = f"{method}, {task}: {mean:.5f}"
      if method != MEAN:
        gap = paired.estimate_difference(runs, key, rows[task], method, MEAN)
        line += f", minus {MEAN} {gap.value:+.5f} ± {gap.half or gap.half_rows:.5f}"
      lines.append(line)
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  """Trains the populations, prints and writes the results."""
  del argv
  require(_SEEDS.value >= MEMBERS, f"--seeds={_SEEDS.value}: must be at least {MEMBERS}")
  require(_LONG.value >= 2, f"--ensembles={_LONG.value}: must be at least 2")
  parallel.use_all_cores()
  cache.keep_programs()
  counts = (_SEEDS.value, _LONG.value)
  runs, rows = run_study(*counts, _OUT.value, _DATA_DIR.value, _EPOCHS.value)
  settings = {"seeds": counts[0], "ensembles": counts[1], "members": MEMBERS}
  settings |= {"learning_rate": RATE, "epochs": EPOCHS}
  records.write(_RESULTS.value, "batch_ensembles", runs, settings=settings, rows=rows)
  print(format_estimates(runs, rows))


if __name__ == "__main__":
  _SEEDS = flags.DEFINE_integer("seeds", 24, "Seeds of configs/census.py.")
  _LONG = flags.DEFINE_integer("ensembles", 3, "Batch ensembles, and seeds with their settings.")
  _EPOCHS = flags.DEFINE_integer("epochs", None, "Of each training; the settings' where not given.")
  _DATA_DIR = flags.DEFINE_string("data_dir", "data/census", "Prepared data.")
  _OUT = flags.DEFINE_string("out", None, "Where the populations go.", required=True)
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  commands.run(main, resumes=True)
