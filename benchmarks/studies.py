"""What the studies of a paper share: resumable populations, files, progress."""

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmoe_jax import logs, population
from mmoe_jax.errors import UserError, require
from mmoe_jax.table import write_atomically

DONE = "benchmark.json"
_PLACES = ("data_dir",)  # Keys that say where, not what.


class Progress:
  """Says how far a study is and how long it will yet take, a line for each finished part."""

  def __init__(self, parts: int):
    self._parts, self._done, self._trained, self._spent = parts, 0, 0, 0.0
    self._last = time.perf_counter()

  def done(self, what: str, trained: bool = True) -> None:
    """Counts a part; one that was there already (`trained` False) tells nothing of the speed."""
    now = time.perf_counter()
    self._done += 1
    if trained:
      self._trained += 1
      self._spent += now - self._last
    self._last = now
    left = self._parts - self._done
    rest = f", {duration(left * self._spent / self._trained)} to go" if self._trained else ""
    how = "" if trained else " (was there)"
    print(f"{self._done}/{self._parts} {what}{how}{rest if left else ''}", flush=True)


def duration(seconds: float) -> str:
  """Seconds for reading: 45 s, 12 min, 3.4 h."""
  if seconds < 90:
    return f"{seconds:.0f} s"
  return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def is_done(folder: str) -> bool:
  """Whether the population of a folder has been trained."""
  return os.path.exists(os.path.join(folder, DONE))


def train(
  config: Any,
  members: Sequence[Mapping[str, Any]],
  folder: str,
  made_of: Mapping[str, Any] | None = None,
  **arguments: Any,
) -> dict[str, Any]:
  """Trains a population, or reads what it left when it was trained before.

  Args:
    config, members: as population.train_population takes them.
    folder: its work directory, which also gets `benchmark.json`.
    made_of: what the members' own data were made with, if they have any.
    **arguments: further ones of train_population.

  Returns:
    What `benchmark.json` holds: `config`, `members`, `made_of`, their `results` and `seconds`.

  Raises:
    UserError: when the folder holds a population of other settings, or no member was trained.
  """
  settings = {k: v for k, v in json.loads(config.to_json_best_effort()).items() if k not in _PLACES}
  wanted = {"config": settings, "members": [dict(m) for m in members]}
  wanted = json.loads(json.dumps(wanted | {"made_of": dict(made_of or {})}))
  path = os.path.join(folder, DONE)
  if os.path.exists(path):
    found = _read_object(path)
    before = {part: found.get(part) for part in wanted}
    require(
      before == wanted,
      f"{folder}: was trained with {_difference(before, wanted)}; name another --out, or delete "
      "that folder",
    )
    return found
  start = time.perf_counter()
  results = population.train_population(config, members, folder, **arguments)
  failed = [r["error"] for r in results if "error" in r]
  require(len(failed) < len(results), f"{folder}: every member failed; the first: {failed[:1]}")
  # The run's own clock also counts the processes before one that was cut off.
  seconds = _read_if_there(os.path.join(folder, "results.json")).get("wall_seconds")
  done = {**wanted, "results": results, "seconds": seconds or time.perf_counter() - start}
  write_atomically(path, json.dumps(done))
  return done


def read_curves(folder: str, names: Sequence[str]) -> tuple[str, np.ndarray]:
  """A metric of every epoch and member, from metrics.jsonl of a population.

  Args:
    folder: the population's.
    names: what the metric may be called; the first that is there is read.

  Returns:
    Its name, and its values (epochs, members); where a member had stopped, its last value.
  """
  records = logs.read_metrics(folder)
  known = list(dict.fromkeys(key for record in records for key in record))
  name = next((n for n in names if n in known), None)
  require(name is not None, f"{folder}: metrics.jsonl has none of {names}; it has {known}")
  values = np.array([[np.nan if v is None else v for v in r[name]] for r in records], np.float64)
  for epoch in range(1, len(values)):
    values[epoch] = np.where(np.isnan(values[epoch]), values[epoch - 1], values[epoch])
  return name, values


def read_settings(path: str) -> dict[str, Any]:
  """The chosen settings that a search wrote; empty where none has been run."""
  return _read_if_there(path)


def write_json(path: str, content: Any) -> None:
  """Writes JSON with NaN, which it does not have, as null."""
  os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
  write_atomically(path, json.dumps(_without_nan(content), indent=1) + "\n")


def machine() -> dict[str, Any]:
  """What the numbers were measured on."""
  device = jax.devices()[0]
  return {
    "cores": len(os.sched_getaffinity(0)),
    "processor": _processor(),
    "platform": device.platform,
    "device": device.device_kind,
    "devices": jax.device_count(),
    "jax": jax.__version__,
    "python": platform.python_version(),
    "command": " ".join(["python -m", *_command()]),
  }


def _processor() -> str:
  with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
    for line in file:
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()


def _command() -> list[str]:
  module = os.path.splitext(os.path.relpath(sys.argv[0]))[0].replace(os.sep, ".")
  return [module, *sys.argv[1:]]


def _difference(found: Any, wanted: Any) -> str:
  found, wanted = (dict(_leaves(tree)) for tree in (found, wanted))
  for key in {**wanted, **found}:
    if found.get(key) != wanted.get(key):
      return f"{key}={found.get(key)}, not {wanted.get(key)}"
  return "other settings"


def _leaves(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
  if isinstance(tree, dict):
    return [leaf for k, v in tree.items() for leaf in _leaves(v, f"{prefix}.{k}" if prefix else k)]
  if isinstance(tree, list) and tree and isinstance(tree[0], dict):
    leaves = [leaf for i, v in enumerate(tree) for leaf in _leaves(v, f"{prefix}.{i}")]
    return [(f"number of {prefix}", len(tree)), *leaves]
  return [(prefix, tree)]


def _without_nan(tree: Any) -> Any:
  if isinstance(tree, Mapping):
    return {k: _without_nan(v) for k, v in tree.items()}
  if isinstance(tree, list | tuple):
    return [_without_nan(v) for v in tree]
  if isinstance(tree, np.ndarray):
    return _without_nan(tree.tolist())
  if isinstance(tree, np.generic):
    tree = tree.item()
  return None if isinstance(tree, float) and tree != tree else tree


def _read_if_there(path: str) -> dict[str, Any]:
  return _read_object(path) if os.path.exists(path) else {}


def _read_object(path: str) -> dict[str, Any]:
  try:
    with open(path, encoding="utf-8") as file:
      content = json.load(file)
  except ValueError as error:
    raise UserError(f"{path}: broken ({error}); delete it and start again") from error
  require(isinstance(content, dict), f"{path}: broken: not a JSON object")
  return content
