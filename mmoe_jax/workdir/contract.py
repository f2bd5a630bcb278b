"""Contract of a work directory: its files, and that they belong to one run."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmoe_jax.data import SPLITS, Schema, restore_schema, save_schema
from mmoe_jax.errors import UserError, require
from mmoe_jax.files import read_json_object, write_json

CONFIG = "config.json"
SCHEMA = "schema.json"
RESULTS = "results.json"
LOCK = ".lock"
MEMBERS = "members"  # Key of a population's config.json and results.json.
_RESULT_KEYS = (
  "best_epoch",
  "epochs",
  "notes",
  "parameters",
  "rows_per_second",
  "train_rows",
  "wall_seconds",
)
_POPULATION_KEYS = {"members", "rows_per_second", "train_rows", "wall_seconds"}
_LOCATIONS = ("data_dir",)  # Keys that may change when a run resumes.


@contextlib.contextmanager
def claim(
  workdir: str,
  config: Any,
  schema: Schema,
  devices: int,
  writes: bool,
  members: Sequence[Mapping[str, Any]] | None = None,
) -> Iterator[None]:
  """Reserves a work directory for one run while the context lasts.

  Writes config.json and schema.json, or compares them if they exist: resuming with other settings
  would mix two runs. A lock excludes other processes; the system releases it when the process ends.

  Args:
    workdir: the directory, created if absent.
    config: settings of the run.
    schema: schema that the run encodes with.
    devices: number of devices. Dropout differs between numbers of devices.
    writes: whether this host writes and locks; others do nothing.
    members: settings of each member of a population.

  Raises:
    UserError: if the directory belongs to another run or process.
    OSError: if it cannot be written.
  """
  require(bool(workdir), "--workdir is empty: must be a folder")
  if not writes:
    yield
    return
  with lock(workdir):
    _check_or_write(workdir, config, schema, devices, members)
    yield


@contextlib.contextmanager
def lock(workdir: str) -> Iterator[None]:
  """Excludes other processes from a work directory, which is created if absent."""
  require(bool(workdir), "--workdir is empty: must be a folder")
  os.makedirs(workdir, exist_ok=True)
  with open(os.path.join(workdir, LOCK), "w", encoding="utf-8") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(f"{workdir}: another process is training there") from error
    yield


def require_same(workdir: str, settings: Mapping[str, Any]) -> None:
  """Validates that config.json has these settings; locations may differ.

  Raises:
    UserError: naming a key that differs.
  """
  before, now = _flatten(read_config(workdir)), _flatten(settings)
  changed = [k for k in {**before, **now} if before.get(k) != now.get(k) and k not in _LOCATIONS]
  if changed:
    key = changed[0]
    raise UserError(
      f"{workdir} holds a run with config.{key}={before.get(key)}, not {now.get(key)}"
      + (f" (and {len(changed) - 1} more differences)" if len(changed) > 1 else "")
      + "; use another --workdir"
    )


def read_config(workdir: str) -> dict[str, Any]:
  """Reads the settings of the run in a work directory.

  Raises:
    UserError: if there is none.
  """
  path = os.path.join(workdir, CONFIG)
  require(
    os.path.exists(path), f"{workdir}: contains no {CONFIG}; pass the --workdir of a training run"
  )
  return read_json_object(path)


def read_schema(workdir: str) -> Schema:
  """Reads the schema that the run in a work directory encodes with."""
  path = os.path.join(workdir, SCHEMA)
  require(
    os.path.exists(path), f"{workdir}: contains no {SCHEMA}; pass the --workdir of a training run"
  )
  return restore_schema(path)


def write_results(workdir: str, results: Mapping[str, Any]) -> None:
  """Writes results.json, the last file of a run."""
  write_json(os.path.join(workdir, RESULTS), results)


def read_results(workdir: str) -> dict[str, Any]:
  """Reads results.json; that of a population has the results of each member under `members`.

  Raises:
    UserError: if the run has not finished, or the file is broken.
  """
  path = os.path.join(workdir, RESULTS)
  require(os.path.exists(path), f"{workdir}: contains no {RESULTS}; the run has not finished")
  results = read_json_object(path)
  keys = _POPULATION_KEYS if MEMBERS in results else {*SPLITS, *_RESULT_KEYS}
  require(keys <= results.keys(), f"{path}: broken: not the results of a run")
  return results


def _check_or_write(
  workdir: str,
  config: Any,
  schema: Schema,
  devices: int,
  members: Sequence[Mapping[str, Any]] | None,
) -> None:
  settings = json.loads(config.to_json_best_effort())
  settings["train"]["devices"] = devices
  if members is not None:
    settings[MEMBERS] = json.loads(json.dumps([dict(m) for m in members]))
  path = os.path.join(workdir, CONFIG)
  if os.path.exists(path):
    require_same(workdir, settings)
    require(
      read_schema(workdir) == schema,
      f"{workdir} holds a run on differently prepared data; use another --workdir",
    )
  else:
    save_schema(schema, os.path.join(workdir, SCHEMA))
    write_json(path, settings)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns a nested mapping as dotted key -> value."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      flat |= _flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat
