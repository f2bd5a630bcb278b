"""Resumable populations of the studies."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmoe_jax.errors import require
from mmoe_jax.files import read_json_object, write_json
from mmoe_jax.training import population
from mmoe_jax.workdir import logs

DONE = "benchmark.json"
_LOCATIONS = ("data_dir",)  # Keys that may differ when a study resumes.


def is_done(folder: str) -> bool:
  """Returns whether the population in a folder is trained."""
  return os.path.exists(os.path.join(folder, DONE))


def train(
  config: Any,
  members: Sequence[Mapping[str, Any]],
  folder: str,
  made_of: Mapping[str, Any] | None = None,
  **arguments: Any,
) -> dict[str, Any]:
  """Trains a population, or reads its results if it is trained already.

  Args:
    config: see population.train_population.
    members: see population.train_population.
    folder: its work directory, also for `benchmark.json`.
    made_of: settings of the members' own data, if they have any.
    **arguments: further arguments of train_population.

  Returns:
    Content of `benchmark.json`: `config`, `members`, `made_of`, `results` and `seconds`.

  Raises:
    UserError: if the folder holds a population of other settings, or no member could be trained.
  """
  settings = {
    k: v for k, v in json.loads(config.to_json_best_effort()).items() if k not in _LOCATIONS
  }
  wanted = {"config": settings, "members": [dict(m) for m in members]}
  wanted = json.loads(json.dumps(wanted | {"made_of": dict(made_of or {})}))
  path = os.path.join(folder, DONE)
  if os.path.exists(path):
    found = read_json_object(path)
    before = {part: found.get(part) for part in wanted}
    require(
      before == wanted,
      f"{folder}: was trained with {_difference(before, wanted)}; use another --out, or delete "
      "that folder",
    )
    return found
  start = time.perf_counter()
  results = population.train_population(config, members, folder, **arguments)
  failed = [r["error"] for r in results if "error" in r]
  require(len(failed) < len(results), f"{folder}: every member failed; the first: {failed[:1]}")
  # results.json also counts the time of processes before an interruption.
  seconds = read_if_exists(os.path.join(folder, "results.json")).get("wall_seconds")
  done = {**wanted, "results": results, "seconds": seconds or time.perf_counter() - start}
  write_json(path, done)
  return done


def read_curves(folder: str, names: Sequence[str]) -> tuple[str, np.ndarray]:
  """Reads a metric of every epoch and member from metrics.jsonl of a population.

  Args:
    folder: its work directory.
    names: possible names of the metric; the first that exists is read.

  Returns:
    The name, and the values (epochs, members); after a member has stopped, its last value.
  """
  records = logs.read_metrics(folder)
  known = list(dict.fromkeys(key for record in records for key in record))
  name = next((n for n in names if n in known), None)
  require(name is not None, f"{folder}: metrics.jsonl must have one of {names}; it has {known}")
  values = np.array([[np.nan if v is None else v for v in r[name]] for r in records], np.float64)
  for epoch in range(1, len(values)):
    values[epoch] = np.where(np.isnan(values[epoch]), values[epoch - 1], values[epoch])
  return name, values


def read_if_exists(path: str) -> dict[str, Any]:
  """Reads a JSON object, such as the settings that a search chose; empty without the file."""
  return read_json_object(path) if os.path.exists(path) else {}


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
