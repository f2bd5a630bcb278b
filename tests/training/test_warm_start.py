"""Warm start: from the best variables of another run."""

import json

import pytest

from mmoe_jax.errors import UserError
from mmoe_jax.training import loop

pytestmark = pytest.mark.usefixtures("_shared_programs")


def test_warm_start_takes_the_best_weights_of_another_run(config, tmp_path):
  first = loop.train_and_evaluate(config, str(tmp_path / "a"))
  config.train.warm_start = str(tmp_path / "a")
  config.train.epochs = 0
  second = loop.train_and_evaluate(config, str(tmp_path / "b"))
  assert first["test"] == second["test"]
  config.train.epochs = 1
  third = loop.train_and_evaluate(config, str(tmp_path / "c"))
  lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
  assert (
    json.loads((tmp_path / "c" / "metrics.jsonl").read_text())["loss"]
    < json.loads(lines[0])["loss"]
  )
  assert third["epochs"] == 1


def test_warm_start_refuses_a_run_of_other_tasks(config, tmp_path):
  config.train.epochs = 0
  loop.train_and_evaluate(config, str(tmp_path / "a"))
  config.data.tasks = ("marital_stat", "income_50k")
  config.train.warm_start = str(tmp_path / "a")
  with pytest.raises(UserError, match="must be a run with the same tasks"):
    loop.train_and_evaluate(config, str(tmp_path / "b"))


@pytest.mark.slow
def test_a_warm_started_run_resumes_without_its_source(config, tmp_path):
  loop.train_and_evaluate(config, str(tmp_path / "a"))
  config.train.warm_start = str(tmp_path / "a")
  first = loop.train_and_evaluate(config, str(tmp_path / "b"))
  (tmp_path / "a").rename(tmp_path / "gone")
  assert loop.train_and_evaluate(config, str(tmp_path / "b"))["test"] == first["test"]
