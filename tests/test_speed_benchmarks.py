"""The benchmarks of speed: they time what they say, and sums are right. No speed is tested."""

import json
import os
import sys

import jax
import numpy as np
import pytest

from benchmarks import epoch_parts, plots, scaling, streaming, train_throughput, waiting
from benchmarks.contenders import ours, ours_population, protocol
from benchmarks.contenders.process import Process
from mmoe_jax import data, engine, train
from mmoe_jax.errors import UserError
from mmoe_jax.predict import Predictor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MACHINE = {"cores": 2, "processor": "a chip", "jax": "1.2", "device": "cpu"}


@pytest.fixture(scope="module")
def task(prepared, tmp_path_factory) -> tuple[str, protocol.Task]:
  """The file that contenders read, and what is in it."""
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


def test_a_population_takes_part_as_what_it_stands_for(task, monkeypatch):
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
    "    print('libraries talk')\n"
    "    return self.epochs * len(self.task.labels)\n"
    "  def scores(self): return np.full((2, 2), self.task.batch_size + self.task.seed)\n"
    "protocol.serve(Fake)\n"
  )
  process = Process([sys.executable, "-c", code, task[0], "64", "5", scores])
  assert process.hello["parameters"] == 7
  assert process.hello["seconds"] >= 0
  rows = len(task[1].labels)
  assert [process.ask("epoch")["rows"] for _ in range(2)] == [rows, 2 * rows]
  assert process.ask("scores") == {}
  assert np.load(scores).tolist() == [[69, 69], [69, 69]]
  process.close()
  with pytest.raises(UserError, match="ended with status 1: NameError: name 'x' is not defined"):
    Process([sys.executable, "-c", "x"])


def test_rates_are_medians_and_ratios_are_of_the_same_round():
  epochs = {
    "ours": [{"rows": 100, "seconds": s} for s in (9.0, 1.0, 2.0, 4.0)],
    "lean_torch": [{"rows": 100, "seconds": s} for s in (20.0, 4.0, 4.0, 4.0)],
  }
  hellos = {
    "ours": {"parameters": 5, "seconds": 3.0},
    "lean_torch": {"parameters": 6, "seconds": 0.0},
  }
  aucs = {"ours": (0.9, 0.8), "lean_torch": (0.7, 0.6)}
  mine, peer = train_throughput.summarise(1024, epochs, hellos, aucs)
  assert (mine["rows_per_second"], mine["least"], mine["most"]) == (50, 25, 100)
  assert peer["rows_per_second"] == 25
  assert peer["ours_times"] == 2  # Of 4, 2 and 1.
  assert mine["ours_times"] == 1
  assert mine["set_up_and_first_epoch_seconds"] == 12
  assert peer["test_auc_marital_stat"] == 0.6
  text = train_throughput.markdown([mine, peer], MACHINE)
  assert "| 1,024 | lean_torch | 25 | 25 to 25 | 2.00 | 20.0 | 0.7000 | 0.6000 | 6 |" in text
  assert "Medians of 3 epochs in turns" in text


def test_parts_of_an_epoch_end_with_the_epoch_itself(config):
  config.model.expert_dropout = 0.2
  schema, splits = data.load(config.data_dir, **config.data)
  rows = len(splits["train"])
  arrays = engine.train_arrays(splits["train"], config)
  named = epoch_parts.programs(config, schema, rows)
  assert list(named)[-1] == epoch_parts.WHOLE
  program, state = named[epoch_parts.WHOLE]
  key, shard = jax.random.key(1), np.int32(0)
  learner = engine.create_learner(config, schema, engine.steps_per_epoch(config, rows))
  expected, _ = jax.jit(learner.epoch)(state, arrays, key, shard)
  found = jax.jit(program)(state, arrays, key, shard)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)  # Fused otherwise.
  jax.tree.map(close, found.params, expected.params)
  # Plain descent, the last but one, moves the parameters, and gathering sums up every batch.
  descend, params = named["+ backward, plain descent"]
  moved = jax.jit(descend)(params, arrays, key, shard)
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), moved, params)
  assert any(jax.tree.leaves(changed))
  total = sum(np.sum(a, dtype=np.float64) for a in jax.tree.leaves(arrays))
  config.train.batch_size = 2003  # No row twice.
  gather, zero = epoch_parts.programs(config, schema, rows)["+ gather the batches"]
  assert float(jax.jit(gather)(zero, arrays, key, shard)) == pytest.approx(total, rel=1e-4)


def test_programs_are_timed_in_turns(config):
  schema, splits = data.load(config.data_dir, **config.data)
  arrays = jax.device_put(engine.train_arrays(splits["train"], config))
  named = epoch_parts.programs(config, schema, len(splits["train"]))
  timed = ("shuffle", "+ dropout", epoch_parts.WHOLE)
  seconds = epoch_parts.measure({name: (*named[name], arrays) for name in timed}, rounds=2)
  assert tuple(seconds) == timed
  assert all(len(each) == 2 and min(each) > 0 for each in seconds.values())


