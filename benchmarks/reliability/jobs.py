"""Jobs that are killed: their commands, and digests of everything that they leave.

Equal digests mean bitwise identical results; times are left out.
"""

import csv
import dataclasses
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from configs import smoke
from data_prep import census_income, raw_files
from mmoe_jax import cache, data, digests
from mmoe_jax.training import train_rows
from mmoe_jax.workdir import checkpoint, contract, logs

ROWS = 4000  # Of each raw Census file.
_TABLE_ROWS = 30_000
_TIMES = {"seconds", "wall_seconds", "rows_per_second"}
_ITEMS = ("state", "best", "tables")
# Runs a module with parts of 64 KiB, so that small files have several.
_SMALL_PARTS = (
  "import runpy, sys; from mmoe_jax.data import tables; "
  "tables.SMALL = tables.PART_BYTES = 1 << 16; sys.argv[:] = sys.argv[1:]; "
  "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
SPEC = """
[columns]
row = { role = "keep" }
user = { role = "hash", buckets = 500 }
country = { role = "category" }
age = { role = "number", bins = 16 }
price = { role = "number", transform = "quantile" }
tags = { role = "list", length = 3 }
click = { role = "label" }

[tasks]
click = { condition = "click == 1" }

[split]
method = "random"
validation = 0.2
test = 0.2
"""


@dataclasses.dataclass(frozen=True)
class Job:
  """A command that can be killed and started again.

  Attributes:
    words: (folder of the inputs, folder of the job) -> arguments of Python.
    results: folder of the job -> name -> digest of what it must leave.
    phases: name -> pattern of files in the folder that begin it; the last that matches counts.
  """

  words: Callable[[str, str], list[str]]
  results: Callable[[str], dict[str, str]]
  phases: Mapping[str, str]


def prepare_inputs(folder: str, rows: int = ROWS) -> None:
  """Writes the inputs of all jobs to a folder, unless they are there: raw rows, data, a table."""
  spec = os.path.join(folder, "spec.toml")
  if os.path.exists(spec):
    return
  empty(folder)
  paths = write_first_rows(folder, rows)
  census_income.prepare(*paths, os.path.join(folder, "census"))
  os.rename(paths[0], os.path.join(folder, "rows.csv"))
  os.remove(paths[1])
  _write_table(os.path.join(folder, "table.csv"))
  with open(spec, "w", encoding="utf-8") as file:
    file.write(SPEC)


def write_first_rows(folder: str, rows: int) -> list[str]:
  """Writes that many rows of each raw file of Census to a folder; returns the paths."""
  paths = []
  for path in raw_files.obtain(None, cache.folder()):
    paths.append(os.path.join(folder, os.path.basename(path)))
    with open(path, encoding="utf-8") as file, open(paths[-1], "w", encoding="utf-8") as out:
      out.writelines(line for line, _ in zip(file, range(rows), strict=False))
  return paths


def _write_table(path: str) -> None:
  rng = np.random.default_rng(0)
  tags = np.array(["red", "blue", "new", "old", "big"])
  with open(path, "w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["row", "user", "country", "age", "price", "tags", "click"])
    for row in range(_TABLE_ROWS):
      age, price = rng.integers(18, 90), rng.lognormal()
      chosen = "|".join(tags[: rng.integers(0, 5)])
      country = ("DE", "FR", "JP")[rng.integers(3)]
      click = int(rng.random() < age / 100)
      writer.writerow([row, f"u{rng.integers(2000)}", country, age, f"{price:.4f}", chosen, click])


def streamed_gib(inputs: str) -> float:
  """Returns a memory of two thirds of the train rows: six blocks or more per epoch."""
  folder = os.path.join(inputs, "census")
  split = data.load(folder, **smoke.get_config().data, budget=1.0)[1]["train"]
  return (len(split) / 6) * train_rows._HELD * split.row_bytes / 2**30


def _training(inputs: str, folder: str, module: str, *more: str) -> list[str]:
  words = ["-m", f"mmoe_jax.{module}", "--config=configs/smoke.py"]
  words += [f"--workdir={os.path.join(folder, 'work')}", "--config.train.batch_size=64"]
  return [*words, f"--config.data_dir={os.path.join(inputs, 'census')}", *more]


def _streamed(inputs: str, folder: str) -> list[str]:
  """Returns a streamed run whose large tables are saved apart."""
  more = [f"--config.train.memory_gib={streamed_gib(inputs)}"]
  more += ["--config.optimizer.embedding.updates=rows"]
  return _training(inputs, folder, "main", *more)


def _search(inputs: str, folder: str) -> list[str]:
  return _training(inputs, folder, "tune", "--trials=4", "--round=2", "--config.train.epochs=2")


def _census(inputs: str, folder: str) -> list[str]:
  del inputs
  words = ["-m", "data_prep.census_income", f"--out={os.path.join(folder, 'data')}"]
  return [*words, f"--cache={cache.folder()}"]


def _table(inputs: str, folder: str) -> list[str]:
  words = ["-c", _SMALL_PARTS, "data_prep.tabular", f"--out={os.path.join(folder, 'data')}"]
  words += [f"--input={os.path.join(inputs, 'table.csv')}", "--workers=2"]
  return [*words, f"--spec={os.path.join(inputs, 'spec.toml')}"]


def _prediction(inputs: str, folder: str) -> list[str]:
  words = ["-c", _SMALL_PARTS, "mmoe_jax.predict", f"--workdir={os.path.join(inputs, 'run')}"]
  rows = ",".join([os.path.join(inputs, "rows.csv")] * 3)
  return [*words, f"--input={rows}", f"--output={os.path.join(folder, 'scores.csv')}"]


# ---- What jobs leave: name -> digest --------------------------------------------------------


def of_run(folder: str) -> dict[str, str]:
  """Returns digests of a work directory: arrays, records, results, names of its files."""
  workdir = os.path.join(folder, "work")
  last = os.path.join(workdir, contract.CHECKPOINTS, str(contract.saved_epochs(workdir)[-1]))
  found = {}
  for item in _ITEMS:
    if os.path.isdir(os.path.join(last, item)):
      arrays = checkpoint.read_arrays(workdir, item)
      found |= {f"{item}{name}": _of_array(array) for name, array in arrays.items()}
  found["records"] = digests.of_json([_without_times(r) for r in logs.read_metrics(workdir)])
  found["results"] = digests.of_json(_without_times(contract.read_results(workdir)))
  for name in (contract.CONFIG, contract.SCHEMA):
    found[name] = digests.of_file(os.path.join(workdir, name))
  return found | {"files": _names(folder, workdir, os.path.join(workdir, contract.CHECKPOINTS))}


def of_search(folder: str) -> dict[str, str]:
  """Returns digests of the trials of a search and its best settings."""
  workdir = os.path.join(folder, "work")
  with open(os.path.join(workdir, "trials.csv"), encoding="utf-8") as file:
    trials = [{k: v for k, v in row.items() if k not in _TIMES} for row in csv.DictReader(file)]
  found = {"trials": digests.of_json(trials), "files": _names(folder, workdir)}
  names = ("best.json", contract.CONFIG)
  return found | {name: digests.of_file(os.path.join(workdir, name)) for name in names}


def of_files(folder: str) -> dict[str, str]:
  """Returns the digest of every file, hidden ones included, which none must be left of."""
  found = {}
  for base, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(base, name)
      found[os.path.relpath(path, folder)] = digests.of_file(path)
  return found | {"files": _names(folder)}


def _names(*folders: str) -> str:
  """Returns the names in folders, without those of TensorBoard events, which have a time."""
  names = [sorted(n for n in os.listdir(f) if "tfevents" not in n) for f in folders]
  return json.dumps(names)


def _without_times(content: Mapping[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in content.items() if k not in _TIMES}


def _of_array(array: np.ndarray) -> str:
  content = f"{array.dtype} {array.shape} ".encode() + array.tobytes()
  return hashlib.sha256(content).hexdigest()


_TRAINING_PHASES = {
  "start": "*",
  "compile": "work/config.json",
  "train": "work/metrics.jsonl",
  "save": "work/checkpoints/*tmp*",
  "end": "work/results.json",
}
_PREPARATION_PHASES = {
  "start": "*",
  "statistics": ".data.partial/identity",
  "arrays": ".data.partial/rows.json",
  "end": "data/manifest.json",
}
JOBS = {
  "run": Job(lambda i, f: _training(i, f, "main"), of_run, _TRAINING_PHASES),
  "streamed run": Job(_streamed, of_run, _TRAINING_PHASES),
  "population": Job(
    lambda i, f: _training(i, f, "population", "--seeds=3"), of_run, _TRAINING_PHASES
  ),
  "search": Job(
    _search,
    of_search,
    {"start": "*", "draw": "work/search.db", "train": "work/populations/*"}
    | {"save": "work/populations/*/checkpoints/*tmp*", "store": "work/populations/*/results.json"},
  ),
  "Census": Job(_census, of_files, _PREPARATION_PHASES),
  "table": Job(_table, of_files, _PREPARATION_PHASES),
  "prediction": Job(
    _prediction,
    of_files,
    {"start": "*", "score": ".scores.csv.parts/identity", "write": ".scores.csv.parts/*.json"}
    | {"end": "scores.csv"},
  ),
}


def phase_of(job: Job, folder: str) -> str:
  """Returns the phase of a job by the files in its folder."""
  found = "start"
  for name, pattern in job.phases.items():
    if glob.glob(os.path.join(folder, pattern), include_hidden=True):
      found = name
  return found


def empty(folder: str) -> str:
  """Empties a folder, which is created if absent; returns it."""
  shutil.rmtree(folder, ignore_errors=True)
  os.makedirs(folder)
  return folder
