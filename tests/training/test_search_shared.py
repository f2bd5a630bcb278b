"""Search by several machines on one storage: budget, rankings, machines that end, refusals."""

import os
import signal
import subprocess
import sys
import threading
import time

import optuna
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from mmoe_jax.config import override
from mmoe_jax.errors import UserError, describe
from mmoe_jax.training import search, search_shared
from tests import ROOT
from tests.commands import environment, run
from tests.training import test_search
from tests.training.test_search import RATE, SPACE, Trainer, drawn, run_search

FILES = (search.TRIALS_CSV, search.TRIALS_MD, search.BEST)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
  event.listen(Engine, "connect", test_search.without_waiting)
  monkeypatch.setattr(search_shared.os, "fsync", lambda number: None)
  for name, value in {"_POLL_S": 0.01, "_SETTLE_S": 0.0, "_BEAT_S": 0.05}.items():
    monkeypatch.setattr(search_shared, name, value)
  yield
  event.remove(Engine, "connect", test_search.without_waiting)


@pytest.fixture(params=["journal", "sqlite"])
def storage(request, tmp_path):
  return str(tmp_path / "j") if request.param == "journal" else f"sqlite:///{tmp_path}/s.db"


def texts(workdir):
  return [(workdir / name).read_text() for name in FILES]


def end_without_notice(monkeypatch):
  """Lets a machine end as by SIGKILL: it cannot write that it ends."""
  monkeypatch.setattr(search_shared.Machine, "__exit__", lambda self, *_: self._end.set())


def test_machines_share_the_budget_and_end_with_equal_results(
  config, tmp_path, monkeypatch, storage
):
  together = threading.Barrier(2)

  class Both(Trainer):
    def __call__(self, *args, **options):
      if not self.calls:
        together.wait(20)  # Both machines have trials in hand.
      return super().__call__(*args, **options)

  trainer, results = Both(monkeypatch), {}
  space = {key: SPACE[key] for key in list(SPACE)[:2]}

  def work(name):
    results[name] = run_search(config, tmp_path / name, 9, space, storage=storage)

  other = threading.Thread(target=work, args=("b",))
  other.start()
  work("a")
  other.join()
  assert results["a"] == results["b"]
  assert sorted(drawn(results["a"])) == list(range(9))
  assert len({tuple(t["settings"].values()) for t in results["a"]}) == 9
  assert sum(len(members) for _, members in trainer.calls) == 9  # None twice.
  assert texts(tmp_path / "a") == texts(tmp_path / "b")


def test_results_have_the_form_of_one_machine_and_a_larger_budget_continues(
  config, tmp_path, monkeypatch
):
  journal, trainer = str(tmp_path / "j"), Trainer(monkeypatch)
  finished = run_search(config, tmp_path / "a", 3, storage=journal)
  one = run_search(config, tmp_path / "one", 3)
  assert [list(trial) for trial in finished] == [list(trial) for trial in one]
  headers = [(tmp_path / n / search.TRIALS_CSV).read_text().splitlines()[0] for n in ("a", "one")]
  assert headers[0] == headers[1]
  trainer.calls.clear()
  # A machine that comes late trains nothing.
  assert run_search(config, tmp_path / "c", 3, storage=journal) == finished
  assert trainer.calls == []
  more = drawn(run_search(config, tmp_path / "c", 5, storage=journal))
  assert sorted(more) == list(range(5))
  assert all(more[number] == trial for number, trial in drawn(finished).items())


@pytest.mark.parametrize("is_killed", [True, False])
def test_trials_of_a_machine_that_ends_are_taken_up(config, tmp_path, monkeypatch, is_killed):
  journal, lines = str(tmp_path / "j"), []
  first = Trainer(monkeypatch, stop_at=1)
  with monkeypatch.context() as patch:
    if is_killed:
      end_without_notice(patch)
    with pytest.raises(KeyboardInterrupt):
      run_search(config, tmp_path / "a", 8, storage=journal)
  monkeypatch.setattr(search_shared, "_EXPIRY_S", 0.2 if is_killed else 1000.0)
  second = Trainer(monkeypatch)
  finished = run_search(config, tmp_path / "b", 8, storage=journal, report=lines.append)
  assert any(line.startswith("taking up ") for line in lines)
  assert sorted(drawn(finished)) == list(range(8))
  assert sum(len(members) for t in (first, second) for _, members in t.calls) == 8
  assert run_search(config, tmp_path / "a", 8, storage=journal) == finished
  assert texts(tmp_path / "a") == texts(tmp_path / "b")


