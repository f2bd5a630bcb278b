"""Trackers without a service: files, names, failures."""

import contextlib
import errno
import glob
import importlib.util
import json
import math
import re
import time

import pytest
import tensorboardX
from tensorboardX import event_file_writer

from mmoe_jax.errors import UserError
from mmoe_jax.workdir import contract, logs, tracking
from mmoe_jax.workdir.tracking import TrackedRun, identities, tensorboard

RECORDS = [
  {"epoch": 1, "loss": 0.5, "gates/similarity/a~b": 0.25, "warnings": {"gates": ["same"]}},
  {"epoch": 2, "loss": [0.5, math.nan, 1.0], "active": [True, False, True], "errors": {}},
]


class Recorder:
  """Keeps its calls."""

  def __init__(self, fails_at=""):
    self.calls, self.fails_at = [], fails_at

  def _add(self, method, argument):
    self.calls.append((method, argument))
    if method == self.fails_at:
      raise RuntimeError("server\naway")

  def log_settings(self, run):
    self._add("settings", run.epoch)

  def log_metrics(self, record):
    self._add("metrics", record["epoch"])

  def end(self, results):
    self._add("end", results)


def write(workdir, names, records, epoch=0, own=(), results=None, writes=True):
  """Logs records after those of `epoch` finished epochs."""
  with (
    tracking.create(names, own, writes) as trackers,
    logs.RunLog(str(workdir), epoch, 9, trackers, writes, verbose=False) as log,
  ):
    for record in records:
      log.write(record)
    trackers.end(results)


def test_events_are_those_of_a_summary_writer(tmp_path, monkeypatch):
  monkeypatch.setattr(time, "time", lambda: 1e9)
  (tmp_path / "a").mkdir()
  write(tmp_path / "a", "jsonl,tensorboard", RECORDS)
  writer = tensorboardX.SummaryWriter(str(tmp_path / "b"), purge_step=1)
  for name, value, step in (
    *(("loss", 0.5, 1), ("gates/similarity/a~b", 0.25, 1)),
    *(("loss", 0.75, 2), ("active", 2 / 3, 2)),
  ):
    writer.add_scalar(name, value, step)
  writer.close()
  ours, theirs = (glob.glob(str(tmp_path / name / "events*")) for name in "ab")
  assert len(ours) == len(theirs) == 1
  with open(ours[0], "rb") as a, open(theirs[0], "rb") as b:
    assert a.read() == b.read()


def test_metrics_jsonl_has_the_whole_records(tmp_path):
  write(tmp_path, "jsonl", RECORDS)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert json.loads(lines[0]) == RECORDS[0]
  assert json.loads(lines[1])["loss"] == [0.5, None, 1.0]
  assert not glob.glob(str(tmp_path / "events*"))


