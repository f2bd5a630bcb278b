"""The contract of a work directory: which files it holds, and that they belong to one run."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmoe_jax.data import SPLITS, Schema
from mmoe_jax.errors import UserError, require
from mmoe_jax.table import write_atomically

CONFIG = "config.json"
SCHEMA = "schema.json"
RESULTS = "results.json"
LOCK = ".lock"
MEMBERS = "members"  # Of config.json, in a population.
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
# Keys that may change between a run and its continuation: they say where, not what.
_PLACES = ("data_dir",)


@contextlib.contextmanager
def claim(
  workdir: str,
  config: Any,
  schema: Schema,
  devices: int,
  writes: bool,
  members: Sequence[Mapping[str, Any]] | None = None,
) -> Iterator[None]:
  """Makes the work directory this run's own while the context lasts.

  Writes config.json and schema.json, or compares them when they are there: going on with other
  settings would mix two runs in one folder. A lock keeps a second process out; the system frees
  it however the process ends.

  Args:
    workdir: the directory, made if absent.
    config: the settings of the run.
    schema: what it encodes with.
    devices: how many devices it trains on. Dropout draws on each anew, so that another number
      would go on with another run.
    writes: whether this host is the one that writes and locks; the others do nothing here.
    members: of a population, what each sets for itself.

  Raises:
    UserError: when the directory belongs to another run or process.
    OSError: when it cannot be written.
  """
  require(bool(workdir), "--workdir is empty; name a folder")
  if not writes:
    yield
    return
  with lock(workdir):
    _check_or_write(workdir, config, schema, devices, members)
    yield


@contextlib.contextmanager
def lock(workdir: str) -> Iterator[None]:
  """Keeps other processes out of a work directory, which is made if absent."""
  require(bool(workdir), "--workdir is empty; name a folder")
  os.makedirs(workdir, exist_ok=True)
  with open(os.path.join(workdir, LOCK), "w", encoding="utf-8") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(f"{workdir}: another process is training there") from error
    yield


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
      f"{workdir}: the run there was trained on differently prepared data; name another --workdir",
    )
  else:
    schema.save(os.path.join(workdir, SCHEMA))
    write_atomically(path, json.dumps(settings, indent=1))


def require_same(workdir: str, settings: Mapping[str, Any]) -> None:
  """Raises UserError, naming a key, unless config.json has these settings; places may differ."""
  before, now = _flat(read_config(workdir)), _flat(settings)
  changed = [k for k in {**before, **now} if before.get(k) != now.get(k) and k not in _PLACES]
  if changed:
    key = changed[0]
    raise UserError(
      f"{workdir} holds a run with config.{key}={before.get(key)}, not {now.get(key)}"
      + (f" (and {len(changed) - 1} more differences)" if len(changed) > 1 else "")
      + "; name another --workdir, or delete this one"
    )


def read_config(workdir: str) -> dict[str, Any]:
  """The settings of the run in a work directory. Raises UserError when there is none."""
  path = os.path.join(workdir, CONFIG)
  require(os.path.exists(path), f"{workdir}: no {CONFIG} here; is it the --workdir of a run?")
  return _read_object(path)


def read_schema(workdir: str) -> Schema:
  """The schema that the run in a work directory encodes with."""
  path = os.path.join(workdir, SCHEMA)
  require(os.path.exists(path), f"{workdir}: no {SCHEMA} here; is it the --workdir of a run?")
  return Schema.restore(path)


def write_results(workdir: str, results: dict[str, Any]) -> None:
  """Writes results.json, the last file of a run."""
  write_atomically(os.path.join(workdir, RESULTS), json.dumps(results, indent=1))


def read_results(workdir: str) -> dict[str, Any]:
  """What `write_results` wrote. Raises UserError when the run has not ended yet.

  Those of a population have the results of each member under `members`.
  """
  path = os.path.join(workdir, RESULTS)
  require(os.path.exists(path), f"{workdir}: no {RESULTS} here; has the run ended?")
  results = _read_object(path)
  keys = _POPULATION_KEYS if MEMBERS in results else {*SPLITS, *_RESULT_KEYS}
  require(keys <= results.keys(), f"{path}: broken: not the results of a run")
  return results


def _read_object(path: str) -> dict[str, Any]:
  try:
    with open(path, encoding="utf-8") as file:
      content = json.load(file)
  except ValueError as error:
    raise UserError(f"{path}: broken ({error}); start anew in another --workdir") from error
  require(isinstance(content, dict), f"{path}: broken: not a JSON object")
  return content


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat
