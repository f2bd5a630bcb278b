"""Work directories in object storage, with a server on loopback: states, uploads, locks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mmoe_jax import data
from mmoe_jax.data import locations
from mmoe_jax.errors import SaveError, UserError
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.training import loop
from mmoe_jax.workdir import checkpoint, contract, preemption, remote, remote_lock, remote_state
from tests import ROOT
from tests.commands import environment, run

pytestmark = pytest.mark.usefixtures("_shared_programs")


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch):
  monkeypatch.setattr(remote, "_POLL_SECONDS", 0.02)
  monkeypatch.setattr(remote, "_PAUSES_SECONDS", (0.01, 0.01))
  monkeypatch.setattr(remote_lock, "_SETTLE_SECONDS", 0.01)


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """Returns a function that makes this process one on another machine, by its name."""

  def become(name: str) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    return str(tmp_path / name)

  become("first")
  return become


@pytest.fixture
def address(bucket, request) -> str:
  """Returns a work directory of the test's own."""
  return f"{bucket}/runs/{request.node.name}"


class Storage:
  """Transfers of locations, counted; they fail from a number of uploads on."""

  def __init__(self, monkeypatch):
    self.uploaded, self.downloaded, self.allowed = [], [], None
    for name in ("upload", "download"):
      monkeypatch.setattr(locations, name, getattr(self, name)(getattr(locations, name)))

  def upload(self, original):
    def counted(source, target):
      if not target.endswith(remote_lock.NAME):
        if self.allowed == 0:
          raise UserError(f"{target}: cannot be reached")
        self.allowed = None if self.allowed is None else self.allowed - 1
        self.uploaded.append(target)
      original(source, target)

    return counted

  def download(self, original):
    def counted(source, target):
      self.downloaded.append(source)
      original(source, target)

    return counted


@pytest.fixture
def storage(monkeypatch) -> Storage:
  return Storage(monkeypatch)


def write_checkpoint(folder: str, epoch: int, text: str = "") -> None:
  """Writes files that look like a checkpoint, and removes the one two epochs before."""
  path = os.path.join(folder, contract.CHECKPOINTS, str(epoch))
  os.makedirs(f"{path}.tmp/state")
  for name in ("state/a", "state/b", "manifest"):
    with open(f"{path}.tmp/{name}", "w", encoding="utf-8") as file:
      file.write(f"{name} of {epoch} {text}")
  with open(os.path.join(folder, "metrics.jsonl"), "a", encoding="utf-8") as file:
    file.write(f'{{"epoch": {epoch}}}\n')
  os.rename(f"{path}.tmp", path)
  shutil.rmtree(os.path.join(os.path.dirname(path), str(epoch - 2)), ignore_errors=True)


def contents(folder: str) -> dict[str, str]:
  found = {}
  for name in remote_state.list_files(folder):
    with open(os.path.join(folder, name), encoding="utf-8") as file:
      found[name] = file.read()
  return found


def _train(address: str, epoch: int = 0, before=lambda: None, after=lambda: None) -> str:
  """Opens a work directory, and writes one checkpoint there."""
  with remote.work_directory(address) as folder:
    before()
    if epoch:
      write_checkpoint(folder, epoch)
    after()
  return folder


def wait_for_epoch(address: str, epoch: int, scratch: str) -> None:
  deadline = time.monotonic() + 30
  while (state := remote_state.read(address, scratch)) is None or state.epoch < epoch:
    assert time.monotonic() < deadline
    time.sleep(0.01)


class Fails:
  """Tracker that waits until an epoch is uploaded, and then lets uploads fail."""

  def __init__(self, address, storage, allowed, scratch):
    self.address, self.storage, self.allowed, self.scratch = address, storage, allowed, scratch

  def log_settings(self, run):
    del run

  def log_metrics(self, record):
    if record["epoch"] == 3:
      wait_for_epoch(self.address, 2, self.scratch)
      self.storage.allowed = self.allowed

  def end(self, results):
    del results


