"""Search: draws, training, results and messages, also after a kill."""

import csv
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys

import optuna
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from configs import smoke
from mmoe_jax.config import override
from mmoe_jax.errors import UserError
from mmoe_jax.training import search, search_space
from mmoe_jax.workdir import contract, preemption
from tests import ROOT
from tests.commands import run

RATE = "optimizer.dense.learning_rate"
BOTH = f"{RATE}+optimizer.embedding.learning_rate"
SPACE = {
  BOTH: ("log", 1e-4, 1e-1),
  "model.expert_dropout": ("uniform", 0.0, 0.5),
  "model.expert_hidden": ("choice", ((8,), (16, 8))),
}


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk():
  """Commits of a study outlive a killed process, as always, but not a power failure."""
  event.listen(Engine, "connect", without_waiting)
  yield
  event.remove(Engine, "connect", without_waiting)


def without_waiting(connection, _):
  connection.execute("PRAGMA synchronous=OFF")


class Trainer:
  """Replaces population.train_population: a known optimum, and a record of calls."""

  def __init__(self, monkeypatch, stop_at=None):
    self.calls, self._stop_at = [], stop_at
    monkeypatch.setattr(search.population, "train_population", self)

  def __call__(self, config, members, workdir, report_on, verbose):
    assert not verbose
    assert tuple(report_on) == ("validation",)
    if len(self.calls) == self._stop_at:
      raise KeyboardInterrupt
    self.calls.append((config, members))
    os.makedirs(workdir)
    return [self.result(override(config, member), member) for member in members]

  def result(self, config, member):
    away = math.log10(config.optimizer.dense.learning_rate / 1e-2) ** 2
    away += config.model.expert_dropout + 0.1 * len(config.model.expert_hidden)
    metrics = {"income_50k/auc": 0.9 - 0.1 * away, "marital_stat/auc": 0.5, "income_50k/pcoc": None}
    metrics |= {"income_50k/log_loss": away, "income_50k/auc_16_and_over": 0.1}
    # Without test metrics, which the search must not use.
    return {"member": member, "validation": metrics, "best_epoch": 2, "epochs": 3, "notes": {}}


def run_search(config, workdir, trials=12, space=SPACE, **options):
  return search.run_search(
    config, space, trials, str(workdir), **{"round_size": 4, "report": lambda line: None, **options}
  )


def drawn(finished):
  return {t["number"]: (t["settings"], t["value"]) for t in finished}


