"""Times what users wait for besides training: start, compilation, preparation, evaluation, scoring.

  python -m benchmarks.waiting --out runs/waiting/table.json

Times whole processes where a user would start one, otherwise calls in this process; medians of
--rounds. Writes --out, and the same as Markdown, and with --results the result file waiting.json.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from benchmarks import records
from benchmarks.machine import describe_machine
from data_prep import census_income, raw_files
from mmoe_jax import cache, commands, data
from mmoe_jax.data.tables import read_table
from mmoe_jax.errors import require
from mmoe_jax.evaluation import evaluate, tables
from mmoe_jax.files import write_atomically, write_json
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.prediction.scoring import score_files
from mmoe_jax.training.run import Run, compile_run
from mmoe_jax.workdir import checkpoint, contract


def clock(call: Callable[[], Any]) -> float:
  """Returns the seconds of a call, until its results are ready."""
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def run(*command: str, **environment: str) -> float:
  """Returns the seconds of a Python process, which must succeed."""
  full = [sys.executable, *command]
  env = {**os.environ, **environment}
  start = time.perf_counter()
  process = subprocess.run(full, stdout=subprocess.DEVNULL, env=env, check=False)
  require(process.returncode == 0, f"{' '.join(full)} failed")
  return time.perf_counter() - start


def start_up(config_file: str, data_dir: str, folder: str, programs: str) -> dict[str, float]:
  """Returns seconds of a run of one epoch, and until the epoch is logged without its training.

  The second is the time until the first step plus that of evaluating the validation rows.
  """
  shutil.rmtree(folder, ignore_errors=True)
  start = time.time()
  arguments = ("--config", config_file, "--workdir", folder, "--config.train.epochs=1")
  whole = run(
    *("-m", "mmoe_jax.main", *arguments, f"--config.data_dir={data_dir}"),
    XDG_CACHE_HOME=programs,
  )
  logged = os.stat(os.path.join(folder, "metrics.jsonl")).st_mtime
  results = contract.read_results(folder)
  epoch = results["train_rows"] / results["rows_per_second"]
  return {"whole run": whole, "until the first epoch is logged, less it": logged - start - epoch}


def preparing(paths: list[str], folder: str) -> dict[str, float]:
  """Returns seconds from raw files to arrays, and of reading the files' bytes."""

  def read() -> None:
    for path in paths:
      with open(path, "rb") as file:
        while file.read(1 << 20):
          pass

  out = os.path.join(folder, "prepared")
  return {
    "bytes": clock(read),
    "arrays": clock(lambda: census_income.prepare(*paths, out) and None),
  }


def evaluating(run: Run, splits: Mapping[str, data.Split]) -> dict[str, float]:
  """Returns seconds of evaluation after an epoch, of that epoch, and of all views of all splits."""
  place = lambda split, views: evaluate.place(evaluate.make_eval_batch(split, views), run.devices)
  validation = place(splits["validation"], False)
  state = jax.tree.map(jnp.copy, run.state)
  calls = {"validation, after an epoch": lambda: run.assess(state, validation, np.int32(1))}
  for name, split in splits.items():
    batch = place(split, True)
    calls[f"{name}, all views"] = lambda batch=batch: run.evaluate(state.best.variables, batch)
  held = [jax.tree.map(jnp.copy, state)]

  def train() -> Any:
    held.append(run.train_epoch(held.pop(), 1)[0])
    return held

  calls["an epoch of training"] = train
  for call in calls.values():
    clock(call)
  return {name: float(np.median([clock(call) for _ in range(5)])) for name, call in calls.items()}


def saving(run: Run, folder: str) -> dict[str, float]:
  """Returns seconds that a save delays training, and until it is on disk."""
  state = run.state
  shutil.rmtree(folder, ignore_errors=True)
  start = time.perf_counter()
  with checkpoint.Checkpoints(folder) as checkpoints:
    checkpoints.save(1, state, state.best.variables)  # Starts its threads.
    first = time.perf_counter() - start
    checkpoints.wait()
    start = time.perf_counter()
    checkpoints.save(2, state, state.best.variables)
    delay = time.perf_counter() - start
    checkpoints.wait()
    done = time.perf_counter() - start
  return {"first": first, "delay": delay, "done": done}


