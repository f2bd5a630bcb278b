"""The contract of a work directory: which files it holds, and that they belong to one run."""

import json
import os
import tempfile
from typing import Any

from mmoe_jax.data import Schema
from mmoe_jax.errors import UserError, require
from mmoe_jax.parallel import is_first_host
from mmoe_jax.table import write_atomically

CONFIG = "config.json"
SCHEMA = "schema.json"
RESULTS = "results.json"
# Keys that may change between a run and its continuation: they say where, not what.
_PLACES = ("data_dir", "train.devices")


def claim(workdir: str, config: Any, schema: Schema) -> None:
  """Makes the work directory this run's own, or checks that it already is.

  Writes config.json and schema.json, or compares them when they are there: going on with other
  settings would mix two runs in one folder.

  Raises:
    UserError: when the directory belongs to a run of other settings or data.
    OSError: when it cannot be written.
  """
  os.makedirs(workdir, exist_ok=True)
  with tempfile.TemporaryFile(dir=workdir):
    pass  # Better to fail on a read-only folder now than after an epoch.
  settings = json.loads(config.to_json_best_effort())
  path = os.path.join(workdir, CONFIG)
  if os.path.exists(path):
    before, now = _flat(read_config(workdir)), _flat(settings)
    changed = [k for k in {**before, **now} if before.get(k) != now.get(k) and k not in _PLACES]
    if changed:
      key = changed[0]
      raise UserError(
        f"{workdir} holds a run with config.{key}={before.get(key)}, not {now.get(key)}"
        + (f" (and {len(changed) - 1} more differences)" if len(changed) > 1 else "")
        + "; name another --workdir, or delete this one"
      )
    require(
      read_schema(workdir) == schema,
      f"{workdir}: the run there was trained on differently prepared data; name another --workdir",
    )
  elif is_first_host():
    schema.save(os.path.join(workdir, SCHEMA))
    write_atomically(path, json.dumps(settings, indent=1))


def read_config(workdir: str) -> dict[str, Any]:
  """The settings of the run in a work directory. Raises UserError when there is none."""
  path = os.path.join(workdir, CONFIG)
  require(os.path.exists(path), f"{workdir}: no {CONFIG} here; is it the --workdir of a run?")
  try:
    with open(path, encoding="utf-8") as file:
      return json.load(file)
  except ValueError as error:
    raise UserError(f"{path}: broken ({error})") from error


def read_schema(workdir: str) -> Schema:
  """The schema that the run in a work directory encodes with."""
  return Schema.restore(os.path.join(workdir, SCHEMA))


def write_results(workdir: str, results: dict[str, Any]) -> None:
  """Writes results.json, on the first host."""
  if is_first_host():
    write_atomically(os.path.join(workdir, RESULTS), json.dumps(results, indent=1))


def read_results(workdir: str) -> dict[str, Any]:
  """What `write_results` wrote. Raises UserError when the run has not ended yet."""
  path = os.path.join(workdir, RESULTS)
  require(os.path.exists(path), f"{workdir}: no {RESULTS} here; has the run ended?")
  with open(path, encoding="utf-8") as file:
    return json.load(file)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat
