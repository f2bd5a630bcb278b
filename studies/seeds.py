"""Trains a config with several seeds and reports means and intervals.

  python -m studies.seeds --config configs/census.py --seeds 5 --out runs/seeds

Each seed has a separate work directory in --out, so that an interrupted study resumes. Writes
`table.md` and `table.json`, and with --results the result file seeds/NAME.json, see
benchmarks/records.py; NAME is the config's, such as `census` or `census-mmoe,protocol=paper`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import config_flags
from scipy import stats

from benchmarks import records
from mmoe_jax import commands, errors
from mmoe_jax.data import SPLITS
from mmoe_jax.files import write_atomically
from mmoe_jax.training import loop

_METRICS = ("auc", "auc_16_and_over", "auc_weighted", "log_loss", "pcoc", "accuracy", "mse", "r2")
_FIGURES = ("parameters", "best_epoch", "epochs", "train_rows", "rows_per_second", "wall_seconds")


def summarise(runs: list[dict], level: float = 0.95) -> list[dict]:
  """Computes mean, standard deviation, interval of the mean, minimum and maximum of each metric.

  Args:
    runs: content of results.json of each seed.
    level: confidence level of the interval, by Student's t over seeds.

  Returns:
    One row per split and metric.
  """
  rows = []
  for split in SPLITS:
    for name in runs[0][split]:
      if name.split("/")[1] not in _METRICS:
        continue
      values = np.array([run[split][name] for run in runs], float)
      half = None
      if len(values) > 1:
        half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values))
      rows.append(
        {"split": split, "metric": name, "mean": float(values.mean()), "half_interval": half}
        | {"std": float(values.std(ddof=min(1, len(values) - 1)))}
        | {"min": float(values.min()), "max": float(values.max())}
      )
  return rows


def table(rows: list[dict], runs: list[dict]) -> str:
  """Formats the rows and the speed as Markdown."""
  lines = [
    "| split | metric | mean | 95 % interval | std | min | max |",
    "|---|---|---|---|---|---|---|",
  ]
  for r in rows:
    half = "one seed" if r["half_interval"] is None else f"± {r['half_interval']:.4f}"
    lines.append(
      f"| {r['split']} | {r['metric']} | {r['mean']:.4f} | {half} "
      f"| {r['std']:.4f} | {r['min']:.4f} | {r['max']:.4f} |"
    )
  rate = np.median([run["rows_per_second"] for run in runs])
  wall = np.median([run["wall_seconds"] for run in runs])
  epochs = ", ".join(f"{run['best_epoch']}/{run['epochs']}" for run in runs)
  lines.append("")
  lines.append(
    f"{len(runs)} seeds, medians: {rate:,.0f} rows/s, {wall:.1f} s per run; "
    f"{runs[0]['parameters']:,} parameters; best epoch / epochs: {epochs}."
  )
  return "\n".join(lines)


def name_of(config_file: str) -> str:
  """Returns the name of a config's result file: FILE.py:ARG -> FILE-ARG."""
  file, _, argument = config_file.partition(":")
  base = os.path.splitext(os.path.basename(file))[0]
  return f"{base}-{argument.replace('/', '_')}" if argument else base


def runs_of(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns the runs of a result file: of each seed its figures, `test/TASK/auc` and the like."""
  runs = []
  for seed, result in enumerate(results):
    run = {"seed": seed} | {key: result[key] for key in _FIGURES}
    for split in SPLITS:
      run |= {f"{split}/{k}": v for k, v in result[split].items() if k.split("/")[1] in _METRICS}
    runs.append(run)
  return runs


def main(argv: list[str]) -> None:
  """Trains the seeds and writes the tables."""
  del argv
  errors.require(_SEEDS.value >= 1, f"--seeds={_SEEDS.value}: must be at least 1")
  runs = []
  for seed in range(_SEEDS.value):
    config = _CONFIG.value.copy_and_resolve_references()
    config.seed = seed
    runs.append(loop.train_and_evaluate(config, os.path.join(_OUT.value, f"seed_{seed}")))
    first, value = next(iter(runs[-1]["test"].items()))
    print(f"seed {seed}: test {first} {value:.4f}", flush=True)
  rows = summarise(runs)
  write_atomically(os.path.join(_OUT.value, "table.json"), json.dumps({"rows": rows, "runs": runs}))
  config_file = flags.FLAGS["config"].config_filename
  settings = {"config": config_file, "seeds": _SEEDS.value}
  records.write(_RESULTS.value, f"seeds/{name_of(config_file)}", runs_of(runs), settings=settings)
  text = table(rows, runs)
  write_atomically(os.path.join(_OUT.value, "table.md"), text + "\n")
  print(text)


if __name__ == "__main__":
  _CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py or FILE.py:ARG.")
  _SEEDS = flags.DEFINE_integer("seeds", 5, "How many seeds, from 0 up.")
  _OUT = flags.DEFINE_string("out", None, "Where the runs and tables go.", required=True)
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  flags.mark_flag_as_required("config")
  commands.run(main, resumes=True)
