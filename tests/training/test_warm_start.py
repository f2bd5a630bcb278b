"""Warm start: from the best variables of another run."""

import json

import numpy as np
import pytest

from mmoe_jax.errors import UserError
from mmoe_jax.training import loop, population
from mmoe_jax.workdir import checkpoint

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
  with pytest.raises(UserError, match=r"same features and tasks \(the order of the tasks\)"):
    loop.train_and_evaluate(config, str(tmp_path / "b"))


def test_warm_start_takes_what_another_model_shares_and_lists_it(config, tmp_path, capsys):
  config.train.epochs = 0
  loop.train_and_evaluate(config, str(tmp_path / "a"))
  config.train.warm_start = str(tmp_path / "a")
  config.model.experts, config.seed = 6, 7
  capsys.readouterr()
  loop.train_and_evaluate(config, str(tmp_path / "b"))
  lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warm start")]
  found = {x.partition(": ")[0].rpartition(" ")[2]: x.partition(": ")[2].split(", ") for x in lines}
  of_experts = ["params/experts/Dense_0/bias", "params/experts/Dense_0/kernel"]
  assert found["left"] == found["new"] == [*of_experts, "params/gating/Dense_0/kernel"]
  assert {x.split("/")[1] for x in found["taken"]} == {"embedding", "towers"}
  a, b = (checkpoint.read_arrays(str(tmp_path / name), "best") for name in ("a", "b"))
  assert a.keys() == b.keys()
  assert sorted(k for k in a if not np.array_equal(a[k], b[k])) == sorted(
    "".join(f"['{part}']" for part in path.split("/")) for path in found["new"]
  )


@pytest.mark.slow
def test_warm_start_from_tables_that_were_updated_by_rows(config, tmp_path):
  config.train.epochs = 1
  config.optimizer.embedding.updates = "rows"
  first = loop.train_and_evaluate(config, str(tmp_path / "a"))
  config.train.warm_start, config.train.epochs = str(tmp_path / "a"), 0
  assert loop.train_and_evaluate(config, str(tmp_path / "b"))["test"] == first["test"]
  config.optimizer.embedding.updates = "dense"
  assert loop.train_and_evaluate(config, str(tmp_path / "c"))["test"] == first["test"]


@pytest.mark.slow
def test_warm_start_refuses_a_population_and_a_model_that_shares_nothing(config, tmp_path):
  config.train.epochs = 0
  population.train_population(config, [{"seed": 1}], str(tmp_path / "a"))
  loop.train_and_evaluate(config, str(tmp_path / "b"))
  config.train.warm_start = str(tmp_path / "a")
  with pytest.raises(UserError, match="is a population; train the member"):
    loop.train_and_evaluate(config, str(tmp_path / "c"))
  config.train.warm_start = str(tmp_path / "b")
  config.model.embedding_dim, config.model.experts, config.model.tower_hidden = 8, 6, ()
  with pytest.raises(UserError, match=r"no array that this run has, too \(config\.model\."):
    loop.train_and_evaluate(config, str(tmp_path / "c"))


@pytest.mark.slow
def test_a_warm_started_run_resumes_without_its_source(config, tmp_path):
  loop.train_and_evaluate(config, str(tmp_path / "a"))
  config.train.warm_start = str(tmp_path / "a")
  first = loop.train_and_evaluate(config, str(tmp_path / "b"))
  (tmp_path / "a").rename(tmp_path / "gone")
  assert loop.train_and_evaluate(config, str(tmp_path / "b"))["test"] == first["test"]