def test_a_machine_that_starts_again_trains_its_open_trials_at_once(config, tmp_path, monkeypatch):
  journal, lines, folders = str(tmp_path / "j"), [], []

  class Noting(Trainer):
    def __call__(self, config, members, workdir, *args, **options):
      folders.append(workdir)
      return super().__call__(config, members, workdir, *args, **options)

  with monkeypatch.context() as patch:
    end_without_notice(patch)
    Noting(patch, stop_at=0)
    with pytest.raises(KeyboardInterrupt):
      run_search(config, tmp_path / "a", 4, storage=journal)
  with search_shared.open_study(journal) as study:
    before = [trial.params for trial in study.get_trials()]
  Noting(monkeypatch)
  finished = run_search(config, tmp_path / "a", 4, storage=journal, report=lines.append)
  assert folders[0] == folders[1]  # The population there resumes.
  assert not any("taking up" in line or "waiting" in line for line in lines)
  by_number = [s for _, (s, _) in sorted(drawn(finished).items())]
  assert [s[RATE] for s in by_number] == [params[test_search.BOTH] for params in before]


def test_trials_beyond_the_budget_wait_for_a_larger_one(config, tmp_path, monkeypatch):
  """Machines that draw at once add too many trials."""
  journal, add = str(tmp_path / "j"), optuna.Study.add_trial

  def add_twice(study, trial):
    add(study, trial)
    if study.study_name == "search":
      add(study, trial)

  with monkeypatch.context() as patch:
    patch.setattr(optuna.Study, "add_trial", add_twice)
    Trainer(patch)
    assert sorted(drawn(run_search(config, tmp_path / "a", 4, storage=journal))) == [0, 1, 2, 3]
  Trainer(monkeypatch)
  finished = run_search(config, tmp_path / "b", 8, storage=journal)
  assert sorted(drawn(finished)) == list(range(8))


def test_of_two_results_of_a_trial_the_first_stays(config, tmp_path, monkeypatch):
  """A machine that was stopped for long finds its trials finished by another."""
  journal = str(tmp_path / "j")

  class Stalled(Trainer):
    def __call__(self, *args, **options):
      results = super().__call__(*args, **options)
      with search_shared.open_study(journal) as study:
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
          other = {"value": 0.25, "note": "", "validation": results[0]["validation"]}
          search.tell(study, optuna.Trial(study, trial._trial_id), other)
      return results

  Stalled(monkeypatch)
  finished = run_search(config, tmp_path / "a", 4, storage=journal)
  assert [t["value"] for t in finished] == [0.25] * 4


def test_another_search_on_the_storage_is_refused_by_name(config, tmp_path, monkeypatch):
  Trainer(monkeypatch)
  journal, other = str(tmp_path / "j"), tmp_path / "b"
  run_search(config, tmp_path / "a", 2, storage=journal)
  with pytest.raises(UserError, match=r"j holds a search with config\.search\.seed=0, not 1"):
    run_search(config, other, 2, seed=1, storage=journal)
  changed = SPACE | {"model.expert_dropout": ("uniform", 0.0, 0.4)}
  with pytest.raises(UserError, match=r"config\.search\.space\..*expert_dropout"):
    run_search(config, other, 2, changed, storage=journal)
  with pytest.raises(UserError, match=r"config\.train\.epochs=3, not 9; use another --storage"):
    run_search(override(config, {"train.epochs": 9}), other, 2, storage=journal)
  with monkeypatch.context() as patch:
    patch.setattr(search.data, "verify", lambda folder: "other rows")
    with pytest.raises(UserError, match="holds a search on other prepared data"):
      run_search(config, other, 2, storage=journal)
  assert not os.path.exists(other / "config.json")
  with pytest.raises(UserError, match="is of a search with --storage; give it"):
    run_search(config, tmp_path / "a", 2)
  run_search(config, tmp_path / "one", 2)
  with pytest.raises(UserError, match="is of a search without --storage"):
    run_search(config, tmp_path / "one", 2, storage=journal)


