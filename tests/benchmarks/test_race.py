"""Race: contenders, their protocol, and the table. No speed is tested."""

import sys

import numpy as np
import pytest

from benchmarks import train_throughput
from benchmarks.contenders import ours, ours_population, protocol
from benchmarks.contenders.process import Process
from mmoe_jax import data
from mmoe_jax.errors import UserError

MACHINE = {"cores": 2, "processor": "a chip", "jax": "1.2", "device": "cpu"}


@pytest.fixture(scope="module")
def task(prepared, tmp_path_factory) -> tuple[str, protocol.Task]:
  """Returns the file that contenders read, and its content."""
  path = str(tmp_path_factory.mktemp("race") / "arrays.npz")
  train_throughput.write_arrays(prepared, path)
  held = dict(np.load(path))
  held["sizes"] = held["sizes"].tolist()
  return path, protocol.Task(**held, batch_size=128, seed=3)


def test_contenders_get_the_prepared_rows(task, prepared):
  schema, splits = data.load(prepared, train_throughput.TASKS, "demo", "standardize")
  given = task[1]
  assert given.sizes == [f.size for f in schema.id_features]
  np.testing.assert_array_equal(given.ids, splits["train"].features["ids"])
  np.testing.assert_array_equal(given.labels, splits["train"].labels)
  np.testing.assert_array_equal(given.test_numbers, splits["test"].features["numeric"])


def test_ours_is_the_model_that_all_contenders_have(task):
  contender = ours.Ours(task[1]._replace(batch_size=256))
  given = task[1]
  inputs = 4 * len(given.sizes) + given.numbers.shape[1]
  tables, experts = 4 * sum(given.sizes), 8 * 16 * (inputs + 1)
  gates, towers = 2 * 8 * inputs, 2 * (8 * 17 + 9)
  assert contender.parameters == tables + experts + gates + towers
  before = contender.scores()
  assert before.shape == (len(given.test_ids), 2)
  assert contender.train_epoch() == len(given.labels)
  assert np.abs(contender.scores() - before).max() > 0.01


def test_the_population_contender_equals_a_run(task, monkeypatch):
  monkeypatch.setattr(ours_population, "MEMBERS", 3)
  given = task[1]._replace(batch_size=256)
  alone, together = ours.Ours(given), ours_population.Population(given)
  assert together.parameters == alone.parameters
  alone.train_epoch()
  assert together.train_epoch() == 3 * len(given.labels)
  np.testing.assert_allclose(together.scores(), alone.scores(), rtol=1e-4, atol=1e-5)


def test_a_contender_answers_from_its_own_process(task, tmp_path):
  scores = str(tmp_path / "scores.npy")
  code = (
    "from benchmarks.contenders import protocol\n"
    "import numpy as np\n"
    "class Fake:\n"
    "  parameters = 7\n"
    "  def __init__(self, task): self.task, self.epochs = task, 0\n"
    "  def train_epoch(self):\n"
    "    self.epochs += 1\n"
    "    print('output of a library')\n"
    "    return self.epochs * len(self.task.labels)\n"
    "  def scores(self): return np.full((2, 2), self.task.batch_size + protocol.threads())\n"
    "protocol.serve(Fake)\n"
  )
  process = Process([sys.executable, "-c", code, task[0], "64", "5", scores], threads=3)
  assert process.ready["parameters"] == 7
  assert process.ready["seconds"] >= 0
  rows = len(task[1].labels)
  assert [process.ask("epoch")["rows"] for _ in range(2)] == [rows, 2 * rows]
  assert process.ask("scores") == {}
  assert np.load(scores).tolist() == [[67, 67], [67, 67]]
  process.close()
  with pytest.raises(UserError, match="ended with status 1: NameError: name 'x' is not defined"):
    Process([sys.executable, "-c", "x"], threads=1)


def test_rates_are_medians_and_ratios_are_of_the_same_round():
  epochs = {
    "ours": [{"rows": 100, "seconds": s} for s in (9.0, 1.0, 2.0, 4.0)],
    "lean_torch": [{"rows": 100, "seconds": s} for s in (20.0, 4.0, 4.0, 4.0)],
  }
  ready = {
    "ours": {"parameters": 5, "seconds": 3.0},
    "lean_torch": {"parameters": 6, "seconds": 0.0},
  }
  aucs = {"ours": (0.9, 0.8), "lean_torch": (0.7, 0.6)}
  mine, peer = train_throughput.summarise(1024, epochs, ready, aucs)
  assert (mine["rows_per_second"], mine["least"], mine["most"]) == (50, 25, 100)
  assert peer["rows_per_second"] == 25
  assert peer["ours_times"] == 2  # Of 4, 2 and 1.
  assert mine["ours_times"] == 1
  assert mine["set_up_and_first_epoch_seconds"] == 12
  assert peer["test_auc_marital_stat"] == 0.6
  text = train_throughput.markdown([mine, peer], MACHINE)
  assert "| 1,024 | lean_torch | 25 | 25 to 25 | 2.00 | 20.0 | 0.7000 | 0.6000 | 6 |" in text
  assert "Medians of 3 interleaved epochs" in text


def test_every_pytorch_contender_runs_with_one_thread_and_with_all():
  named = train_throughput.variants(("ours", "lean_torch"), cores=2)
  assert named == {
    "ours": ("ours", 2),
    "lean_torch, 1 threads": ("lean_torch", 1),
    "lean_torch, 2 threads": ("lean_torch", 2),
  }
  assert len(train_throughput.variants(("lean_torch",), cores=1)) == 1