def scoring(
  predictor: Predictor, splits: Mapping[str, data.Split], path: str, folder: str
) -> dict[str, float]:
  """Returns seconds of scoring one row, and rows/s from arrays in memory and from a raw file."""
  features = splits["train"].features
  rows = len(splits["train"])
  table = read_table(path, predictor.schema.columns)
  first = table.take(np.array([0]))
  one = {name: first.factor(name).texts()[0] for name in first.columns}
  many = lambda: predictor.score(features)
  single = lambda: predictor.scores(one)
  for call in (many, single):
    clock(call)
  output = os.path.join(folder, "scores.csv")

  def whole() -> None:
    score_files(predictor, [path], output)

  clock(whole)
  median = lambda call: float(np.median([clock(call) for _ in range(7)]))
  return {
    "one_row_seconds": median(single),
    "arrays_rows_per_second": rows / median(many),
    "file_rows_per_second": len(table) / median(whole),
  }


def main(argv: list[str]) -> None:
  """Measures everything in rounds."""
  del argv
  require(_ROUNDS.value >= 1, f"--rounds={_ROUNDS.value}: must be at least 1")
  paths = raw_files.obtain(None, cache.folder())
  rounds: dict[str, list[float]] = {}

  def add(prefix: str, seconds: Mapping[str, float]) -> None:
    for name, value in seconds.items():
      rounds.setdefault(f"{prefix}: {name}", []).append(value)

  with tempfile.TemporaryDirectory() as folder:
    place = lambda *names: os.path.join(folder, *names)
    for _ in range(_ROUNDS.value):
      add("python", {"import jax": run("-c", "import jax"), "import main": run("-c", _IMPORT)})
      shutil.rmtree(place("programs"), ignore_errors=True)
      for name in ("first start", "second start"):
        add(name, start_up(_CONFIG.value, _DATA_DIR.value, place("run"), place("programs")))
      add("preparing", preparing(paths, folder))
      predictor = Predictor(place("run"))
      config = ConfigDict(contract.read_config(place("run")))
      schema, splits = data.load(_DATA_DIR.value, **config.data)
      compiled = compile_run(config, schema, splits["train"])
      add("evaluating", evaluating(compiled, splits))
      add("saving", saving(compiled, place("saved")))
      add("scoring", scoring(predictor, splits, paths[1], folder))
  found = {name: float(np.median(values)) for name, values in rounds.items()}
  machine = describe_machine()
  write_json(_OUT.value, {"machine": machine, "medians": found, "rounds": rounds})
  runs = [{"step": name, "values": values} for name, values in rounds.items()]
  settings = {"config": _CONFIG.value, "rounds": _ROUNDS.value}
  records.write(_RESULTS.value, "waiting", runs, settings=settings)
  lines = [
    [name, f"{value:,.0f}" if name.endswith("rows_per_second") else f"{value:.3f} s"]
    for name, value in found.items()
  ]
  text = tables.markdown(("step", "median"), lines)
  text += (
    f"\n\nMedians of {_ROUNDS.value} rounds. {machine['cores']} cores of {machine['processor']}, "
    f"jax {machine['jax']}.\n"
  )
  write_atomically(os.path.splitext(_OUT.value)[0] + ".md", text)
  print(text)


_IMPORT = "import mmoe_jax.main"

if __name__ == "__main__":
  _CONFIG = flags.DEFINE_string("config", "configs/census.py", "FILE.py or FILE.py:ARG.")
  _DATA_DIR = flags.DEFINE_string("data_dir", "data/census", "Prepared data.")
  _ROUNDS = flags.DEFINE_integer("rounds", 3, "Number of rounds.")
  _OUT = flags.DEFINE_string("out", None, "JSON file to write.", required=True)
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  commands.run(main)
