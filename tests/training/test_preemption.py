"""Runs that a signal stops within an epoch: they resume as if nothing had happened."""

import json
import os

import numpy as np
import pytest

from configs import census
from mmoe_jax import data
from mmoe_jax.training import loop, population, train_rows
from mmoe_jax.workdir import checkpoint, contract, preemption

pytestmark = pytest.mark.usefixtures("_shared_programs")
TIMES = {"seconds", "wall_seconds", "rows_per_second"}


@pytest.fixture
def stop_at(monkeypatch):
  """Returns a function that makes the n-th question whether to stop the first with a yes.

  Questions 1 and 2 are asked before training.
  """

  def stop_at(question: int) -> None:
    asked = iter([False] * (question - 1))
    monkeypatch.setattr(preemption, "requested", lambda: next(asked, True))

  return stop_at


@pytest.fixture
def short_segments(monkeypatch):
  """Segments of at most 4 steps."""
  monkeypatch.setattr(train_rows, "SEGMENT_STEPS", 4)


def with_streamed_rows(config) -> None:
  """Sets batches of 64 rows and the memory for blocks of 7: an epoch has blocks of 7 7 7 7 4."""
  _, splits = data.load(config.data_dir, **config.data, budget=1.0)
  config.train.batch_size = 64
  config.train.memory_gib = 448.5 * train_rows._HELD * splits["train"].row_bytes / 2**30


def records(workdir) -> list[dict]:
  """Returns the records of an earlier run without their times."""
  with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
    return [{k: v for k, v in json.loads(x).items() if k not in TIMES} for x in file]


def arrays(workdir) -> dict[str, np.ndarray]:
  """Returns all arrays of the last checkpoint."""
  found = checkpoint.read_arrays(workdir)
  last = os.path.join(workdir, "checkpoints", str(contract.saved_epochs(workdir)[-1]))
  if os.path.isdir(os.path.join(last, "tables")):
    found |= checkpoint.read_arrays(workdir, "tables")
  return found


def assert_same_run(one, other) -> None:
  a, b = arrays(str(one)), arrays(str(other))
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  assert records(one) == records(other)


def test_segments_cover_an_epoch():
  rows = train_rows.Resident.__new__(train_rows.Resident)
  rows.block_rows = [256 * 600, 256 * 300 - 100]
  found = train_rows.segments(rows, 256)
  assert [s.steps for s in found] == [200, 200, 200, 150, 150]
  assert [s.start for s in found] == [0, 200, 400, 600, 750]
  assert [s.rows for s in found] == [256 * s.start for s in found]
  assert [(s.block, s.first) for s in found] == [(0, 0), (0, 200), (0, 400), (1, 0), (1, 150)]


def test_an_epoch_in_segments_is_that_in_one_call(config, tmp_path, monkeypatch):
  config.train.epochs, config.model.expert_dropout = 1, 0.2
  loop.train_and_evaluate(config, str(tmp_path / "one"))
  monkeypatch.setattr(train_rows, "SEGMENT_STEPS", 7)
  loop.train_and_evaluate(config, str(tmp_path / "three"))
  assert_same_run(tmp_path / "one", tmp_path / "three")


# Steps of an epoch's segments: 4 3 4 3 4 3 4 3 4 of streamed rows, eight times 4 of resident ones.
STREAMED = ((5, 9, 3, 9, 4, 9), (["0.11"], ["1.4"], ["1.7"], [], ["2.7"], []))
RESIDENT = ((5, 8, 3, 8, 4, 8), (["0.12"], ["1.4"], ["1.8"], [], ["2.8"], []))


@pytest.mark.parametrize(
  ("updates", "rows", "questions", "expected"),
  [
    ("rows", "streamed", *STREAMED),
    pytest.param("dense", "streamed", *STREAMED, marks=pytest.mark.slow),
    pytest.param("dense", "resident", *RESIDENT, marks=pytest.mark.slow),
  ],
)
@pytest.mark.usefixtures("short_segments")
def test_a_run_that_is_stopped_again_and_again(
  config, tmp_path, updates, rows, questions, expected, stop_at
):
  config.train.batch_size = 64
  config.model.expert_dropout = 0.2
  config.train.average_decay = 0.99
  config.loss.weighting = {"name": "dwa", **census.WEIGHTINGS["dwa"]}  # Has a state.
  if rows == "streamed":
    with_streamed_rows(config)
  if updates == "rows":  # Tables are saved apart.
    config.optimizer.embedding.updates = "rows"
    config.optimizer.embedding.name = "rowwise_adagrad"
  whole, cut = (str(tmp_path / name) for name in ("whole", "cut"))
  stop_at(1000)
  results = loop.train_and_evaluate(config, whole)
  assert bool(results["notes"]) == (rows == "streamed")
  places = []
  for question in questions:
    stop_at(question)
    with pytest.raises(preemption.Preempted):
      loop.train_and_evaluate(config, cut)
    folder = os.path.join(cut, "checkpoints", "unfinished")
    places.append(os.listdir(folder) if os.path.isdir(folder) else [])
  assert places == list(expected)  # Finished epochs, and steps of the next one.
  assert contract.saved_epochs(cut)[-1] == 3
  stop_at(1000)
  loop.train_and_evaluate(config, cut)
  assert_same_run(whole, cut)
  assert "unfinished" not in os.listdir(os.path.join(cut, "checkpoints"))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("rows", "questions", "expected"), [("streamed", *STREAMED), ("resident", (3, 3), ([], []))]
)
@pytest.mark.usefixtures("short_segments")
def test_a_population_that_is_stopped_again_and_again(
  config, tmp_path, rows, questions, expected, stop_at
):
  config.model.expert_dropout = 0.2
  if rows == "streamed":
    with_streamed_rows(config)
  members = [{"seed": 1}, {"seed": 2}, {"seed": 3}]
  config.train.devices = 2
  whole, cut = (str(tmp_path / name) for name in ("whole", "cut"))
  stop_at(1000)
  results = population.train_population(config, members, whole)
  places = []
  for question in questions:
    stop_at(question)
    with pytest.raises(preemption.Preempted):
      population.train_population(config, members, cut)
    folder = os.path.join(cut, "checkpoints", "unfinished")
    places.append(os.listdir(folder) if os.path.isdir(folder) else [])
  assert places == list(expected)
  assert contract.saved_epochs(cut)[-1] == (3 if rows == "streamed" else 2)
  stop_at(1000)
  assert population.train_population(config, members, cut) == results
  assert_same_run(whole, cut)
