"""Tracking of training: the default files, resumed runs, refusals, the example of the docs."""

import csv
import json
import re

import pytest

from mmoe_jax.errors import UserError
from mmoe_jax.training import loop, search
from mmoe_jax.workdir import checkpoint
from tests.workdir.tracking.test_trackers import Recorder

pytestmark = pytest.mark.usefixtures("_shared_programs")


def read_rows(workdir):
  with open(workdir / "metrics.csv", encoding="utf-8", newline="") as file:
    return list(csv.DictReader(file))


def read_records(workdir):
  return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


def stop_saving_after(monkeypatch, epoch):
  """Makes a run die when it saves a later epoch."""
  save = checkpoint.Checkpoints.save

  def dying(self, number, *arguments):
    if number > epoch:
      raise KeyboardInterrupt
    save(self, number, *arguments)

  monkeypatch.setattr(checkpoint.Checkpoints, "save", dying)


def test_a_resumed_run_has_each_epoch_once_and_may_change_its_trackers(
  config, tmp_path, monkeypatch
):
  config.checkpoint.every_epochs = 1
  config.train.trackers = "jsonl,csv"
  first, second = Recorder(), Recorder()
  with monkeypatch.context() as patch:
    stop_saving_after(patch, 1)
    with pytest.raises(KeyboardInterrupt):
      loop.train_and_evaluate(config, str(tmp_path), [first])
  assert first.calls == [("settings", 0), ("metrics", 1), ("metrics", 2), ("end", None)]
  config.train.trackers = "jsonl,tensorboard,csv"
  results = loop.train_and_evaluate(config, str(tmp_path), [second])
  assert second.calls == [("settings", 1), ("metrics", 2), ("metrics", 3), ("end", results)]
  rows, records = read_rows(tmp_path), read_records(tmp_path)
  assert [row["epoch"] for row in rows] == ["1", "2", "3"]
  for row, record in zip(rows, records, strict=True):
    assert row.keys() == record.keys() - {"warnings"}
    assert float(row["loss"]) == record["loss"]
  assert list(tmp_path.glob("events*"))


def test_wrong_trackers_are_refused_before_anything_is_written(config, tmp_path):
  config.train.trackers = "jsonl,wandbb"
  with pytest.raises(UserError, match=r"config\.train\.trackers is 'wandbb'.*did you mean"):
    loop.train_and_evaluate(config, str(tmp_path / "w"))
  assert not (tmp_path / "w").exists()
  config.train.trackers = "jsonl,csv"
  with pytest.raises(UserError, match=r"must be jsonl,tensorboard for a search"):
    search.run_search(config, config.search, 1, str(tmp_path / "w"))
  assert not (tmp_path / "w").exists()


def test_the_tracker_in_the_documentation_works(config, tmp_path, monkeypatch, capsys):
  with open("docs/usage.md", encoding="utf-8") as file:
    section = file.read().split("\n## Tracking\n")[1].split("\n## ")[0]
  (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
  assert len(example.splitlines()) <= 20
  config.checkpoint.every_epochs = 1  # As above, so that the tests share a program.
  monkeypatch.setattr("configs.census.get_config", lambda: config)
  monkeypatch.chdir(tmp_path)
  exec(compile(example, "docs/usage.md", "exec"), {})
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 5
  assert lines[0] == "seed 0, 0 epochs finished"
  assert [float(line.split()[1]) for line in lines[1:4]] == [
    record["loss"] for record in read_records(tmp_path / "runs" / "printed")
  ]
  assert lines[4].startswith("test AUC 0.")
