"""Search by several machines (processes) on one storage.

Each machine draws its rounds, with the pending trials of the others in view, and trains
them. The storage needs no lock but that of Optuna, which numbers trials in the order in which they
are added:

- Numbers below the budget count. Trials beyond it, added at the same time, stay open untrained.
- Each machine writes beats. Open trials of one without beats are taken up by another; should two
  train a trial, the first result stays, and that of the other is equal up to rounding.
- The settings of the search are those of the first trial of a separate study.
"""

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.storages import journal

from mmoe_jax.errors import UserError, describe, require
from mmoe_jax.files import read_json_object, write_json
from mmoe_jax.training import search_space
from mmoe_jax.training.search_study import STUDY, Settings, draw_round, open_trials, restore
from mmoe_jax.workdir import contract, preemption

MACHINE = "machine.json"
_SETTINGS = "settings"  # Name of a study, and of the attribute of its trials.
_OWNER = "machine"  # Attribute of a trial.
_BEATS = "beats "  # Followed by a machine: attribute of the study; None of one that has ended.
_BEAT_S = 10.0
_EXPIRY_S = 120.0  # Longer than the 30 s after which Optuna breaks the journal's lock.
_POLL_S = 2.0
_SETTLE_S = 1.0  # From a claim until it is read again: of machines that claim at once, one stays.
_ATTEMPTS = 5  # Machines that start at once may all create the tables.
_DRIVERS = {
  "psycopg2": "psycopg2-binary",
  "psycopg": "psycopg[binary]",
  "MySQLdb": "mysqlclient",
  "pymysql": "pymysql",
}
_JOURNAL_START = b'{"op_code":'
_FAILURES = (
  sqlalchemy.exc.SQLAlchemyError,
  optuna.exceptions.StorageInternalError,
  json.JSONDecodeError,
)


@contextlib.contextmanager
def open_study(storage: str) -> Iterator[optuna.Study]:
  """Opens the study in a storage that machines share.

  Args:
    storage: path of a journal file, or the URL of a database, as SQLAlchemy takes it.

  Raises:
    UserError: for a wrong URL, and if the storage cannot be read or written, also later.
    OSError: if the journal cannot be opened.
  """
  require(bool(storage), "--storage: must be the path of a journal file, or a URL of a database")
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  is_url = "://" in storage
  name = _parse(storage) if is_url else storage
  try:
    opened = _open_database(storage) if is_url else _open_journal(storage)
  except ImportError as error:  # Optuna's has the one that names the module as its cause.
    module = getattr(error.__cause__ or error, "name", None)
    package = _DRIVERS.get(str(module), module)
    raise UserError(
      f"--storage={name}: needs a package; pip install '{package}', or use a journal file"
    ) from error
  except (*_FAILURES, ValueError, KeyError, TypeError) as error:
    raise _failure(name, error) from error
  try:
    yield _create_study(opened, STUDY)
  except _FAILURES as error:
    raise _failure(name, error) from error
  finally:
    if isinstance(opened, optuna.storages.RDBStorage):
      opened.remove_session()
      opened.engine.dispose()


def claim(study: optuna.Study, settings: Mapping[str, Any], data_digest: str, storage: str) -> None:
  """Validates that the search in a storage has these settings; the first machine writes them.

  Raises:
    UserError: naming what differs.
  """
  own = json.loads(json.dumps({"config": settings, "data": data_digest}))
  claims = _create_study(study._storage, _SETTINGS)
  if not claims.get_trials(deepcopy=False):
    template = optuna.trial.create_trial(
      state=optuna.trial.TrialState.RUNNING, user_attrs={_SETTINGS: own}
    )
    claims.add_trial(template)
  trials = claims.get_trials(deepcopy=False)
  first = min(trials, key=lambda trial: trial.number).user_attrs[_SETTINGS]
  name = _parse(storage) if "://" in storage else storage
  differs = contract.difference(first["config"], own["config"])
  require(not differs, f"--storage={name} holds a search with {differs}; use another --storage")
  require(
    first["data"] == own["data"],
    f"--storage={name} holds a search on other prepared data; use the same on all machines",
  )


