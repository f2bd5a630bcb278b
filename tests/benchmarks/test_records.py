"""Result files."""

import datetime
import json
import os
import sys

import pytest

from benchmarks import machine, records
from mmoe_jax.errors import UserError


def test_a_file_holds_the_runs_and_where_they_come_from(tmp_path):
  runs = [{"seed": seed, "test/a/auc": 0.123456789012345 + seed} for seed in range(3)]
  path = records.write(str(tmp_path), "seeds/a", runs, settings={"config": "c.py"}, note="Short.")
  assert path == str(tmp_path / "seeds" / "a.json")
  found = records.read(str(tmp_path), "seeds/a")
  assert [run["seed"] for run in found.runs] == [0, 1, 2]
  assert found.runs[0]["test/a/auc"] == 0.1234567890
  assert found.settings == {"config": "c.py"}
  assert (found.transcribed, found.note, found.rows) == (False, "Short.", {})
  assert found.machine["cores"] == len(os.sched_getaffinity(0))
  assert found.machine["memory_gib"] > 0
  assert {"python", "jax", "numpy"} <= set(found.versions)
  age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(found.date)
  assert abs(age.total_seconds()) < 60
  lines = (tmp_path / "seeds" / "a.json").read_text().splitlines()
  assert sum('"seed"' in line for line in lines) == 3  # One per run.


def test_commit_is_the_last_that_changed_the_code():
  commit, dirty = records.describe_code()
  if not os.path.exists(os.path.join(records.ROOT, ".git")):
    assert (commit, dirty) == ("", None)
  else:
    assert len(commit) == 40
    assert dirty in (True, False)


def test_no_folder_writes_nothing_and_no_run_is_refused(tmp_path):
  assert records.write(None, "a", [{"seed": 0}]) is None
  with pytest.raises(UserError, match="'a': no run was measured"):
    records.write(str(tmp_path), "a", [])
  assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_become_null(tmp_path):
  records.write(str(tmp_path), "a", [{"seed": 0, "auc": float("nan")}])
  assert records.read(str(tmp_path), "a").runs == [{"seed": 0, "auc": None}]


def test_a_missing_or_broken_file_is_named(tmp_path):
  with pytest.raises(UserError, match=r"a\.json: no such result file; measure it"):
    records.read(str(tmp_path), "a")
  path = records.write(str(tmp_path), "a", [{"seed": 0}])
  with open(path, encoding="utf-8") as file:
    content = json.load(file)
  del content["commit"]
  (tmp_path / "a.json").write_text(json.dumps(content))
  with pytest.raises(UserError, match=r"a\.json: broken: .*commit"):
    records.read(str(tmp_path), "a")


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ("--out=/home/ann/runs/a", "--out=a"),
    ("/data/census/", "census"),
    ("--config=configs/census.py:mmoe", "--config=configs/census.py:mmoe"),
    ("--config.seed=3", "--config.seed=3"),
    ("runs/a", "runs/a"),
  ],
)
def test_commands_have_no_folders_of_a_machine(monkeypatch, given, expected):
  monkeypatch.setattr(sys, "argv", ["benchmarks/reliability/__main__.py", given])
  command = machine.describe_machine()["command"]
  words = command.split() if isinstance(command, str) else command
  assert words[-2:] == ["benchmarks.reliability", expected]