def test_a_search_learns_and_leaves_its_trials(config, tmp_path, monkeypatch):
  trainer, lines = Trainer(monkeypatch), []
  finished = run_search(config, tmp_path / "w", trials=24, report=lines.append)
  values = [t["value"] for t in finished]
  assert values == sorted(values, reverse=True)
  assert sorted(drawn(finished)) == list(range(24))
  early = max(t["value"] for t in finished if t["number"] < 8)
  assert max(values) == finished[0]["value"] > early
  for t in finished:
    own = t["settings"]
    assert own[RATE] == own["optimizer.embedding.learning_rate"]
    assert 1e-4 <= own[RATE] <= 1e-1
    expected = trainer.result(override(config, own), {})["validation"]
    assert t["validation"] == expected
    assert t["value"] == pytest.approx(expected["income_50k/auc"], abs=1e-6)
    assert (t["best_epoch"], t["epochs"], t["note"]) == (2, 3, "")
  # Populations share their shapes; their members differ in floats.
  assert sum(len(members) for _, members in trainer.calls) == 24
  assert max(len(members) for _, members in trainer.calls) > 1
  for trained, members in trainer.calls:
    assert trained.search == ()
    assert {key for m in members for key in m} == {
      RATE,
      "optimizer.embedding.learning_rate",
      "model.expert_dropout",
    }
  assert len(lines) == len(trainer.calls)
  best = finished[0]
  assert lines[-1].startswith(f"24 of 24 trials; best {best['value']:.5f} (trial {best['number']})")
  with open(tmp_path / "w" / search.TRIALS_CSV, encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  assert [int(r["trial"]) for r in rows] == [t["number"] for t in finished]
  assert float(rows[3]["value"]) == finished[3]["value"]
  assert float(rows[3][RATE]) == finished[3]["settings"][RATE]
  assert float(rows[3]["validation/income_50k/auc_16_and_over"]) == 0.1
  text = (tmp_path / "w" / search.TRIALS_MD).read_text()
  assert len(text.splitlines()) == 26
  assert f"| {best['number']} | {best['value']:.6g} |" in text.splitlines()[2]
  kept = json.loads((tmp_path / "w" / search.BEST).read_text())
  assert kept == json.loads(json.dumps(best["settings"]))
  assert os.listdir(tmp_path / "w" / "populations") == []


def test_an_interrupted_search_ends_as_an_uninterrupted_one(config, tmp_path, monkeypatch):
  whole = Trainer(monkeypatch)
  expected = drawn(run_search(config, tmp_path / "whole"))
  first = Trainer(monkeypatch, stop_at=3)
  with pytest.raises(KeyboardInterrupt):
    run_search(config, tmp_path / "w")
  second = Trainer(monkeypatch)
  assert drawn(run_search(config, tmp_path / "w")) == expected
  assert len(first.calls) + len(second.calls) == len(whole.calls)
  # With more trials it resumes; with as many as are finished it trains nothing.
  third = Trainer(monkeypatch)
  assert drawn(run_search(config, tmp_path / "w")) == expected
  assert third.calls == []
  more = drawn(run_search(config, tmp_path / "w", trials=14))
  assert len(more) == 14
  assert {n: more[n] for n in expected} == expected


@pytest.mark.parametrize("added", [1, 6])
def test_a_search_that_is_killed_while_it_draws_ends_as_an_uninterrupted_one(
  config, tmp_path, monkeypatch, added
):
  Trainer(monkeypatch)
  expected = drawn(run_search(config, tmp_path / "whole"))
  add, left = optuna.Study.add_trial, itertools.count(-added)

  def add_or_end(study, trial):
    if study.study_name == "search" and next(left) == 0:
      raise KeyboardInterrupt
    add(study, trial)

  with monkeypatch.context() as patch:
    patch.setattr(optuna.Study, "add_trial", add_or_end)
    with pytest.raises(KeyboardInterrupt):
      run_search(config, tmp_path / "w")
  (tmp_path / "w" / "populations" / "99").mkdir(parents=True)  # Of trials that are stored.
  assert drawn(run_search(config, tmp_path / "w")) == expected
  assert os.listdir(tmp_path / "w" / "populations") == []


def test_a_signal_ends_a_search_after_the_population_in_hand(config, tmp_path, monkeypatch):
  whole = Trainer(monkeypatch)
  expected = drawn(run_search(config, tmp_path / "whole"))
  first = Trainer(monkeypatch)
  monkeypatch.setattr(preemption, "requested", lambda: len(first.calls) == 2)
  with pytest.raises(preemption.Preempted):
    run_search(config, tmp_path / "w")
  assert len(first.calls) == 2
  monkeypatch.setattr(preemption, "requested", lambda: False)
  second = Trainer(monkeypatch)
  assert drawn(run_search(config, tmp_path / "w")) == expected
  assert len(second.calls) == len(whole.calls) - 2


KILLED = """
import os, signal, sys
import optuna
import pytest
from configs import smoke
from tests.training import test_search

test_search.event.listen(test_search.Engine, "connect", test_search.without_waiting)
config = smoke.get_config()
config.data_dir, config.select.tasks = sys.argv[1], ("income_50k",)
with pytest.MonkeyPatch.context() as patch:
  trainer = test_search.Trainer(patch)

  def result(config, member):
    if len(trainer.calls) == 2:  # In the middle of a population, before its results are stored.
      os.kill(os.getpid(), signal.SIGKILL)
    return test_search.Trainer.result(trainer, config, member)

  trainer.result = result
  test_search.run_search(config, sys.argv[2])
"""


def test_a_killed_search_resumes(prepared, tmp_path, monkeypatch):
  command = [sys.executable, "-c", KILLED, prepared, str(tmp_path / "w")]
  environment = {**os.environ, "PYTHONPATH": ROOT}
  done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True)
  assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
  config = override(_smoke(prepared), {"select.tasks": ("income_50k",)})
  with open(tmp_path / "w" / search.TRIALS_CSV, encoding="utf-8") as file:
    kept = {int(r["trial"]): float(r["value"]) for r in csv.DictReader(file)}
  assert 0 < len(kept) < 8
  resumed = _Forgiving(monkeypatch)
  finished = drawn(run_search(config, tmp_path / "w"))
  assert kept == {n: finished[n][1] for n in kept}
  assert sum(len(members) for _, members in resumed.calls) == 12 - len(kept)
  Trainer(monkeypatch)
  assert drawn(run_search(config, tmp_path / "whole")) == finished


class _Forgiving(Trainer):
  """Accepts the folder of a killed population, as the real one does."""

  def __call__(self, config, members, workdir, report_on, verbose):
    if os.path.exists(workdir):
      os.rmdir(workdir)
    return super().__call__(config, members, workdir, report_on, verbose)


def _smoke(prepared):
  config = smoke.get_config()
  config.data_dir = prepared
  return config


def test_trials_that_fail_are_noted_and_the_rest_go_on(config, tmp_path, monkeypatch):
  trainer, lines = Trainer(monkeypatch), []

  trained = itertools.count()

  def result(config, member):
    own, number = Trainer.result(trainer, config, member), next(trained)
    if number == 1:
      return {"member": member, "error": "the loss is not finite", "notes": {}}
    if number == 2:
      own["validation"]["income_50k/auc"] = None
    return own

  trainer.result = result
  space = SPACE | {"model.expert_dropout": ("uniform", 0.0, 1.5)}
  finished = run_search(config, tmp_path / "w", 24, space, report=lines.append)
  notes = {t["note"] for t in finished}
  assert {"", "the loss is not finite", "validation auc is undefined"} < notes
  assert any("config.model.expert_dropout = 1." in note for note in notes)
  for t in finished:
    assert (t["value"] is None) == bool(t["note"])
  failed = sum(t["value"] is None for t in finished)
  assert [t["value"] is None for t in finished] == [False] * (24 - failed) + [True] * failed
  assert f"24 of 24 trials, {failed} failed; best" in lines[-1]
  assert "the loss is not finite" in (tmp_path / "w" / search.TRIALS_MD).read_text()


def test_a_search_whose_trials_all_fail_stops_with_the_reason(config, tmp_path, monkeypatch):
  trainer = Trainer(monkeypatch)
  space = {"model.expert_dropout": ("uniform", 1.0, 2.0)}
  with pytest.raises(UserError, match=r"none of 4 trials could be trained; trial 0: config\.model"):
    run_search(config, tmp_path / "w", space=space)
  assert trainer.calls == []


def test_settings_met_before_are_not_trained_again(config, tmp_path, monkeypatch):
  trainer = Trainer(monkeypatch)
  space = {"model.expert_hidden": ("choice", ((8,), (16, 8)))}
  finished = run_search(config, tmp_path / "w", space=space)
  assert len(finished) == 12
  assert 1 <= sum(len(members) for _, members in trainer.calls) <= 2
  assert len({(t["settings"]["model.expert_hidden"], t["value"]) for t in finished}) <= 2


def test_losses_count_negative_and_tasks_are_averaged(config, tmp_path, monkeypatch):
  Trainer(monkeypatch)
  config.select.tasks = ()
  finished = run_search(config, tmp_path / "auc", 4)
  for t in finished:
    mean = (t["validation"]["income_50k/auc"] + t["validation"]["marital_stat/auc"]) / 2
    assert t["value"] == pytest.approx(mean, abs=1e-6)
  config.select.tasks, config.select.metric = ("income_50k",), "log_loss"
  finished = run_search(config, tmp_path / "loss", 4)
  losses = [t["validation"]["income_50k/log_loss"] for t in finished]
  assert losses == sorted(losses)
  assert finished[0]["value"] == pytest.approx(-losses[0], rel=1e-6)


def test_a_work_directory_takes_one_search(config, tmp_path, monkeypatch):
  Trainer(monkeypatch)
  run_search(config, tmp_path / "w", 2)
  with pytest.raises(UserError, match=r"holds a run with config\.search\.seed=0, not 1"):
    run_search(config, tmp_path / "w", 4, seed=1)
  with pytest.raises(UserError, match=r"config\.search\.space\..*expert_dropout"):
    run_search(config, tmp_path / "w", 4, SPACE | {"model.expert_dropout": ("uniform", 0.0, 0.4)})
  config.train.epochs = 9
  with pytest.raises(UserError, match=r"config\.train\.epochs=3, not 9"):
    run_search(config, tmp_path / "w", 4)
  with (
    contract.lock(str(tmp_path / "v")),
    pytest.raises(UserError, match="another process is training there"),
  ):
    run_search(config, tmp_path / "v")


def test_another_seed_draws_other_trials(config, tmp_path, monkeypatch):
  Trainer(monkeypatch)
  first, second = (run_search(config, tmp_path / str(s), 4, seed=s) for s in (0, 1))
  assert first[0]["settings"] != second[0]["settings"]