class Machine:
  """A machine of a shared search: a context that writes beats, and draws trials."""

  def __init__(self, study: optuna.Study, workdir: str):
    """Reads or creates the name of the machine.

    Args:
      study: the study that is shared.
      workdir: work directory of this machine, which is locked; it keeps the name, so that a command
        that is started again trains what it has not finished.
    """
    self._study = study
    path = os.path.join(workdir, MACHINE)
    if not os.path.exists(path):
      write_json(path, {"machine": uuid.uuid4().hex})
    self._name = str(read_json_object(path).get("machine"))
    self._beats: dict[str, tuple[Any, float]] = {}  # Machine -> last beat, and when first read.
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._write_beats, daemon=True)

  def __enter__(self) -> "Machine":
    self._beat(time.time())
    self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._end.set()
    self._thread.join(_BEAT_S)
    with contextlib.suppress(*_FAILURES, OSError):
      self._beat(None)  # The others need not wait.

  def draw(
    self,
    space: Sequence[search_space.Dimension],
    budget: int,
    round_size: int,
    seed: int,
    report: Callable[[str], None],
  ) -> list[tuple[optuna.Trial, Settings]]:
    """Returns trials for this machine to train; none if all of the budget are finished.

    Waits while all that are left are in hand on other machines.

    Args:
      space: the search space.
      budget: number of trials of all machines.
      round_size: largest number of trials to draw.
      seed: seed of the search.
      report: called with a line before waiting.
    """
    is_waiting = False
    while True:
      trials = [t for t in self._study.get_trials(deepcopy=False) if t.number < budget]
      unfinished = open_trials(trials)
      own = [t for t in unfinished if t.user_attrs.get(_OWNER) == self._name]
      if own:
        return restore(self._study, own, space)
      abandoned = self._abandoned(unfinished)[:round_size]
      if abandoned:
        report(f"taking up {len(abandoned)} trials of a machine that has ended")
        for trial in abandoned:
          with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._study._storage.set_trial_user_attr(trial._trial_id, _OWNER, self._name)
        time.sleep(_SETTLE_S)
      elif len(trials) < budget:
        size = min(round_size, budget - len(trials))
        # The machine is part of the seed: machines that draw at once draw different trials.
        entropy = (seed, len(trials), int(self._name[:8], 16))
        for template in draw_round(trials, space, size, entropy, {_OWNER: self._name}):
          self._study.add_trial(template)
      elif not unfinished:
        return []
      else:
        if not is_waiting:
          report(f"waiting for {len(unfinished)} trials of other machines")
        is_waiting = True
        time.sleep(_POLL_S)
        preemption.stop_if_requested()

  def _abandoned(
    self, trials: Sequence[optuna.trial.FrozenTrial]
  ) -> list[optuna.trial.FrozenTrial]:
    """Returns the trials of machines without beats, by this machine's clock."""
    attributes, now, found = self._study.user_attrs, time.monotonic(), []
    for trial in trials:
      owner = str(trial.user_attrs.get(_OWNER))
      beat = attributes.get(_BEATS + owner)
      if owner not in self._beats or self._beats[owner][0] != beat:
        self._beats[owner] = (beat, now)
      if beat is None or now - self._beats[owner][1] > _EXPIRY_S:
        found.append(trial)
    return found

  def _beat(self, value: float | None) -> None:
    self._study.set_user_attr(_BEATS + self._name, value)

  def _write_beats(self) -> None:
    while not self._end.wait(_BEAT_S):
      # The main thread reports a storage that fails.
      with contextlib.suppress(*_FAILURES, OSError):
        self._beat(time.time())


