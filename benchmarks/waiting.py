"""All that a user waits for besides training: start, compiling, preparation, evaluation, scoring.

  python -m benchmarks.waiting --out runs/waiting/table.json

Whole processes where a user would start one, else calls in this one; medians of --rounds. Leaves
--out and, beside it, the same as Markdown.
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

from benchmarks import studies, tables
from data_prep import census_income, raw_files
from mmoe_jax import cache, checkpoint, data, engine, errors, evaluate, parallel, workdirs
from mmoe_jax.errors import require
from mmoe_jax.predict import Predictor
from mmoe_jax.table import read_table, write_atomically


def clock(call: Callable[[], Any]) -> float:
  """Seconds of a call, until what it returns is ready."""
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def run(*command: str, **environment: str) -> float:
  """Seconds of a Python process, which must succeed."""
  full = [sys.executable, *command]
  env = {**os.environ, **environment}
  start = time.perf_counter()
  process = subprocess.run(full, stdout=subprocess.DEVNULL, env=env, check=False)
  require(process.returncode == 0, f"{' '.join(full)} failed")
  return time.perf_counter() - start


def start_up(config_file: str, data_dir: str, folder: str, programs: str) -> dict[str, float]:
  """Seconds of a whole run of one epoch, and of it until the log of the epoch, less its training.

  The second is the time until the first step and that of measuring the validation rows.
  """
  shutil.rmtree(folder, ignore_errors=True)
  began = time.time()
  arguments = ("--config", config_file, "--workdir", folder, "--config.train.epochs=1")
  whole = run(
    *("-m", "mmoe_jax.main", *arguments, f"--config.data_dir={data_dir}"),
    XDG_CACHE_HOME=programs,
  )
  logged = os.stat(os.path.join(folder, "metrics.jsonl")).st_mtime
  results = workdirs.read_results(folder)
  epoch = results["train_rows"] / results["rows_per_second"]
  return {"whole run": whole, "until the first epoch is logged, less it": logged - began - epoch}


def preparing(paths: list[str], folder: str) -> dict[str, float]:
  """Seconds from raw files to arrays, and of reading the files' bytes alone."""

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


def create(config: Any, schema: data.Schema, split: data.Split) -> tuple[Any, engine.State]:
  """The learner of a run and its first state."""
  learner = engine.create_learner(config, schema, engine.steps_per_epoch(config, len(split)))
  sample = {name: a[:1] for name, a in split.features.items()}
  return learner, parallel.jit_once(learner.init)(jax.random.key(config.seed), sample)


def evaluating(
  config: Any, schema: data.Schema, splits: Mapping[str, data.Split]
) -> dict[str, float]:
  """Seconds of what a run measures: after an epoch, that epoch, and all views of all splits."""
  learner, state = create(config, schema, splits["train"])
  devices, key = parallel.Devices(1), jax.random.key(0)
  place = lambda split, views: evaluate.place(evaluate.eval_arrays(split, views), devices)
  validation = place(splits["validation"], False)
  assess, measure = parallel.jit(learner.assess), parallel.jit(learner.measure)
  calls = {"validation, after an epoch": lambda: assess(state, validation, np.int32(1))}
  for name, split in splits.items():
    arrays = place(split, True)
    calls[f"{name}, all views"] = lambda arrays=arrays: measure(state.best.variables, arrays)
  arrays = devices.replicate(engine.train_arrays(splits["train"], config))
  epoch = devices.compile(learner.epoch, state, arrays, key)
  held = [jax.tree.map(jnp.copy, state)]

  def train() -> Any:
    held.append(epoch(held.pop(), arrays, key)[0])
    return held

  calls["an epoch of training"] = train
  for call in calls.values():
    clock(call)
  return {name: float(np.median([clock(call) for _ in range(5)])) for name, call in calls.items()}


