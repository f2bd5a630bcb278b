"""Damages files of a work directory and of prepared data, and looks for silent wrong results.

A small run on real rows is trained once. Each damage changes one file of a copy (a flipped bit, a
truncation, a deletion, an edited JSON value, a block of zeros) and then uses the copy as a person
would: prediction, report, gate report, resumption, a new run. The result must be the same as
without damage, or an error line, or differ with a warning. Everything else, a traceback included,
is a failure. Every file of the newest checkpoint is flipped and truncated in turn; other damages
are random.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.reliability import jobs
from configs import smoke
from data_prep import census_income
from mmoe_jax import data, errors
from mmoe_jax.errors import UserError
from mmoe_jax.evaluation import tables
from mmoe_jax.evaluation.results_table import format_results
from mmoe_jax.prediction.gate_measurements import measure_gates
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.prediction.scoring import score_files
from mmoe_jax.training import loop
from mmoe_jax.workdir import contract

_TIMES = ("wall_seconds", "rows_per_second")
_MANY_LINES = 4


def prepare(folder: str, rows: int) -> None:
  """Prepares the first rows of the raw files in `folder`/data and trains on them in `folder`/run.

  Args:
    folder: output folder; `rows.csv` in it is the input of predictions.
    rows: number of rows of each raw file.
  """
  paths = jobs.write_first_rows(folder, rows)
  census_income.prepare(*paths, os.path.join(folder, "data"))
  shutil.copy(paths[1], os.path.join(folder, "rows.csv"))
  loop.train_and_evaluate(_config(folder), os.path.join(folder, "run"))


def _config(folder: str) -> Any:
  config = smoke.get_config()
  config.data_dir = os.path.join(folder, "data")
  config.train.devices = 1
  return config


# ---- Uses of a work directory and of prepared data: each returns what a person would see ---------


def predict(folder: str) -> Any:
  """Scores rows.csv."""
  path = os.path.join(folder, "scores.csv")
  predictor = Predictor(os.path.join(folder, "run"))
  score_files(predictor, [os.path.join(folder, "rows.csv")], path)
  with open(path, encoding="utf-8") as file:
    return file.read()


def report(folder: str) -> Any:
  """Prints the table of the results."""
  return format_results(contract.read_results(os.path.join(folder, "run")), "run")


def report_gates(folder: str) -> Any:
  """Measures the gates."""
  measured = measure_gates(os.path.join(folder, "run"), os.path.join(folder, "data"))
  return {key: value for key, value in measured.items() if key not in ("workdir", "data")}


def resume(folder: str) -> Any:
  """Starts the finished run again."""
  results = loop.train_and_evaluate(_config(folder), os.path.join(folder, "run"))
  return {key: value for key, value in results.items() if key not in _TIMES}


def load(folder: str) -> Any:
  """Loads the data as a new run does."""
  directory = os.path.join(folder, "data")
  data.verify(directory)
  config = _config(folder)
  schema, splits = data.load(directory, **config.data)
  sums = {
    k: [float(np.nansum(a)) for a in (*s.features.values(), s.labels, s.weights)]
    for k, s in splits.items()
  }
  return {"schema": repr(schema), "sums": sums}


USES: dict[str, Callable[[str], Any]] = {
  "predict": predict,
  "report": report,
  "gate report": report_gates,
  "resume": resume,
  "new run": load,
}


# ---- Damages: each changes one file ----------------------------------------------------------


def flip(path: str, rng: random.Random) -> None:
  """Flips a bit."""
  with open(path, "r+b") as file:
    content = bytearray(file.read())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.seek(0)
    file.write(content)


def truncate(path: str, rng: random.Random) -> None:
  """Removes the end."""
  os.truncate(path, rng.randrange(os.path.getsize(path)))


def delete(path: str, rng: random.Random) -> None:
  """Removes the file."""
  del rng
  os.remove(path)


def blank(path: str, rng: random.Random) -> None:
  """Overwrites a block with zeros, as a disk does after a power failure."""
  size = os.path.getsize(path)
  start = rng.randrange(size)
  with open(path, "r+b") as file:
    file.seek(start)
    file.write(bytes(min(512, size - start)))


def edit(path: str, rng: random.Random) -> None:
  """Changes one value of a JSON file, or of one line of a file of JSON lines."""
  with open(path, encoding="utf-8") as file:
    text = file.read()
  lines = text.splitlines(keepends=True) if path.endswith(".jsonl") else [text]
  i = rng.randrange(len(lines))
  tree = json.loads(lines[i])
  at, key = rng.choice(list(_leaves(tree)))
  value = at[key]
  if isinstance(value, bool) or not isinstance(value, int | float):
    at[key] = rng.choice([None, 0, "x", [], {}, not value])
  else:
    at[key] = rng.choice([value + 1, -value, value * 1.01, None, "x"])
  lines[i] = json.dumps(tree) + ("\n" if lines[i].endswith("\n") else "")
  with open(path, "w", encoding="utf-8") as file:
    file.write("".join(lines))


def _leaves(tree: Any) -> Iterator[tuple[Any, Any]]:
  for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
    if isinstance(value, dict | list) and value:
      yield from _leaves(value)
    else:
      yield tree, key


DAMAGES = {"flip": flip, "truncate": truncate, "delete": delete, "blank": blank, "edit": edit}


# ---- The experiment --------------------------------------------------------------------------


def attempt(use: Callable[[str], Any], folder: str, expected: Any) -> tuple[str, str]:
  """Uses a damaged copy.

  Returns:
    The outcome (`same`, `error line`, `warning`, or a failure: `SILENT`, `TRACEBACK`, `NOISE`), and
    the text that was printed or raised.
  """
  with _captured() as printed:
    try:
      found, error = use(folder), None
    except (UserError, OSError) as caught:
      found, error = None, errors.describe(caught)
    except Exception as caught:
      return "TRACEBACK", f"{type(caught).__name__}: {caught}"
  text = printed()
  lines = [line for line in text.splitlines() if not line.startswith(_USUAL)]
  if len(lines) > _MANY_LINES:
    return "NOISE", text
  if error is not None:
    return "error line", error
  if any(line.startswith("warning: ") for line in lines):
    return "warning", " / ".join(lines)
  return ("same" if found == expected else "SILENT"), text


# Lines of a run without damage.
_USUAL = ("devices:", "model:", "train rows:", "work directory:", "epoch ")


@contextlib.contextmanager
def _captured() -> Iterator[Callable[[], str]]:
  """Redirects standard error, also of libraries in C++; yields a function that returns the text."""
  saved, text = os.dup(2), []
  with tempfile.TemporaryFile() as file:
    os.dup2(file.fileno(), 2)
    try:
      yield lambda: "".join(text)
    finally:
      os.dup2(saved, 2)
      os.close(saved)
      file.seek(0)
      text.append(file.read().decode(errors="replace"))


def draw(base: str, count: int, rng: random.Random) -> list[tuple[str, str, str]]:
  """Draws damages: file, damage and use of each."""
  files = _files(base, "data", "run")
  found = []
  for _ in range(count):
    name = rng.choice(files)
    is_json = name.endswith((".json", ".jsonl", "manifest/metadata"))
    damage = rng.choice([d for d in DAMAGES if d != "edit" or is_json])
    use = rng.choice(list(USES) if name.startswith("data") else list(USES)[:-1])
    found.append((name, damage, use))
  return found


def each_file_of_newest(base: str) -> list[tuple[str, str, str]]:
  """Returns damages of every file of the newest checkpoint, and the two uses that read it."""
  newest = contract.saved_epochs(os.path.join(base, "run"))[-1]
  files = _files(base, os.path.join("run", contract.CHECKPOINTS, str(newest)))
  return list(itertools.product(files, ("flip", "truncate"), ("predict", "resume")))


def _files(base: str, *folders: str) -> list[str]:
  """Returns the files in folders that are not empty, relative to `base`."""
  return sorted(
    os.path.relpath(os.path.join(parent, name), base)
    for top in folders
    for parent, _, names in os.walk(os.path.join(base, top))
    for name in names
    if os.path.getsize(os.path.join(parent, name))
  )


def run(
  base: str, damages: Sequence[tuple[str, str, str]], rng: random.Random
) -> list[dict[str, str]]:
  """Damages copies of `base`; returns file, damage, use, outcome and text of each."""
  expected = {use: _expect(USES[use], base) for use in {use for _, _, use in damages}}
  found = []
  for i, (name, damage, use) in enumerate(damages):
    with tempfile.TemporaryDirectory(prefix="mmoe_jax_damage_") as copy:
      folder = os.path.join(copy, "c")
      shutil.copytree(base, folder)
      DAMAGES[damage](os.path.join(folder, name), rng)
      outcome, text = attempt(USES[use], folder, expected[use])
    found.append({"file": name, "damage": damage, "use": use, "outcome": outcome, "text": text})
    if outcome.isupper():
      print(f"{i}: {outcome}: {name}, {damage}, {use}: {text[:500]}", flush=True)
    if (i + 1) % 100 == 0:
      print(f"{i + 1} of {len(damages)}: {dict(Counter(f['outcome'] for f in found))}", flush=True)
  return found


def _expect(use: Callable[[str], Any], base: str) -> Any:
  """Returns the result without damage, in a copy, because some uses write."""
  with tempfile.TemporaryDirectory(prefix="mmoe_jax_damage_") as copy:
    return use(shutil.copytree(base, os.path.join(copy, "c")))


def measure(
  folder: str, count: int, seed: int, rows: int = 4000
) -> dict[str, list[dict[str, str]]]:
  """Returns the damages of each file of the newest checkpoint, and random ones.

  Args:
    folder: output folder of the run that is damaged.
    count: number of random damages.
    seed: their seed.
    rows: rows of each raw file.
  """
  base = os.path.join(folder, "base")
  shutil.rmtree(base, ignore_errors=True)
  os.makedirs(base)
  prepare(base, rows)
  rng = random.Random(seed)
  return {
    "newest": run(base, each_file_of_newest(base), rng),
    "random": run(base, draw(base, count, rng), rng),
  }


def markdown(found: Sequence[Mapping[str, str]]) -> str:
  """Formats the outcomes of damages by use."""
  outcomes = sorted({f["outcome"] for f in found})
  rows = [
    [use, *(sum(f["use"] == use and f["outcome"] == o for f in found) for o in outcomes)]
    for use in USES
  ]
  return tables.markdown(["use", *outcomes], rows)


def require_noticed(found: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
  """Raises UserError if a damage was silent, or gave a traceback."""
  for name, damages in found.items():
    failures = [f for f in damages if f["outcome"].isupper()]
    errors.require(not failures, f"{name}: {len(failures)} of {len(damages)} damages are failures")
