"""Reliability harness: short forms, and what it must notice."""

import json
import os
import shutil

import numpy as np
import pytest

from benchmarks.reliability import cost, damage, elastic, jobs, kills, starter
from benchmarks.reliability.starter import Starter
from mmoe_jax.errors import UserError
from mmoe_jax.training import loop
from mmoe_jax.workdir import contract


@pytest.fixture(autouse=True)
def _light(monkeypatch):
  monkeypatch.setattr(starter, "HEAVY", "json")


@pytest.fixture
def sleeping(monkeypatch, tmp_path):
  """A quick job in place of the real ones: it appends to a file, resumes, and may be wrong."""
  code = (
    "import os, sys, time\n"
    "path = os.path.join(sys.argv[1], 'out')\n"
    "for i in range(os.path.getsize(path) if os.path.exists(path) else 0, 30):\n"
    "  time.sleep(0.01)\n"
    "  with open(path, 'a') as file: file.write('x')\n"
    "{more}"
  )

  def make(more: str = "") -> kills.Kills:
    words = lambda _, folder: ["-c", code.format(more=more), folder]
    job = jobs.Job(words, jobs.of_files, {"start": "*", "write": "out"})
    monkeypatch.setattr(jobs, "JOBS", {"sleeping": job})
    (tmp_path / "inputs" / "run").mkdir(parents=True, exist_ok=True)
    (tmp_path / "inputs" / "spec.toml").touch()
    return kills.Kills(str(tmp_path))

  return make


def test_a_job_that_resumes_is_identical(sleeping, tmp_path):
  sleeping()
  found = kills.run(str(tmp_path), count=3, seconds=30)
  assert len(found) >= 3
  assert {r["outcome"] for r in found} == {"identical"}
  again = kills.run(str(tmp_path), count=1, seconds=20)
  assert again == found  # Read from the file.
  assert os.listdir(tmp_path / "trials") == []
  assert kills.summarise(found)["identical"] == len(found)
  kills.require_all(found)
  assert f"| sleeping | {len(found)} |" in kills.markdown(found)


def test_a_job_that_resumes_wrongly_is_noticed(sleeping, tmp_path):
  lost = sleeping("if os.path.getsize(path) < 31: open(os.path.join(sys.argv[1], 'extra'), 'x')")
  with Starter() as forks:
    assert lost.reference(forks, "sleeping", False)["changes"] > 5
    lost = sleeping("raise SystemExit(3)")
    records = []
    for number in range(30):  # Until a kill comes before its end.
      records += lost.trial(forks, number, ["sleeping"])
      if records:
        break
  assert {r["outcome"] for r in records} == {"ends with 3: "}
  with pytest.raises(UserError, match="kills were not survived"):
    kills.require_all(records)


def test_results_differ_by_name():
  assert kills.compare({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) == "identical"
  assert kills.compare({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": ""}) == "2 differ: b, c"


def test_a_starter_reports_the_status_of_commands(tmp_path):
  log = str(tmp_path / "log")
  with Starter() as forks:
    command = forks.start(["-c", "import sys; print(sys.argv[1]); sys.exit(7)", "hello"], {}, log)
    assert command.wait(30) == 7
    assert (tmp_path / "log").read_text() == "hello\n"
    sleeper = forks.start(["-c", "import time; time.sleep(60)"], {}, log)
    assert sleeper.wait(0.05) is None
    os.kill(sleeper.pid, 9)
    assert sleeper.wait(30) == -9


def test_digests_of_a_run_leave_out_times(config, tmp_path):
  config.train.epochs = 1
  loop.train_and_evaluate(config, str(tmp_path / "a" / "work"))
  shutil.copytree(tmp_path / "a", tmp_path / "b")
  log = tmp_path / "b" / "work" / "metrics.jsonl"
  log.write_text(json.dumps({**json.loads(log.read_text()), "seconds": 1e6}) + "\n")
  found = [jobs.of_run(str(tmp_path / name)) for name in ("a", "b")]
  assert found[0] == found[1]
  assert {"records", "results", contract.CONFIG, "files"} <= set(found[0])
  (tmp_path / "b" / "work" / "left_over").touch()
  assert kills.compare(found[0], jobs.of_run(str(tmp_path / "b"))) == "1 differ: files"
  log.write_text(json.dumps({**json.loads(log.read_text()), "loss": 1.0}) + "\n")
  assert kills.compare(found[0], jobs.of_run(str(tmp_path / "b"))) == "2 differ: records, files"


def test_pairs_of_devices_are_summed_up():
  pairs = [
    {"from": 1, "to": 1, "auc": 0.0, "loss": 0.0, "identical": True},
    {"from": 1, "to": 2, "auc": 2e-5, "loss": 1e-6, "identical": False},
  ]
  elastic.require_equal({"resident": pairs})
  total = elastic.summarise(pairs)
  assert (total["auc"], total["identical_on_the_same"]) == (2e-5, True)
  with pytest.raises(UserError, match="another result"):
    elastic.require_equal({"resident": [{**pairs[0], "identical": False}]})
  with pytest.raises(UserError, match="AUCs differ"):
    elastic.require_equal({"resident": [{**pairs[1], "auc": 2e-4}]})


def test_damages_of_the_newest_checkpoint_cover_its_files(tmp_path):
  for epoch in (1, 2):
    folder = tmp_path / "run" / "checkpoints" / str(epoch) / "state"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
      (folder / name).write_text("x")
  found = damage.each_file_of_newest(str(tmp_path))
  assert len(found) == 2 * 2 * 2
  assert {os.path.basename(name) for name, _, _ in found} == {"a", "b"}
  assert all("checkpoints/2/" in name for name, _, _ in found)
  silent = {"newest": [{"use": "predict", "outcome": "SILENT"}]}
  with pytest.raises(UserError, match="1 of 1 damages are failures"):
    damage.require_noticed(silent)


@pytest.mark.slow
def test_saves_are_timed(prepared, tmp_path, monkeypatch):
  monkeypatch.setattr(cost, "DIMS", (4,))
  (found,) = cost.of_saves(str(tmp_path / "c"), prepared, rounds=2)
  assert found["bytes"] > 100_000
  assert 0 < found["call_s"] < found["epoch_s"] * found["ratio"] * 10
  assert np.isfinite(found["ratio"])
  assert json.dumps(found)