def test_a_run_resumes_elsewhere_bitwise_identically_after_uploads_failed(
  prepared, config, address, machine, storage, tmp_path, capsys
):
  config.train.epochs, config.checkpoint.every_epochs = 4, 1
  loop.train_and_evaluate(config, str(tmp_path / "local"))
  tracker = Fails(address, storage, 5, str(tmp_path / "marker"))
  with (
    pytest.raises(SaveError, match=r"cannot upload the last state .* holds everything"),
    remote.work_directory(address) as workdir,
  ):
    results = loop.train_and_evaluate(config, workdir, [tracker])
  assert results == contract.read_results(workdir)  # Training ended in spite of that.
  storage.allowed = None
  machine("second")
  with remote.work_directory(address) as elsewhere:
    assert contract.saved_epochs(elsewhere) == [1, 2]
    loop.train_and_evaluate(config, elsewhere)
  assert elsewhere != workdir
  machine("third")
  expected = checkpoint.read_arrays(str(tmp_path / "local"))
  found = checkpoint.read_arrays(remote.local_copy(address))
  assert expected.keys() == found.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(array, found[name], name)
  schema, splits = data.load(prepared, **config.data)
  here, there = Predictor(str(tmp_path / "local")), Predictor(address)
  assert there.schema == schema
  for name, scores in here.score(splits["test"].features).items():
    np.testing.assert_array_equal(scores, there.score(splits["test"].features)[name])
  # The first machine is behind nothing: it has the end of the run.
  machine("first")
  storage.downloaded.clear()
  with remote.work_directory(address):
    pass
  assert [os.path.basename(path) for path in storage.downloaded] == [remote_state.MARKER]


def test_only_changes_are_uploaded_and_objects_of_older_states_removed(
  address, machine, storage, tmp_path
):
  with remote.work_directory(address) as folder:
    for epoch in (1, 2, 3):
      write_checkpoint(folder, epoch)
      wait_for_epoch(address, epoch, str(tmp_path / "marker"))
  files = [path for path in storage.uploaded if not path.endswith(remote_state.MARKER)]
  assert len(files) == len(set(files)) == 3 * 3 + 3
  state = remote_state.read(address, str(tmp_path / "marker"))
  names = locations.list_names(f"{address}/{remote_state.FILES}")
  assert names == sorted(state.objects().values())
  assert sorted(state.files) == sorted(contents(folder))
  assert len(names) == 2 * 3 + 1
  assert not locations.exists(f"{address}/{remote_lock.NAME}")
  root = os.path.dirname(folder)
  assert not os.path.exists(os.path.join(root, "snapshot"))
  machine("second")
  assert contents(remote.local_copy(address)) == contents(folder)


@pytest.mark.parametrize("allowed", [0, 2, 4])
def test_a_failure_between_uploads_leaves_the_state_before(
  address, machine, storage, tmp_path, capsys, allowed
):
  folder = _train(address, 1)
  before = contents(folder)
  capsys.readouterr()
  shown = []

  def wait_for_warning() -> None:
    deadline = time.monotonic() + 30
    while not any("cannot upload a save" in text for text in shown):
      assert time.monotonic() < deadline
      time.sleep(0.01)
      shown.append(capsys.readouterr().err)

  with pytest.raises(SaveError):
    _train(address, 2, lambda: setattr(storage, "allowed", allowed), wait_for_warning)
  assert "".join([*shown, capsys.readouterr().err]).count("warning:") == 1
  storage.allowed = None
  machine("second")
  assert contents(remote.local_copy(address)) == before
  machine("first")
  with remote.work_directory(address) as folder:
    assert contract.saved_epochs(folder) == [1, 2]
  machine("second")
  assert contents(remote.local_copy(address)) == contents(folder)


def test_the_next_save_tries_again(address, machine, storage, tmp_path, capsys):
  with remote.work_directory(address) as folder:
    storage.allowed = 1
    write_checkpoint(folder, 1)
    while "cannot upload a save" not in capsys.readouterr().err:
      time.sleep(0.01)
    storage.allowed = None
    write_checkpoint(folder, 2)
    wait_for_epoch(address, 2, str(tmp_path / "marker"))
  # The file that had arrived was not sent again.
  assert len(storage.uploaded) == len(set(storage.uploaded))