class _Journal(journal.JournalFileBackend):
  """Journal file that outlives a process that was killed within a line.

  Optuna appends to such a line, and can then read no later one.
  """

  def __init__(self, path: str):
    """Opens a journal, which is created if absent."""
    self._own_path = path
    self._own_lock = journal.JournalFileOpenLock(path)
    super().__init__(path, self._own_lock)

  def append_logs(self, logs: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
    self._own_lock.acquire()
    try:
      _remove_partial_line(self._own_path)
      # Appended, because a process that lost its lock must not overwrite the lines of others.
      with open(self._own_path, "ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    finally:
      # Another machine breaks the lock of one that was stopped for 30 s.
      with contextlib.suppress(RuntimeError):
        self._own_lock.release()


def _remove_partial_line(path: str) -> None:
  """Removes a last line that has no end."""
  with open(path, "r+b") as file:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read(1) in (b"", b"\n"):
      return
    file.seek(0)
    file.truncate(file.read(size).rfind(b"\n") + 1)


def _open_journal(path: str) -> optuna.storages.BaseStorage:
  folder = os.path.dirname(os.path.abspath(path))
  require(
    os.path.isdir(folder),
    f"--storage={path}: the folder {folder} does not exist; create it, or mount it on this machine",
  )
  with open(path, "a+b") as file:  # Also a journal that exists must be writable.
    file.seek(0)
    start = file.read(len(_JOURNAL_START))
  require(
    _JOURNAL_START.startswith(start),
    f"--storage={path}: is not a journal file of Optuna; use another file",
  )
  return optuna.storages.JournalStorage(_Journal(path))


def _open_database(url: str) -> optuna.storages.BaseStorage:
  # Connections may be idle for the hours of a population.
  options: dict[str, Any] = {"pool_pre_ping": True}
  if url.startswith("sqlite"):
    options["connect_args"] = {"timeout": 60}
  for attempt in range(_ATTEMPTS):
    try:
      storage = optuna.storages.RDBStorage(url, engine_kwargs=options)
      _create_study(storage, STUDY)
      return storage
    except _FAILURES as error:
      at_once = any(text in str(error) for text in ("already exists", "UNIQUE", "Duplicate"))
      if attempt == _ATTEMPTS - 1 or not at_once:
        raise
      time.sleep(0.2 * (attempt + 1))
  raise AssertionError


def _create_study(storage: optuna.storages.BaseStorage, name: str) -> optuna.Study:
  return optuna.create_study(
    storage=storage, study_name=name, direction="maximize", load_if_exists=True
  )


def _parse(url: str) -> str:
  """Returns the URL of a database for messages, without its password."""
  try:
    parsed = sqlalchemy.engine.make_url(url)
    parsed.get_dialect()
  except sqlalchemy.exc.NoSuchModuleError as error:
    raise UserError(
      f"--storage={url.partition('://')[0]}://…: is no kind of database that SQLAlchemy supports; "
      "use sqlite:///FILE, postgresql://…, mysql://…, or the path of a journal file"
    ) from error
  except (sqlalchemy.exc.ArgumentError, ValueError) as error:
    raise UserError(
      f"--storage={url.partition('://')[0]}://…: is not a URL of a database; "
      "must be such as sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
    ) from error
  is_memory = parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:")
  require(not is_memory, f"--storage={url}: is in memory; use sqlite:///FILE")
  return parsed.render_as_string(hide_password=True)


def _failure(name: str, error: BaseException) -> UserError:
  if isinstance(error, UserError):
    return error
  cause = getattr(error, "orig", None) or error
  while cause.__cause__ is not None:
    cause = cause.__cause__
  cause = getattr(cause, "orig", None) or cause
  if isinstance(cause, json.JSONDecodeError | KeyError | TypeError) or "log format" in str(cause):
    return UserError(f"--storage={name}: is not a journal file of Optuna; use another file")
  return UserError(f"--storage={name}: cannot be used: {describe(cause)}")