@pytest.mark.parametrize(
  ("space", "message"),
  [
    ({}, r"search space is empty; fill config\.search or give --space"),
    ({"model.expert_dropuot": ("uniform", 0.0, 1.0)}, "did you mean 'expert_dropout'"),
    ({"model.expert_dropout": ("unifrom", 0.0, 1.0)}, "'unifrom', .*did you mean 'uniform'"),
    ({"model.expert_dropout": 0.5}, "must be a tuple such as"),
    ({"model.expert_dropout": ("uniform", 0.5)}, r"must be \('uniform', LEAST, GREATEST\)"),
    ({"model.expert_dropout": ("uniform", 0.5, 0.0)}, "LEAST, GREATEST"),
    ({"model.expert_dropout": ("log", 0.0, 0.5)}, "least value must be above 0"),
    (
      {"model.experts": ("uniform", 1.0, 8.0)},
      "does not fit config.model.experts = 4; use int",
    ),
    ({"model.experts": ("int", 1.0, 8)}, "bounds must be whole"),
    ({"model.expert_dropout": ("int", 0, 1)}, "use uniform, log or choice"),
    ({"model.expert_hidden": ("choice", (16, 32))}, r"16 does not fit config.*\(8,\) \(tuple\)"),
    ({"model.expert_hidden": ("choice", (16,), (32,))}, r"\('choice', \(VALUE, VALUE, …\)\)"),
    ({"model.experts": ("choice", (2, 2))}, "must not repeat an option"),
    ({"model.experts": ("choice", (True, 2))}, "True does not fit"),
    ({"model": ("choice", (1, 2))}, r"1 does not fit config\.model"),
    ({"data.tasks": ("choice", (("income_50k",),))}, r"config\.data\.tasks must not vary"),
    ({"select.metric": ("choice", ("auc",))}, r"config\.select\.metric must not vary"),
    ({RATE: ("log", 1e-3, 1e-2), BOTH: ("log", 1e-3, 1e-2)}, f"repeats config.{RATE}"),
  ],
)
def test_wrong_spaces_are_named(config, space, message):
  with pytest.raises(UserError, match=message):
    search_space.create_space(config, space)


def test_options_take_the_type_of_the_setting(config):
  space = {"model.expert_dropout": ("choice", (0, 0.5)), "model.expert_hidden": ("choice", ([8],))}
  dropout, hidden = search_space.create_space(config, space)
  assert repr(dropout.options) == "(0.0, 0.5)"
  assert hidden.options == ((8,),)


def test_spaces_of_the_command_line():
  assert search_space.parse_space(
    ["a.b+a.c=log,1e-3,1e-2", "d=choice,(16,),(32, 8)", "e=choice,relu,silu", "f=int,2,8"]
  ) == {
    "a.b+a.c": ("log", 1e-3, 1e-2),
    "d": ("choice", ((16,), (32, 8))),
    "e": ("choice", ("relu", "silu")),
    "f": ("int", 2, 8),
  }
  for text in ("a", "a=log", "=log,1,2", "a=,"):
    with pytest.raises(UserError, match="must be KEY=KIND,VALUE,VALUE"):
      search_space.parse_space([text])
  with pytest.raises(UserError, match="must not repeat a"):
    search_space.parse_space(["a=int,1,2", "a=int,1,3"])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"trials": 0}, "--trials=0"),
    ({"round_size": 0}, "--round=0"),
    ({"seed": -1}, "--seed=-1"),
  ],
)
def test_wrong_numbers_are_refused(config, tmp_path, options, message):
  with pytest.raises(UserError, match=message):
    run_search(config, tmp_path / "w", **options)
  assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_the_printed_command_trains_the_best_trial(prepared, tmp_path):
  workdir = tmp_path / "w"
  done = run(
    *("mmoe_jax.tune", "--config", "configs/smoke.py:mmoe,protocol=paper"),
    *("--trials", "3", "--round", "3", "--workdir", str(workdir), "--config.train.devices=1"),
    *(f"--config.data_dir={prepared}", "--config.train.epochs=1", "--config.train.batch_size=512"),
    *("--space", f"{BOTH}=log,1e-3,2e-2", "--space", "model.tower_hidden=choice,(4,),(4, 4)"),
  )
  assert done.returncode == 0, done.stderr
  assert "3 of 3 trials; best" in done.stdout
  best = max(
    csv.DictReader((workdir / search.TRIALS_CSV).read_text().splitlines()),
    key=lambda r: float(r["value"]),
  )
  (line,) = (x for x in done.stdout.splitlines() if x.startswith("python -m mmoe_jax.main"))
  words = shlex.split(line)
  assert {f"--config.{key}={best[key]}" for key in (RATE, "model.tower_hidden")} < set(words)
  assert run(*words[2:]).returncode == 0
  results = json.loads((workdir / "best" / "results.json").read_text())
  for task in ("income_50k", "marital_stat"):
    name = f"{task}/auc"
    assert results["validation"][name] == pytest.approx(float(best[f"validation/{name}"]), abs=1e-4)
  assert int(best["best_epoch"]) == results["best_epoch"]


def test_wrong_use_ends_in_one_line(tmp_path):
  done = run(
    *("mmoe_jax.tune", "--config", "configs/smoke.py", "--trials", "2"),
    *("--workdir", str(tmp_path / "w"), "--space", "model.expertz=int,1,2"),
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert "did you mean 'experts'" in line
  assert os.listdir(tmp_path) == []