def test_one_process_at_a_time(address, machine, monkeypatch):
  with remote.work_directory(address) as folder:
    write_checkpoint(folder, 1)
    with pytest.raises(UserError, match="another process is training"):
      _train(address, 2)
    machine("second")
    with pytest.raises(UserError, match=rf"host .*, process {os.getpid()}, 0 s ago") as caught:
      _train(address)
    assert f"remove {address}/{remote_lock.NAME}" in str(caught.value)
  monkeypatch.setattr(remote_lock, "STALE_SECONDS", -1.0)
  machine("first")

  def take() -> None:
    scratch = os.path.join(machine("second"), "lock")
    remote_lock.Lock(address, "another folder", scratch).acquire()  # It is stale by now.

  with pytest.raises(SaveError, match="another process is training there now"):
    _train(address, 2, take)
  machine("third")
  assert contract.saved_epochs(remote.local_copy(address)) == [1]


def test_a_lock_is_renewed_and_one_of_the_same_folder_is_void(address, machine, monkeypatch):
  monkeypatch.setattr(remote_lock, "RENEW_SECONDS", 0.02)
  path = f"{address}/{remote_lock.NAME}"
  with remote.work_directory(address) as folder:
    first = json.loads(locations.read_text(path))["time"]
    deadline = time.monotonic() + 30
    while json.loads(locations.read_text(path))["time"] == first:
      assert time.monotonic() < deadline
    left = str(folder) + ".lock"
    locations.download(path, left)
  locations.upload(left, path)  # As after a kill.
  with remote.work_directory(address):
    pass
  locations.upload(left, path)
  machine("second")
  with pytest.raises(UserError, match="another process is training there"):
    _train(address)


def test_a_download_that_was_interrupted_is_completed(address, machine, monkeypatch):
  folder = _train(address, 1)
  machine("second")
  original = locations.download

  def interrupted(source, target):
    if "/state/b" in source:
      raise KeyboardInterrupt
    original(source, target)

  monkeypatch.setattr(locations, "download", interrupted)
  with pytest.raises(KeyboardInterrupt):
    _train(address)
  monkeypatch.setattr(locations, "download", original)
  with remote.work_directory(address) as copy:
    assert contents(copy) == contents(folder)


def test_an_older_folder_gets_the_newer_state(address, machine, storage):
  folder = _train(address, 1)
  machine("second")
  with remote.work_directory(address) as other:
    write_checkpoint(other, 2)
    write_checkpoint(other, 3)
  machine("first")
  storage.downloaded.clear()
  with remote.work_directory(address):
    assert contents(folder) == contents(other)
    assert contract.saved_epochs(folder) == [2, 3]
  assert len(storage.downloaded) == 2 + 2 * 3 + 1  # Marker twice, checkpoints, metrics.


def test_what_was_removed_or_never_uploaded_is_not_guessed(address, machine, storage):
  _train(address, 1)
  locations.remove(f"{address}/{remote_state.MARKER}")
  with pytest.raises(UserError, match=r"contains no state of a run any more, but .* does"):
    _train(address)
  machine("second")
  storage.allowed = 0
  with pytest.raises(SaveError):
    _train(address, 1)
  storage.allowed = None
  machine("third")
  _train(address, 1)
  machine("second")
  with pytest.raises(UserError, match=r"contains another run than .*, which was never uploaded"):
    _train(address)


def test_an_interrupt_does_not_wait_and_a_fault_does(address, machine, storage, monkeypatch):
  monkeypatch.setattr(remote, "_POLL_SECONDS", 60.0)
  folder = _train(address)

  def interrupt() -> None:
    write_checkpoint(folder, 1)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    _train(address, 2, interrupt)
  assert not storage.uploaded
  assert not locations.exists(f"{address}/{remote_lock.NAME}")
  for error, epoch in ((UserError("loss is not finite"), 2), (preemption.Preempted(), 3)):
    machine("first")
    with pytest.raises(type(error)), remote.work_directory(address):
      raise error
    machine("second")
    assert contents(remote.local_copy(address)) == contents(folder)
    write_checkpoint(folder, epoch)