def test_metrics_csv_has_a_column_per_number_and_drops_repeated_epochs(tmp_path):
  write(tmp_path, "jsonl,csv", [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": math.nan}])
  assert (tmp_path / "metrics.csv").read_text() == "epoch,loss\n1,0.5\n2,\n"
  write(tmp_path, "jsonl,csv", [RECORDS[1], {"epoch": 3, "loss": 0.125}], epoch=1)
  assert (tmp_path / "metrics.csv").read_text() == (
    "epoch,loss,active\n1,0.5,\n2,0.75,0.6666666666666666\n3,0.125,\n"
  )
  # Enabled later, it has the earlier epochs too.
  (tmp_path / "metrics.csv").unlink()
  write(tmp_path, "jsonl,csv", [], epoch=3)
  assert (tmp_path / "metrics.csv").read_text().count("\n") == 4


def test_the_calls_are_settings_metrics_end(tmp_path):
  own, results = Recorder(), {"epochs": 2}
  write(tmp_path, "jsonl", RECORDS, own=[own], results=results)
  assert own.calls == [("settings", 0), ("metrics", 1), ("metrics", 2), ("end", results)]


def test_an_interrupted_run_ends_its_trackers(tmp_path):
  own = Recorder()
  with contextlib.suppress(KeyboardInterrupt), tracking.create("jsonl", [own]) as trackers:
    trackers.log_settings(TrackedRun(str(tmp_path), 0, ()))
    raise KeyboardInterrupt
  assert own.calls == [("settings", 0), ("end", None)]


@pytest.mark.parametrize("method", ["settings", "metrics", "end"])
def test_a_failing_tracker_is_named_once_and_disabled(tmp_path, capfd, method):
  own, other = Recorder(method), Recorder()
  write(tmp_path, "jsonl", RECORDS, own=[own, other])
  err = capfd.readouterr().err
  assert err == (
    "warning: tracker 'Recorder' failed (server away) and is disabled; training continues without "
    "it\n"
  )
  methods = [name for name, _ in own.calls]
  assert (
    methods
    == {
      "settings": ["settings", "end"],
      "metrics": ["settings", "metrics", "end"],
      "end": ["settings", "metrics", "metrics", "end"],
    }[method]
  )
  assert [name for name, _ in other.calls] == ["settings", "metrics", "metrics", "end"]
  assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_full_disk_disables_tensorboard_without_waiting(tmp_path, capfd, monkeypatch):
  calls, flush = [], event_file_writer.EventsWriter.flush

  def full(self):
    calls.append(self)
    if len(calls) == 2:
      raise OSError(errno.ENOSPC, "No space left on device")
    flush(self)

  monkeypatch.setattr(tensorboard, "_FLUSH_SECONDS", 0.0)
  monkeypatch.setattr(event_file_writer.EventsWriter, "flush", full)
  records = [{"epoch": e, "loss": 1.0} for e in range(1, 30)]
  write(tmp_path, "jsonl,tensorboard", records)
  assert capfd.readouterr().err.count("'tensorboard' failed (No space left") == 1
  assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 29


def test_metrics_jsonl_cannot_be_disabled(tmp_path):
  (tmp_path / "metrics.jsonl").mkdir()  # A run resumes from it: its errors end the run.
  with pytest.raises(OSError, match=r"metrics\.jsonl"):
    write(tmp_path, "jsonl", RECORDS)


def test_only_one_host_tracks(tmp_path):
  own = Recorder()
  write(tmp_path, "jsonl,tensorboard,csv", RECORDS, own=[own], writes=False)
  assert own.calls == []
  assert list(tmp_path.iterdir()) == []


def test_wrong_names_get_a_suggestion():
  with pytest.raises(UserError, match=r"config\.train\.trackers is 'tensorbord'.*'tensorboard'\?"):
    tracking.check("jsonl,tensorbord")
  with pytest.raises(UserError, match=r"config\.train\.trackers = 'csv': must include jsonl"):
    tracking.check("csv")
  tracking.check("jsonl, csv,tensorboard")


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_refused_with_its_install_line(name, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
  with pytest.raises(UserError) as caught:
    tracking.check(f"jsonl,{name}")
  path = re.search(r"run: pip install -r (\S+)$", str(caught.value))[1]
  with open(path, encoding="utf-8") as file:
    assert any(line.startswith(name) for line in file)


def test_results_are_numbers_by_path():
  results = {"epochs": 2, "test": {"a/auc": 0.5, "b/auc": None}, "notes": {"x": "text"}}
  results["members"] = [{"epochs": 2}]
  assert tracking.final_numbers(results) == {"results/epochs": 2, "results/test/a/auc": 0.5}


def test_identities_of_several_trackers_are_one_file(tmp_path):
  identities.save(str(tmp_path), "mlflow", {"run_id": "1"})
  identities.save(str(tmp_path), "wandb", {"id": "2"})
  assert identities.read(str(tmp_path), "mlflow") == {"run_id": "1"}
  assert identities.read(str(tmp_path), "csv") == {}
  with pytest.raises(UserError, match="belongs to the run"):
    contract.require_free(str(tmp_path), str(tmp_path / identities.IDENTITIES))