def saving(
  config: Any, schema: data.Schema, splits: Mapping[str, data.Split], folder: str
) -> dict[str, float]:
  """Seconds that a save holds training up, and until it is on disk."""
  _, state = create(config, schema, splits["train"])
  shutil.rmtree(folder, ignore_errors=True)
  start = time.perf_counter()
  with checkpoint.Checkpoints(folder) as saver:
    saver.save(1, state, state.best.variables)  # Makes its threads.
    first = time.perf_counter() - start
    saver.wait()
    start = time.perf_counter()
    saver.save(2, state, state.best.variables)
    held = time.perf_counter() - start
    saver.wait()
    done = time.perf_counter() - start
  return {"first": first, "held": held, "done": done}


def scoring(
  predictor: Predictor, splits: Mapping[str, data.Split], path: str, folder: str
) -> dict[str, float]:
  """Seconds of scoring one row, and rows a second from arrays in memory and from a raw file."""
  features = splits["train"].features
  rows = len(splits["train"])
  frame = read_table(path, predictor.schema.columns)
  one = frame.iloc[:1]
  many = lambda: predictor.score(features)
  single = lambda: predictor(one)
  for call in (many, single):
    clock(call)
  output = os.path.join(folder, "scores.csv")

  def whole() -> None:
    predictor.score_file(path, output)

  clock(whole)
  median = lambda call: float(np.median([clock(call) for _ in range(7)]))
  return {
    "one_row_seconds": median(single),
    "arrays_rows_per_second": rows / median(many),
    "file_rows_per_second": len(frame) / median(whole),
  }


def main(argv: list[str]) -> None:
  """The command line."""
  del argv
  require(_ROUNDS.value >= 1, f"--rounds={_ROUNDS.value}: must be at least 1")
  paths = raw_files.get(None, cache.folder())
  rounds: dict[str, list[float]] = {}

  def note(prefix: str, found: Mapping[str, float]) -> None:
    for name, value in found.items():
      rounds.setdefault(f"{prefix}: {name}", []).append(value)

  with tempfile.TemporaryDirectory() as folder:
    place = lambda *names: os.path.join(folder, *names)
    for _ in range(_ROUNDS.value):
      note("python", {"import jax": run("-c", "import jax"), "import main": run("-c", _IMPORT)})
      shutil.rmtree(place("programs"), ignore_errors=True)
      for name in ("first start", "second start"):
        note(name, start_up(_CONFIG.value, _DATA_DIR.value, place("run"), place("programs")))
      note("preparing", preparing(paths, folder))
      predictor = Predictor(place("run"))
      config = ConfigDict(workdirs.read_config(place("run")))
      schema, splits = data.load(_DATA_DIR.value, **config.data)
      note("evaluating", evaluating(config, schema, splits))
      note("saving", saving(config, schema, splits, place("saved")))
      note("scoring", scoring(predictor, splits, paths[1], folder))
  found = {name: float(np.median(values)) for name, values in rounds.items()}
  machine = studies.machine()
  studies.write_json(_OUT.value, {"machine": machine, "medians": found, "rounds": rounds})
  lines = [
    [name, f"{value:,.0f}" if name.endswith("rows_per_second") else f"{value:.3f} s"]
    for name, value in found.items()
  ]
  text = tables.markdown(("what", "median"), lines)
  text += (
    f"\n\nMedians of {_ROUNDS.value} rounds. {machine['cores']} cores of {machine['processor']}, "
    f"jax {machine['jax']}.\n"
  )
  write_atomically(os.path.splitext(_OUT.value)[0] + ".md", text)
  print(text)


_IMPORT = "import mmoe_jax.main"

if __name__ == "__main__":
  _CONFIG = flags.DEFINE_string("config", "configs/census.py", "FILE.py or FILE.py:ARG.")
  _DATA_DIR = flags.DEFINE_string("data_dir", "data/census", "What data preparation wrote.")
  _ROUNDS = flags.DEFINE_integer("rounds", 3, "How often each is measured.")
  _OUT = flags.DEFINE_string("out", None, "The JSON file to write.", required=True)
  errors.run(main)