def test_a_journal_outlives_a_process_that_was_killed_within_a_line(config, tmp_path, monkeypatch):
  Trainer(monkeypatch)
  journal = tmp_path / "j"
  run_search(config, tmp_path / "a", 2, storage=str(journal))
  with open(journal, "ab") as file:
    file.write(b'{"op_code":4,"worker')
  run_search(config, tmp_path / "b", 4, storage=str(journal))
  finished = run_search(config, tmp_path / "a", 4, storage=str(journal))
  assert sorted(drawn(finished)) == [0, 1, 2, 3]
  assert b'"worker{' not in journal.read_bytes()


@pytest.mark.parametrize(
  ("storage", "message"),
  [
    ("", "must be the path of a journal file"),
    ("nope://host", r"nope://…: is no kind of database"),
    ("sqlite://", "is in memory; use sqlite:///FILE"),
    ("sqlite:///{}/none/s.db", "cannot be used: unable to open database file"),
    ("sqlite:///file:{}/ro.db?mode=ro&uri=true", "cannot be used: .*(readonly|unable to open)"),
    ("postgresql://u:secret@host:port/x", "is not a URL of a database"),
    ("mysql+none://u:secret@host/x", "is no kind of database"),
    ("{}/none/j", "folder .*none does not exist; create it, or mount it"),
    ("{}", "Is a directory"),
    ("{}/notes.json", "is not a journal file of Optuna"),
  ],
)
def test_a_storage_that_cannot_be_used_is_one_line(tmp_path, storage, message):
  (tmp_path / "notes.json").write_text('{"a": 1}')
  (tmp_path / "ro.db").write_text("")
  with (
    pytest.raises((UserError, OSError)) as caught,
    search_shared.open_study(storage.format(tmp_path)),
  ):
    pass
  line = describe(caught.value)
  assert "secret" not in line
  with pytest.raises(AssertionError, match=message):
    raise AssertionError(line)
  assert (tmp_path / "notes.json").read_text() == '{"a": 1}'


def test_a_package_that_a_url_needs_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "pymysql", None)
  with (
    pytest.raises(UserError, match=r"u:\*\*\*@host/x: needs a package; pip install 'pymysql'"),
    search_shared.open_study("mysql+pymysql://u:secret@host/x"),
  ):
    pass


MACHINE = """
import sys
from configs import smoke
from mmoe_jax.training import search, search_shared
from tests.training import test_search

if __name__ == "__main__":
  search_shared._BEAT_S, search_shared._EXPIRY_S, search_shared._POLL_S = 0.5, 4.0, 0.2
  config = smoke.get_config()
  config.data_dir, config.train.epochs = sys.argv[1], int(sys.argv[4])
  config.train.devices = 1
  space = {key: test_search.SPACE[key] for key in list(test_search.SPACE)[:2]}
  search.run_search(config, space, 10, sys.argv[3], round_size=2, storage=sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_process_finishes_the_trials_of_one_that_is_killed(prepared, tmp_path, kind):
  storage = str(tmp_path / "j") if kind == "journal" else f"sqlite:///{tmp_path}/s.db"

  def start(name):
    words = [sys.executable, "-c", MACHINE, prepared, storage, str(tmp_path / name), "3"]
    settings = environment(PYTHONPATH=ROOT)
    return subprocess.Popen(words, cwd=ROOT, env=settings, stdout=subprocess.PIPE, text=True)

  killed, other = start("a"), start("b")
  limit = time.monotonic() + 120
  while not list((tmp_path / "a").glob("populations/*/config.json")):
    assert time.monotonic() < limit
    assert killed.poll() is None
    time.sleep(0.02)
  killed.send_signal(signal.SIGKILL)
  assert killed.wait() == -signal.SIGKILL
  killed.stdout.close()
  printed = other.communicate(timeout=240)[0]
  assert other.returncode == 0
  assert "taking up" in printed
  assert "10 of 10 trials; best" in printed
  again = start("a")
  again.communicate(timeout=120)
  assert again.returncode == 0
  assert texts(tmp_path / "a") == texts(tmp_path / "b")
  assert len(texts(tmp_path / "a")[0].splitlines()) == 11


def test_wrong_use_ends_in_one_line(prepared, tmp_path):
  done = run(
    *("mmoe_jax.tune", "--config", "configs/smoke.py", "--trials", "2"),
    *("--workdir", str(tmp_path / "w"), "--space", "model.experts=int,2,3"),
    *(f"--config.data_dir={prepared}", "--storage", str(tmp_path / "none" / "journal")),
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert "none does not exist; create it, or mount it" in line
  assert os.listdir(tmp_path) == []
