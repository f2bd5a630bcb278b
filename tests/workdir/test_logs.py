"""Logs: one record per epoch, complete lines, no repetition after resuming."""

import contextlib
import json
import os

from mmoe_jax.workdir import logs, tracking


@contextlib.contextmanager
def open_log(workdir, first, last, **settings):
  with (
    tracking.create(tracking.DEFAULT) as trackers,
    logs.RunLog(str(workdir), first, last, trackers, **settings) as log,
  ):
    yield log


def write(workdir, first, last):
  with open_log(workdir, first, last) as log:
    for epoch in range(first + 1, last + 1):
      log.write({"epoch": epoch, "loss": 1 / epoch, "validation/a/auc": 0.5})
    return log.records


def test_every_epoch_is_a_line(tmp_path):
  write(tmp_path, 0, 3)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(x)["epoch"] for x in lines] == [1, 2, 3]


def test_resuming_drops_later_and_truncated_lines(tmp_path):
  write(tmp_path, 0, 3)
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"epoch": 4, "lo')
  records = write(tmp_path, 2, 4)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(x)["epoch"] for x in lines] == [1, 2, 3, 4]
  assert [r["epoch"] for r in records] == [1, 2, 3, 4]


def test_undefined_numbers_are_null(tmp_path):
  with open_log(tmp_path, 0, 1) as log:
    log.write({"epoch": 1, "loss": float("nan")})
  assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] is None


def test_tensorboard_events_are_written(tmp_path):
  write(tmp_path, 0, 2)
  assert any(name.startswith("events.out.tfevents") for name in os.listdir(tmp_path))


def test_without_a_terminal_each_epoch_is_one_line_on_standard_error(tmp_path, capfd):
  write(tmp_path, 1, 3)
  out, err = capfd.readouterr()
  assert out == ""
  lines = err.splitlines()
  assert lines[0].startswith("epoch 2/3  loss 0.5000  a/auc 0.5000  ")
  assert lines[1] == "epoch 3/3  loss 0.3333  a/auc 0.5000  0 s left"
  assert len(lines) == 2


def test_a_quiet_log_shows_no_progress(tmp_path, capfd):
  with open_log(tmp_path, 0, 1, verbose=False) as log:
    log.write({"epoch": 1, "loss": 1.0})
  assert capfd.readouterr() == ("", "")
