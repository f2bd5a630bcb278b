"""Logs: one record an epoch, whole lines, and none twice after a resume."""

import json
import os

from mmoe_jax import logs


def write(workdir, first, last):
  with logs.RunLog(str(workdir), first, last) as log:
    for epoch in range(first + 1, last + 1):
      log.write({"epoch": epoch, "loss": 1 / epoch, "validation/a/auc": 0.5})
    return log.records


def test_every_epoch_is_a_line(tmp_path):
  write(tmp_path, 0, 3)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(x)["epoch"] for x in lines] == [1, 2, 3]


def test_resuming_drops_what_came_after_and_lines_cut_short(tmp_path):
  write(tmp_path, 0, 3)
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"epoch": 4, "lo')
  records = write(tmp_path, 2, 4)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(x)["epoch"] for x in lines] == [1, 2, 3, 4]
  assert [r["epoch"] for r in records] == [1, 2, 3, 4]


def test_undefined_numbers_are_null(tmp_path):
  with logs.RunLog(str(tmp_path), 0, 1) as log:
    log.write({"epoch": 1, "loss": float("nan")})
  assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] is None


def test_tensorboard_events_are_written(tmp_path):
  write(tmp_path, 0, 2)
  assert any(name.startswith("events.out.tfevents") for name in os.listdir(tmp_path))


def test_the_bar_stays_quiet_without_a_terminal(tmp_path, capfd):
  write(tmp_path, 0, 3)
  assert capfd.readouterr() == ("", "")
