"""Result files: what a study or a benchmark measured, on which code, machine and versions.

A file is results/NAME.json, committed. Its `runs` are what was measured, one flat object per seed,
round or size, so that a reader can recompute each mean and interval of the documents, whose tables
`python -m studies.tables` writes from these files. A module with an option --results calls

  records.write(folder, "seeds/census", runs, settings={"config": "configs/census.py"})

and a table reads `records.read(folder, "seeds/census")`.
"""

import datetime
import importlib.metadata
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from benchmarks.machine import describe_machine
from mmoe_jax.errors import require
from mmoe_jax.files import nan_to_none, parse, read_json_object, to_json, write_atomically

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = os.path.join(ROOT, "results")
# What a figure depends on, in a checkout.
CODE = ("mmoe_jax", "configs", "data_prep", "benchmarks/contenders")
_VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "pandas", "pyarrow")
_DIGITS = 10  # Significant digits of numbers in a file.


class Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
  """Content of a result file.

  Attributes:
    command: command that measured it.
    settings: settings that are the same for all runs.
    commit: the last commit that changed `CODE`.
    dirty: whether the checkout's code, studies or benchmarks differed from its last commit; None
      where this is not known.
    date: day and time, UTC, in ISO 8601; empty where this is not known.
    machine: processor, cores, memory_gib, platform, device, devices, as far as they are known.
    versions: Python's version and those of packages.
    runs: what was measured: flat objects, of which each has the keys that identify it (such as
      `seed`, `method`, `batch_size`) and its figures.
    rows: statistics over rows that intervals need, see studies/paired.py.
    transcribed: whether the figures were copied from a document of an older commit, and so cannot
      be recomputed. Measuring again replaces such a file.
    note: what a reader of the table must know, as a sentence; may be empty.
  """

  command: str
  settings: dict[str, Any]
  commit: str
  dirty: bool | None
  date: str
  machine: dict[str, Any]
  versions: dict[str, str]
  runs: list[dict[str, Any]]
  rows: dict[str, Any] = {}
  transcribed: bool = False
  note: str = ""


def write(
  folder: str | None,
  name: str,
  runs: Sequence[Mapping[str, Any]],
  *,
  settings: Mapping[str, Any] | None = None,
  rows: Mapping[str, Any] | None = None,
  packages: Sequence[str] = (),
  note: str = "",
) -> str | None:
  """Writes FOLDER/NAME.json, unless there is no folder: an option --results that was not given.

  Args:
    folder: folder of result files; None or empty writes nothing.
    name: name of the file without its ending, such as `seeds/census`.
    runs: see `Record`. Numbers keep ten significant digits; those that are not finite become null.
    settings: see `Record`.
    rows: see `Record`.
    packages: packages whose versions matter as well, such as `lightgbm`.
    note: see `Record`.

  Returns:
    The path, or None.

  Raises:
    UserError: if there is nothing to write.
  """
  if not folder:
    return None
  require(len(runs) > 0, f"results of '{name}': no run was measured")
  machine = describe_machine()
  commit, dirty = describe_code()
  record = Record(
    command=machine.pop("command"),
    settings=dict(settings or {}),
    commit=commit,
    dirty=dirty,
    date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    versions={"python": machine.pop("python"), **_versions((*_VERSIONS, *packages))},
    machine={key: value for key, value in machine.items() if key != "jax"},
    runs=[dict(run) for run in runs],
    rows=dict(rows or {}),
    note=note,
  )
  return save(folder, name, record)


def save(folder: str, name: str, record: Record) -> str:
  """Writes a record, one line per run, so that differences between commits are readable."""
  path = os.path.join(folder, f"{name}.json")
  os.makedirs(os.path.dirname(path), exist_ok=True)
  content = _rounded(nan_to_none(msgspec.to_builtins(record)))
  entries = []
  for key, value in content.items():
    lines = ",\n  ".join(map(to_json, value)) if key == "runs" else ""
    entries.append(f' "{key}": ' + (f"[\n  {lines}\n ]" if lines else to_json(value)))
  write_atomically(path, "{\n" + ",\n".join(entries) + "\n}\n")
  return path


def read(folder: str, name: str) -> Record:
  """Reads FOLDER/NAME.json.

  Raises:
    UserError: if it does not exist, or is not a result file.
  """
  path = os.path.join(folder, f"{name}.json")
  require(os.path.exists(path), f"{path}: no such result file; measure it with --results {folder}")
  return parse(read_json_object(path), Record, path)


def describe_code() -> tuple[str, bool | None]:
  """Returns the last commit that changed `CODE`, and whether the checkout differs from its commit.

  Documents and result files do not count. Without git: an empty name and None.
  """
  commit = _git("log", "-1", "--format=%H", "--", *CODE)
  if commit is None:
    return "", None
  changed = _git("status", "--porcelain", "--", *CODE, "studies", "benchmarks", ":!*.md")
  return commit, bool(changed)


def _git(*arguments: str) -> str | None:
  try:
    done = subprocess.run(
      ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
  except OSError:
    return None
  return done.stdout.strip() if done.returncode == 0 else None


def _versions(packages: Sequence[str]) -> dict[str, str]:
  found = {}
  for name in packages:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _rounded(tree: Any) -> Any:
  if isinstance(tree, dict):
    return {key: _rounded(value) for key, value in tree.items()}
  if isinstance(tree, list):
    return [_rounded(value) for value in tree]
  return float(f"{tree:.{_DIGITS}g}") if isinstance(tree, float) else tree
