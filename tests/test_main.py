"""Commands as users run them: their files, and one clear line for errors."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from tests import ROOT, census_rows
from tests.commands import command, environment, run


def read_json(*path: object) -> dict:
  with open(os.path.join(*path), encoding="utf-8") as file:
    return json.load(file)


def train(prepared, workdir, *arguments) -> subprocess.CompletedProcess:
  return run(
    "mmoe_jax.main",
    *("--config", "configs/smoke.py", "--workdir", workdir, f"--config.data_dir={prepared}"),
    *arguments,
  )


def assert_one_line(done: subprocess.CompletedProcess, *parts: str) -> None:
  assert done.returncode not in (0, None), done.stdout
  lines = [line for line in done.stderr.splitlines() if line.strip()]
  assert len(lines) == 1, done.stderr
  assert lines[0].startswith("error: ")
  for part in parts:
    assert part in lines[0]


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory):
  workdir = str(tmp_path_factory.mktemp("cli") / "w")
  return workdir, train(prepared, workdir, "--config.seed=3")


def test_main_trains_and_prints_the_table(finished):
  workdir, done = finished
  assert done.returncode == 0, done.stderr
  shown = done.stderr.splitlines()
  assert [line.split(":")[0] for line in shown[:4]] == [
    "devices",
    "model",
    "train rows",
    "work directory",
  ]
  assert [line.split("  ")[0] for line in shown[4:]] == [f"epoch {e}/3" for e in (1, 2, 3)]
  results = read_json(workdir, "results.json")
  for text in ("income_50k", "marital_stat", "train", "validation", "test", "rows/s"):
    assert text in done.stdout
  assert f"{results['test']['income_50k/auc']:.4f}" in done.stdout
  assert read_json(workdir, "config.json")["seed"] == 3


def test_report_prints_the_same_table(finished):
  workdir, done = finished
  assert run("mmoe_jax.report", "--workdir", workdir).stdout == done.stdout


def test_predict_scores_a_raw_file(finished, raw, prepared, tmp_path):
  workdir, _ = finished
  out = tmp_path / "scores.csv"
  done = run("mmoe_jax.predict", "--workdir", workdir, "--input", raw[1], "--output", out)
  assert done.returncode == 0, done.stderr
  scores = pd.read_csv(out)
  results = read_json(workdir, "results.json")
  rows = np.load(os.path.join(prepared, "test", "rows.npy"))
  labels = np.load(os.path.join(prepared, "test", "labels.npy"))
  for t, task in enumerate(("income_50k", "marital_stat")):
    auc = roc_auc_score(labels[:, t], scores[task].to_numpy()[rows])
    assert auc == pytest.approx(results["test"][f"{task}/auc"], abs=1e-6)


@pytest.mark.parametrize(
  ("arguments", "parts"),
  [
    (["--config.sede=3"], ["no key 'sede'", "did you mean 'seed'"]),
    (["--config.model.name=mmeo"], ["'mmeo'", "did you mean 'mmoe'"]),
    (["--config.train.epochs=many"], ["epochs", "many"]),
    (["--config.data_dir=/nowhere"], ["contains no prepared data; run: python -m data_prep"]),
    (["extra"], ["unexpected argument 'extra'"]),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        (["--config.data.tasks=('income',)"], ["'income'", "did you mean 'income_50k'"]),
        (["--config=configs/smoke.py:mmoe,taks=x"], ["'taks'", "did you mean 'tasks'"]),
        (["--config=configs/nowhere.py"], ["configs/nowhere.py: No such file"]),
      )
    ),
  ],
)
def test_wrong_use_of_main_ends_in_one_line(prepared, tmp_path, arguments, parts):
  assert_one_line(train(prepared, tmp_path / "w", *arguments), *parts)
  assert os.listdir(tmp_path) == []


def test_a_work_directory_that_cannot_be_is_named(prepared, tmp_path):
  (tmp_path / "file").write_text("in the way")
  assert_one_line(train(prepared, tmp_path / "file" / "w"), "file")
  assert (tmp_path / "file").read_text() == "in the way"


def test_wrong_use_of_data_preparation_ends_in_one_line(raw, tmp_path):
  module, out = "data_prep.census_income", tmp_path / "out"
  done = run(module, "--out", out, "--source", os.path.dirname(raw[0]))
  assert_one_line(done, "census-income.data: truncated", "instead of 103,874,469")
  assert_one_line(run(module, "--out", out, "--source", tmp_path / "no"), "does not exist")
  assert_one_line(run(module), "--out")
  assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_wrong_use_of_predict_prints_one_line_and_keeps_the_old_output(finished, tmp_path):
  workdir, _ = finished
  rows = census_rows.make(30, 5)
  del rows[11][4]
  short = census_rows.write(str(tmp_path / "short.csv"), rows)
  out = tmp_path / "scores.csv"
  out.write_text("earlier scores")
  predict = ("mmoe_jax.predict", "--workdir", workdir, "--output", out, "--input")
  assert_one_line(run(*predict, short), "short.csv, line 12: has 41 columns, must have 42")
  assert_one_line(run(*predict, tmp_path / "none.csv"), "none.csv: No such file")
  assert out.read_text() == "earlier scores"
  other = ("mmoe_jax.predict", "--workdir", tmp_path, "--output", out, "--input", short)
  assert_one_line(run(*other), "contains no config.json")


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_results(prepared, tmp_path):
  arguments = ["--config.train.epochs=15", "--config.train.batch_size=256"]
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  assert train(prepared, whole, *arguments).returncode == 0
  process = subprocess.Popen(
    command(
      "mmoe_jax.main",
      *("--config", "configs/smoke.py", "--workdir", killed, f"--config.data_dir={prepared}"),
      *arguments,
    ),
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  metrics = killed / "metrics.jsonl"
  deadline = time.monotonic() + 120
  while time.monotonic() < deadline and process.poll() is None:
    if metrics.exists() and len(metrics.read_text().splitlines()) >= 3:
      break
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (killed / "results.json").exists()
  assert train(prepared, killed, *arguments).returncode == 0
  ends = [read_json(path, "results.json") for path in (whole, killed)]
  for split in ("train", "validation", "test"):
    assert ends[0][split] == ends[1][split]