def test_reading_follows_a_state_that_is_replaced_meanwhile(address, machine, monkeypatch):
  folder = _train(address, 1)
  original = remote_state.download
  calls = []

  def replaced(*arguments):
    calls.append(arguments)
    if len(calls) == 1:
      machine("first")
      with remote.work_directory(address):
        for epoch in (2, 3):
          write_checkpoint(folder, epoch)
      machine("second")
    return original(*arguments)

  machine("second")
  monkeypatch.setattr(remote_state, "download", replaced)
  assert contents(remote.local_copy(address)) == contents(folder)
  assert len(calls) == 2


def test_damage_and_wrong_addresses_are_one_line(address, machine, tmp_path):
  _train(address, 1)
  state = remote_state.read(address, str(tmp_path / "marker"))
  (tmp_path / "other").write_text("other")
  name = state.objects()["checkpoints/1/state/a"]
  locations.upload(str(tmp_path / "other"), f"{address}/{remote_state.FILES}/{name}")
  with pytest.raises(UserError, match=r"state/a.*changed or damaged since it was written"):
    remote.local_copy(address)
  marker = (tmp_path / "marker").read_text()
  (tmp_path / "marker").write_text(marker.replace("state/a", "../../a"))
  locations.upload(str(tmp_path / "marker"), f"{address}/{remote_state.MARKER}")
  with pytest.raises(UserError, match="changed or damaged"):
    remote.local_copy(address)
  with pytest.raises(UserError, match="contains no saved state of a run"):
    Predictor(f"{address}/none")
  with pytest.raises(UserError, match="must be a folder on this machine"):
    contract.lock(address).__enter__()


def _killed(prepared: str, address: str, cache: str) -> int:
  """Trains in a process that is killed in the middle of an object of the second state."""
  program = f"""
import os, signal, sys
from mmoe_jax.data import locations
from mmoe_jax import main, commands
from mmoe_jax.workdir import remote
remote._POLL_SECONDS = 0.01
original, markers, sent = locations.upload, [], []
def upload(source, target):
  if markers and '/checkpoints/' in target:
    sent.append(target)
    if len(sent) == 3:
      system, inner = locations._filesystem(target)
      with open(source, 'rb') as file:
        system.open_output_stream(inner).write(file.read()[:10])
      os.kill(os.getpid(), signal.SIGKILL)
  original(source, target)
  if target.endswith('state.json'):
    markers.append(target)
locations.upload = upload
sys.argv = ['main', '--config', 'configs/smoke.py', '--workdir', {address!r},
  '--config.data_dir={prepared}', '--config.train.epochs=60']
commands.run(main.main, resumes=True)
"""
  words = [sys.executable, "-c", program]
  return subprocess.run(words, cwd=ROOT, env=environment(XDG_CACHE_HOME=cache)).returncode


@pytest.mark.slow
def test_a_killed_command_resumes_on_another_machine(prepared, address, machine, tmp_path):
  settings = (f"--config.data_dir={prepared}", "--config.train.epochs=60")
  smoke_run = ("--config", "configs/smoke.py", *settings, "--workdir")
  assert _killed(prepared, address, machine("first")) == -signal.SIGKILL
  epoch = remote_state.read(address, str(tmp_path / "marker")).epoch
  assert 0 < epoch < 60
  lock = f"{address}/{remote_lock.NAME}"
  cache = machine("second")
  refused = run("mmoe_jax.main", *smoke_run, address, XDG_CACHE_HOME=cache)
  assert refused.returncode == 2
  assert "another process is training there" in refused.stderr
  locations.remove(lock)
  done = run("mmoe_jax.main", *smoke_run, address, XDG_CACHE_HOME=cache)
  assert done.returncode == 0, done.stderr
  assert f"epoch {epoch + 1}/60" in done.stderr
  assert f"epoch {epoch}/60" not in done.stderr
  local = str(tmp_path / "local")
  assert run("mmoe_jax.main", *smoke_run, local).returncode == 0
  machine("third")
  expected, found = (checkpoint.read_arrays(remote.local_copy(w)) for w in (local, address))
  for name, array in expected.items():
    np.testing.assert_array_equal(array, found[name], name)
  report = run("mmoe_jax.report", "--workdir", address)
  assert report.returncode == 0, report.stderr
  assert f"work directory: {address}" in report.stdout
