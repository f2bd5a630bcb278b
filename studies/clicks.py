"""Compares models on simulated clicks with each other and with the best possible AUC.

  python -m studies.clicks --out runs/clicks_study

Simulates a million impressions (data_prep/clicks.py) in --out, trains a population of seeds of each
model with the same settings, and writes `table.md` and `table.json`, and with --results the result
file clicks.json. The best possible AUC is that
of the true probabilities on the same test rows. Intervals are over seeds and test rows.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
from absl import flags

from benchmarks import records
from configs import tabular
from data_prep import clicks, preparation, splitting
from data_prep.spec import Column, read_spec
from mmoe_jax import cache, commands, data, parallel
from mmoe_jax.errors import require
from mmoe_jax.evaluation import statistics
from mmoe_jax.files import write_atomically
from mmoe_jax.prediction.predictor import Predictor
from studies import paired, resumable

MODELS = ("shared_bottom", "mmoe", "ple", "aitm", "esmm")
BASELINE = "mmoe"
TRUE = "true probabilities"
TRUTH = {"click": "p_click", "purchase": "p_purchase"}


def prepare(folder: str, users: int, items: int, rows: int = clicks.ROWS_PER_FILE) -> str:
  """Simulates and prepares impressions, unless they are there; returns the folder."""
  prepared = os.path.join(folder, "data")
  if not os.path.exists(os.path.join(prepared, data.SCHEMA_FILE)):
    log = os.path.join(folder, "log")
    paths = clicks.write_log(log, rows, 0, users, items)
    spec = read_spec(clicks.SPEC)
    # Users and items are few here, so that what they like can be learned: no hashing.
    known = Column(role="category", min_count=2)
    columns = spec.columns | {"user_id": known, "item_id": known}
    spec = msgspec.structs.replace(spec, columns=columns)
    preparation.prepare(spec, splitting.splitters_of(spec.split, {"input": paths}), prepared)
  return prepared


def config_of(model: str, prepared: str) -> Any:
  """Returns the settings of a model: the same for all, selected on validation rows with MMoE."""
  config = tabular.get_config(f"{model},data={prepared},tasks=click+purchase")
  config.train.epochs = 8
  config.model.embedding_dim = 8
  config.select.patience = 0
  config.select.tasks = ("purchase",)
  for group in ("dense", "embedding"):
    config.optimizer[group].learning_rate = 1e-2
  return config


def true_scores(folder: str, prepared: str) -> dict[str, np.ndarray]:
  """Returns task -> true probability of each test row."""
  log = pq.read_table(os.path.join(folder, "log"), columns=list(TRUTH.values()))
  schema = data.restore_schema(os.path.join(prepared, data.SCHEMA_FILE))
  folders = [os.path.join(prepared, name) for name in data.shard_names(schema, "test")]
  rows = np.concatenate([np.load(os.path.join(folder, "rows.npy")) for folder in folders])
  return {task: log[column].to_numpy()[rows] for task, column in TRUTH.items()}


def scores_of(workdir: str, members: int, features: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns the scores (M, N, T) of test rows by each member of a population."""
  found = []
  for member in range(members):
    scores = Predictor(workdir, member).score(features)
    found.append(np.stack([scores[task] for task in TRUTH], axis=1))
  return np.stack(found)


def summarise(
  scores: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], labels_NxT: np.ndarray
) -> list[dict[str, Any]]:
  """Computes AUC, distance to the best possible one and to BASELINE, of each model and task.

  Args:
    scores: model -> (M, N, T) scores of the same seeds and rows.
    truth: task -> (N,) true probabilities.
    labels_NxT: labels of the rows.
  """
  rows = []
  for t, task in enumerate(TRUTH):
    best = statistics.placements(truth[task], labels_NxT[:, t])
    rows.append({"task": task, "model": TRUE, "auc": best.auc})
    placed, aucs = {}, {}
    for model, scores_MxNxT in scores.items():
      placed[model] = statistics.mean_placements(scores_MxNxT[:, :, t], labels_NxT[:, t])
      aucs[model] = np.array(
        [statistics.placements(s[:, t], labels_NxT[:, t]).auc for s in scores_MxNxT]
      )
    for model in scores:
      own = statistics.over_seeds(aucs[model], statistics.auc_variances(placed[model]))
      short = statistics.over_seeds(
        best.auc - aucs[model], statistics.auc_variances(best, placed[model])
      )
      row = {"task": task, "model": model, "auc": own.value, "half": own.half}
      row |= {"short": short.value, "half_short": short.half}
      if model != BASELINE:
        pair = statistics.auc_variances(placed[model], placed[BASELINE])
        difference = statistics.over_seeds(aucs[model] - aucs[BASELINE], pair)
        row |= {"difference": difference.value, "half_difference": difference.half}
      rows.append(row)
  return rows


