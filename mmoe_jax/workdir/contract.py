"""Contract of a work directory: its files, and that they belong to one run."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from mmoe_jax import digests
from mmoe_jax.config import flatten
from mmoe_jax.data import MANIFEST, Schema, locations, restore_schema, save_schema
from mmoe_jax.errors import UserError, require
from mmoe_jax.files import parse, read_json_object, write_json
from mmoe_jax.workdir import differences

CONFIG = "config.json"
SCHEMA = "schema.json"
RESULTS = "results.json"
LOCK = ".lock"
CHECKPOINTS = "checkpoints"
MEMBERS = "members"  # Key of a population's config.json and results.json.
_Metrics = dict[str, float | None]


class _Results(TypedDict):
  """Entries of a run's results.json that readers rely on."""

  best_epoch: int
  epochs: int
  notes: dict[str, str]
  parameters: int
  rows_per_second: float
  train_rows: int
  wall_seconds: float
  train: _Metrics
  validation: _Metrics
  test: _Metrics


class _Member(TypedDict):
  """Entries of a member in a population's results.json; metrics unless it has an error."""

  member: dict[str, Any]
  best_epoch: int
  epochs: int
  parameters: int
  error: NotRequired[str]
  train: NotRequired[_Metrics]
  validation: NotRequired[_Metrics]
  test: NotRequired[_Metrics]


class _PopulationResults(TypedDict):
  """Entries of a population's results.json that readers rely on."""

  members: Annotated[list[_Member], msgspec.Meta(min_length=1)]
  rows_per_second: float
  train_rows: int
  wall_seconds: float


# Keys that may change when a run resumes: where data are, what is informed, and the placement on
# devices, of which neither the order of rows nor any random draw depends.
_FREE = ("data_dir", "train.trackers", "train.devices", "model.embedding_shards")
# Keys that older runs do not have, with what they did.
_ADDED = {
  "optimizer.embedding.updates": "dense",
  "model.embedding_shards": 1,
  "model.embedding_compression": "none",
  "model.embedding_rows": 0,
  "model.embedding_dtype": "float32",
  "model.batch_ensemble": 1,
}


@contextlib.contextmanager
def claim(
  workdir: str,
  config: Any,
  schema: Schema,
  devices: int,
  writes: bool,
  data_digest: str = "",
  members: Sequence[Mapping[str, Any]] | None = None,
) -> Iterator[dict[str, str]]:
  """Reserves a work directory for one run while the context lasts.

  Writes config.json and schema.json, or compares them if they exist: resuming with other settings
  would mix two runs. A lock excludes other processes; the system releases it when the process ends.

  Args:
    workdir: the directory, created if absent.
    config: settings of the run.
    schema: schema that the run encodes with.
    devices: number of devices.
    writes: whether this host writes and locks; others do nothing.
    data_digest: identifies the prepared data, see data.verify; empty for data that is in memory.
    members: settings of each member of a population.

  Yields:
    Name -> digest of what the run's checkpoints belong to; empty on hosts that do not write.

  Raises:
    UserError: if the directory belongs to another run or process.
    OSError: if it cannot be written.
  """
  _require_name(workdir)
  if not writes:
    yield {}
    return
  with lock(workdir):
    _check_or_write(workdir, config, schema, devices, members)
    yield digests_of(workdir) | ({"data": data_digest} if data_digest else {})


@contextlib.contextmanager
def lock(workdir: str) -> Iterator[None]:
  """Excludes other processes from a work directory, which is created if absent."""
  _require_name(workdir)
  os.makedirs(workdir, exist_ok=True)
  require(
    not os.path.exists(os.path.join(workdir, MANIFEST)),
    f"--workdir={workdir}: is a folder of prepared data; use another one",
  )
  # O_NOFOLLOW: a link planted in a shared folder must not choose the file that is truncated.
  path = os.path.join(workdir, LOCK)
  number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
  with os.fdopen(number, "w", encoding="utf-8") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(f"{workdir}: another process is training there") from error
    yield


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
  """Excludes other processes from a folder.

  Raises:
    BlockingIOError: if another process holds it.
  """
  number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
  try:
    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
  finally:
    os.close(number)