def test_operations_and_fractions_by_hand():
  shapes = [(8, 10, 16), (2, 10, 8), (2, 16, 8), (2, 8, 1)]
  operations = 6 * (8 * 160 + 2 * 80 + 2 * 128 + 16)
  assert epoch_parts.operations(shapes) == operations
  seconds = {"shuffle": [1.0], epoch_parts.WHOLE: [4.0]}
  found = epoch_parts.summarise(seconds, shapes, 1000, 10, ([2.0], operations * 1000.0))
  assert [p["ms"] for p in found["parts"]] == [100, 400]
  assert [p["share"] for p in found["parts"]] == [0.25, 0.75]
  assert found["rows_per_second"] == 250
  assert found["fraction_of_ceiling"] == pytest.approx(0.5)
  assert "**0.50**" in epoch_parts.markdown({1024: found}, MACHINE)


def test_kernels_are_those_of_the_model(config):
  schema, _ = data.load(config.data_dir, **config.data)
  sizes = config.model
  shapes = epoch_parts.kernels(config, schema)
  inputs = sizes.embedding_dim * len(schema.id_features) + len(schema.numeric)
  assert (sizes.experts, inputs, sizes.expert_hidden[0]) in shapes
  assert (2, inputs, sizes.experts) in shapes


def test_many_times_census_is_census_many_times(prepared, tmp_path):
  folder = str(tmp_path / "more")
  assert streaming.multiply(prepared, folder, 3) == 3 * 2003
  once = data.load(prepared, ("income_50k",), "demo")[1]
  more = data.load(folder, ("income_50k",), "demo")[1]
  for name, values in more["train"].features.items():
    np.testing.assert_array_equal(values, np.tile(once["train"].features[name], (3, 1)))
  np.testing.assert_array_equal(more["test"].labels, once["test"].labels)


@pytest.mark.parametrize(("axis", "size"), [("experts", 2), ("tasks", 5), ("members", 3)])
def test_each_axis_changes_what_it_says(prepared, axis, size):
  found = scaling.measure(axis, size, prepared, rounds=1)
  assert found["rows"] == 2003
  assert found["rows_per_second"][0] > 0
  assert found["peak_bytes"] > 2**20
  plain = scaling.measure("batch", 1024, prepared, rounds=1)
  same = found["parameters"] == plain["parameters"]
  assert same == (axis == "members")


def test_tasks_are_repeated_with_their_labels(prepared):
  schema, splits = data.load(prepared, ("income_50k", "marital_stat"), "demo")
  more, labels = scaling._more_tasks(schema, splits["train"].labels, 5)
  assert len(more.tasks) == 5
  assert len({task.name for task in more.tasks}) == 5
  np.testing.assert_array_equal(labels[:, [0, 2, 4]], splits["train"].labels[:, [0, 0, 0]])
  np.testing.assert_array_equal(labels[:, 3], splits["train"].labels[:, 1])


def test_curves_are_drawn_for_each_axis(tmp_path):
  points = [
    {"axis": axis, "size": size, "rows_per_second": [size, 2.0 * size], "median": 1.5 * size}
    | {"peak_bytes": 2**30, "parameters": 7, "rows": 9}
    for axis in ("batch", "experts")
    for size in (2, 4)
  ]
  path = tmp_path / "curves.png"
  plots.scaling(str(path), points)
  assert path.read_bytes().startswith(b"\x89PNG")
  text = scaling.markdown(points, MACHINE)
  assert "| 4 | 6 | 4 to 8 | 1.00 | 7 | 9 |" in text
  assert text.count("rows a second") == 2


def test_what_a_user_waits_for_is_measured(config, raw, tmp_path):
  config.train.epochs = 1
  train.train_and_evaluate(config, str(tmp_path / "w"))
  predictor = Predictor(str(tmp_path / "w"))
  schema, splits = data.load(config.data_dir, **config.data)
  prepared = waiting.preparing(list(raw), str(tmp_path))
  assert (tmp_path / "prepared" / "schema.json").exists()
  found = {
    **prepared,
    **waiting.evaluating(config, schema, splits),
    **waiting.saving(config, schema, splits, str(tmp_path / "saved")),
    **waiting.scoring(predictor, splits, raw[1], str(tmp_path)),
  }
  assert all(value > 0 for value in found.values())
  assert prepared["arrays"] > prepared["bytes"]
  assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1002
  saved = json.dumps(sorted(os.listdir(tmp_path / "saved" / "checkpoints")))
  assert '"2"' in saved