def result_of(
  scores: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], labels_NxT: np.ndarray
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Returns runs and rows of the result file: AUC of each model and seed, covariances of a task.

  The true probabilities are a model with a single AUC, which each seed has.
  """
  runs, rows = [], {}
  for t, task in enumerate(TRUTH):
    all_scores = {m: s_MxNxT[:, :, t] for m, s_MxNxT in scores.items()}
    members = max(map(len, all_scores.values()))
    best = statistics.placements(truth[task], labels_NxT[:, t])
    placed = {TRUE: best}
    runs += [{"task": task, "method": TRUE, "seed": s, "auc": best.auc} for s in range(members)]
    for method, scores_MxN in all_scores.items():
      placed[method] = statistics.mean_placements(scores_MxN, labels_NxT[:, t])
      for seed, scores_N in enumerate(scores_MxN):
        auc = statistics.placements(scores_N, labels_NxT[:, t]).auc
        runs.append({"task": task, "method": method, "seed": seed, "auc": auc})
    rows[task] = paired.covariances(placed)
  return runs, rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Formats the rows as Markdown."""
  lines = [
    f"| task | model | test AUC | below the best possible | minus {BASELINE} |",
    "|---|---|---|---|---|",
  ]
  for row in rows:
    cells = [f"{row['auc']:.4f}" + (f" ± {row['half']:.4f}" if row.get("half") else "")]
    for key in ("short", "difference"):
      value, half = row.get(key), row.get(f"half_{key}")
      cells.append("" if value is None else f"{value:.4f} ± {half:.4f}")
    lines.append(f"| {row['task']} | {row['model']} | {' | '.join(cells)} |")
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  """Trains the populations and writes the table."""
  del argv
  require(_SEEDS.value >= 2, f"--seeds={_SEEDS.value}: must be at least 2, for intervals")
  cache.keep_programs()
  parallel.warn_of_unused_accelerator()
  prepared = prepare(_OUT.value, _USERS.value, _ITEMS.value)
  members = [{"seed": seed} for seed in range(_SEEDS.value)]
  _, splits = data.load(prepared, tuple(TRUTH), "", "both")
  test, scores = splits["test"], {}
  for model in MODELS:
    workdir = os.path.join(_OUT.value, model)
    resumable.train(config_of(model, prepared), members, workdir)
    scores[model] = scores_of(workdir, len(members), test.features)
  truth = true_scores(_OUT.value, prepared)
  runs, covariances = result_of(scores, truth, test.labels)
  settings = {"seeds": _SEEDS.value, "users": _USERS.value, "items": _ITEMS.value}
  records.write(_RESULTS.value, "clicks", runs, settings=settings, rows=covariances)
  rows = summarise(scores, truth, test.labels)
  write_atomically(os.path.join(_OUT.value, "table.json"), json.dumps(rows))
  write_atomically(os.path.join(_OUT.value, "table.md"), table(rows) + "\n")
  print(table(rows))


if __name__ == "__main__":
  _OUT = flags.DEFINE_string("out", None, "Folder for the data, runs and tables.", required=True)
  _SEEDS = flags.DEFINE_integer("seeds", 5, "Seeds of each model.")
  _USERS = flags.DEFINE_integer("users", 2_000, "Users.")
  _ITEMS = flags.DEFINE_integer("items", 500, "Items.")
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  commands.run(main, resumes=True)