def saved_epochs(workdir: str) -> list[int]:
  """Returns the epochs of a work directory's checkpoints, ascending."""
  folder = os.path.join(workdir, CHECKPOINTS)
  names = os.listdir(folder) if os.path.isdir(folder) else []
  return sorted(int(name) for name in names if name.isdecimal())


def digests_of(workdir: str) -> dict[str, str]:
  """Returns file name -> digest of the files that a run's checkpoints belong to.

  Raises:
    UserError: if one is absent.
  """
  found = {}
  for name in (CONFIG, SCHEMA):
    path = os.path.join(workdir, name)
    require(
      os.path.exists(path), f"{workdir}: contains no {name}; pass the --workdir of a training run"
    )
    found[name] = digests.of_file(path)
  return found


def require_free(workdir: str, path: str) -> None:
  """Raises UserError if a path is one of a work directory's own files."""
  name = os.path.relpath(os.path.realpath(path), os.path.realpath(workdir))
  logs = ("metrics.jsonl", "metrics.csv", "trackers.json")
  own = name in (CONFIG, SCHEMA, RESULTS, LOCK, *logs)
  require(
    not own and not name.startswith(f"{CHECKPOINTS}{os.sep}"),
    f"{path}: belongs to the run in {workdir}; use another file",
  )


def require_same(workdir: str, settings: Mapping[str, Any]) -> None:
  """Validates that config.json has these settings; locations may differ.

  Raises:
    UserError: naming the keys that differ.
  """
  differs = difference(read_config(workdir), settings)
  require(not differs, f"{workdir} holds a run with {differs}; use another --workdir")


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
  """Returns how settings differ from those of an earlier run, see differences.of_settings."""
  return differences.of_settings(_ADDED | flatten(before), flatten(now), _FREE)


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
  """Writes results.json, the last file of a run, with its digest."""
  write_json(os.path.join(workdir, RESULTS), digests.seal(results))


def read_results(workdir: str) -> dict[str, Any]:
  """Reads results.json; that of a population has the results of each member under `members`.

  Raises:
    UserError: if the run has not finished, or the file is broken.
  """
  path = os.path.join(workdir, RESULTS)
  require(os.path.exists(path), f"{workdir}: contains no {RESULTS}; the run has not finished")
  results = digests.read_sealed(path)
  parse(results, _PopulationResults if MEMBERS in results else _Results, path)
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
    differs = differences.of_schemas(read_schema(workdir), schema)
    require(
      not differs,
      f"{workdir} holds a run on differently prepared data ({differs}); use another --workdir",
    )
  else:
    require(
      not saved_epochs(workdir),
      f"{path}: is missing, but there are checkpoints; restore it from a copy, or use another "
      "--workdir",
    )
    save_schema(schema, os.path.join(workdir, SCHEMA))
    write_json(path, settings)


def _require_name(workdir: str) -> None:
  require(bool(workdir), "--workdir is empty: must be a folder")
  require(
    not locations.is_remote(workdir),
    f"--workdir={workdir}: must be a folder on this machine; mmoe_jax.main and mmoe_jax.population "
    "train in object storage, Python by workdir.remote.work_directory",
  )
  path = os.path.abspath(workdir)
  require(
    path.isprintable() and path.encode("utf-8", "ignore").decode() == path,
    f"--workdir={workdir}: contains characters that cannot be used here; use another name, or set "
    "$PYTHONUTF8=1",
  )
  bad = sorted(set("[]*?") & set(path))
  require(
    not bad,
    f"--workdir={workdir}: contains '{''.join(bad)}', which the checkpoint library takes for a "
    "pattern; use another name",
  )
