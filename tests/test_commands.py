"""Faults of the surroundings: one line and exit status 2, no traceback."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests import ROOT
from tests.commands import command, environment, run


def assert_one_line(done: subprocess.CompletedProcess, *texts: str) -> None:
  assert done.returncode == 2, done.stderr
  lines = done.stderr.strip().splitlines()
  assert len(lines) == 1, done.stderr
  assert lines[0].startswith("error: ")
  for text in texts:
    assert text in lines[0]


def train(prepared, workdir, *arguments: object, **settings: str) -> subprocess.CompletedProcess:
  return run(
    "mmoe_jax.main",
    *("--config", "configs/smoke.py", f"--config.data_dir={prepared}", "--workdir", workdir),
    *arguments,
    **settings,
  )


@pytest.mark.parametrize(
  ("settings", "text"),
  [
    ({"JAX_PLATFORMS": "foo"}, "JAX cannot start: Unable to initialize backend 'foo'"),
    pytest.param({"JAX_DISABLE_JIT": "1"}, "$JAX_DISABLE_JIT is set", marks=pytest.mark.slow),
    pytest.param({"JAX_NUM_CPU_DEVICES": "abc"}, 'Invalid value "abc"', marks=pytest.mark.slow),
    (
      {"JAX_COORDINATOR_ADDRESS": "x", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
      "$JAX_NUM_PROCESSES = 'two'",
    ),
    pytest.param(
      {"JAX_COORDINATOR_ADDRESS": "nohost", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
      "cannot join the hosts of this job",
      marks=pytest.mark.slow,
    ),
    pytest.param(
      {"MMOE_MULTIHOST": "1"}, "cannot join the hosts of this job", marks=pytest.mark.slow
    ),
  ],
)
def test_faults_of_the_environment(prepared, tmp_path, settings, text):
  assert_one_line(train(prepared, tmp_path / "w", **settings), text)
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
  ("arguments", "text"),
  [
    (("--flagfile=/nonexistent",), "/nonexistent"),
    # tests/test_main.py has faults like these.
    pytest.param(("--config.train.epoch=3",), "did you mean 'epochs'", marks=pytest.mark.slow),
    pytest.param(("--config.train.epochs=many",), "many", marks=pytest.mark.slow),
    pytest.param(("rows.csv",), "unexpected argument 'rows.csv'", marks=pytest.mark.slow),
  ],
)
def test_faults_of_the_command_line(prepared, tmp_path, arguments, text):
  assert_one_line(train(prepared, tmp_path / "w", *arguments), text)


@pytest.mark.slow
def test_folders_that_cannot_be_work_directories(prepared, tmp_path):
  assert_one_line(train(prepared, prepared), "is a folder of prepared data")
  assert_one_line(train(prepared, tmp_path / "[a]"), "contains '[]'")


@pytest.mark.slow
def test_other_commands(prepared, tmp_path):
  config = ("--config", "configs/smoke.py", f"--config.data_dir={prepared}")
  config += ("--workdir", tmp_path / "p")
  for arguments, text in (
    (("--vary", "model=1"), "config.model = 1.0"),
    (("--vary", "loss.task_weights=1,2"), "config.loss.task_weights = 1.0"),
    (("--at_once=-1",), "--at_once=-1"),
    (("--seeds=1000000000",), "--seeds=1000000000"),
  ):
    assert_one_line(run("mmoe_jax.population", *config, *arguments), text)
  assert_one_line(
    run("data_prep.synthetic", "--out", tmp_path / "s", "--rows=1000000000000"), "not enough memory"
  )


def test_help_shows_config_and_imports_no_jax():
  done = run("mmoe_jax.main", "--help", JAX_NUM_CPU_DEVICES="abc")
  assert "--config: FILE.py" in done.stdout
  assert not done.stderr


@pytest.mark.parametrize("wait_for", ["", "epoch 1/"])
def test_an_interrupt_is_one_line_at_any_time(prepared, tmp_path, wait_for):
  words = command(
    "mmoe_jax.main",
    *("--config", "configs/smoke.py", f"--config.data_dir={prepared}"),
    *("--workdir", tmp_path / "w", "--config.train.epochs=5000", "--config.select.patience=0"),
  )
  with subprocess.Popen(
    words, cwd=ROOT, env=environment(), text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
  ) as process:
    shown = ""
    if wait_for:
      while wait_for not in shown:
        shown += process.stderr.readline()
    else:
      time.sleep(1.5)  # While libraries are imported.
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
  assert process.returncode == 75
  assert "Traceback" not in rest
  assert rest.strip().endswith("interrupted; the same command resumes")
  assert os.path.exists(tmp_path / "w") == bool(wait_for)


def test_an_interrupt_in_a_callback_of_the_garbage_collector_is_one_line():
  code = """
import gc
from mmoe_jax import commands

def main(argv):
  def interrupted(*_):
    gc.callbacks.clear()
    raise KeyboardInterrupt
  gc.callbacks.append(interrupted)
  gc.collect()
  print("went on")

commands.run(main, resumes=True)
"""
  words = [sys.executable, "-c", code]
  done = subprocess.run(
    words, cwd=ROOT, env=environment(), text=True, capture_output=True, check=False
  )
  assert done.returncode == 75
  assert done.stderr.strip() == "interrupted; the same command resumes"
  assert done.stdout == ""


def test_threads_of_a_failed_save_print_no_traceback_but_others_do():
  code = """
import gc, sys
from mmoe_jax import commands

def main(argv):
  def late(*_):
    gc.callbacks.clear()
    raise RuntimeError(sys.stdin.read())
  gc.callbacks.append(late)
  gc.collect()

commands.run(main)
"""
  for text, is_shown in (("Event loop is closed", False), ("a fault", True)):
    done = subprocess.run(
      [sys.executable, "-c", code],
      cwd=ROOT,
      env=environment(),
      input=text,
      text=True,
      capture_output=True,
      check=False,
    )
    assert ("RuntimeError" in done.stderr) == is_shown
