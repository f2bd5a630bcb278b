"""Train rows that are streamed in blocks: every row once an epoch, whatever the budget."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from configs import smoke
from mmoe_jax import data, parallel, population, report, stream, train
from mmoe_jax.errors import UserError
from tests.test_train import leaves_equal, restored

ROWS = 2003


@pytest.fixture(scope="module")
def stored(prepared) -> data.StoredSplit:
  _, splits = data.load(prepared, ("income_50k", "marital_stat"), "demo", "both", budget=1.0)
  return splits["train"]


@pytest.fixture(scope="module")
def schema(prepared) -> data.Schema:
  return data.load(prepared, ("income_50k", "marital_stat"), "demo", "both")[0]


@pytest.fixture(scope="module")
def whole(prepared) -> data.Split:
  _, splits = data.load(prepared, ("income_50k", "marital_stat"), "demo", "both")
  return splits["train"]


def budget_for(rows: int, stored: data.StoredSplit) -> float:
  """The memory_gib under which a block has at most so many rows."""
  return (rows + 0.5) * stream._HELD * stored.row_bytes / 2**30


def table(features, labels, weights) -> np.ndarray:
  """All that rows hold, side by side."""
  columns = (features["ids"], features["numeric"], labels, weights[:, None])
  return np.concatenate([np.asarray(c, np.float64) for c in columns], 1)


def rows_of(split: data.Split) -> np.ndarray:
  return table(split.features, split.labels, split.weights)


def in_order(rows: np.ndarray) -> np.ndarray:
  return rows[np.lexsort(rows.T)]


def test_stored_rows_are_those_that_loading_gives(stored, whole):
  assert len(stored) == ROWS
  ranges = [(1990, 2003), (0, 1), (5, 5), (700, 1400)]
  expected = np.concatenate([rows_of(whole)[a:b] for a, b in ranges])
  np.testing.assert_array_equal(rows_of(stored.read(ranges)), expected)
  taken = stored.read(ranges)
  older = [whole.slices["16_and_over"][a:b] for a, b in ranges]
  np.testing.assert_array_equal(taken.slices["16_and_over"], np.concatenate(older))
  assert taken.features["ids"].dtype == whole.features["ids"].dtype
  held = [*taken.features.values(), taken.labels, taken.weights]
  assert sum(a.nbytes for a in held) == len(taken) * stored.row_bytes


def test_arrays_that_cannot_be_read_row_by_row_are_named(prepared, tmp_path):
  where = str(tmp_path / "d")
  shutil.copytree(prepared, where)
  _, splits = data.load(where, ("income_50k",), "demo", budget=1.0)
  stored, path = splits["train"], tmp_path / "d" / "train" / "ids.npy"
  whole = path.read_bytes()
  np.save(path, np.asfortranarray(np.load(path)))
  with pytest.raises(UserError, match=r"train/ids\.npy: not stored row by row; prepare the data"):
    stored.read([(0, 10)])
  path.write_bytes(whole[:-1])
  with pytest.raises(UserError, match=r"ids\.npy: broken array"):
    stored.read([(0, 10)])
  path.write_bytes(whole)
  with pytest.raises(UserError, match=r"train/ids\.npy: ends early; prepare the data again"):
    stored.read([(ROWS - 5, ROWS + 5)])


def test_long_ranges_are_read_in_pieces(stored, whole, monkeypatch):
  monkeypatch.setattr(data, "_PIECE", 100)
  ranges = [(3, 950), (1, 2), (1000, 1100)]
  expected = np.concatenate([rows_of(whole)[a:b] for a, b in ranges])
  np.testing.assert_array_equal(rows_of(stored.read(ranges)), expected)


@pytest.mark.parametrize(("block", "devices"), [(64, 1), (300, 1), (1002, 4), (1999, 1)])
def test_an_epoch_has_every_row_once(config, schema, stored, whole, block, devices):
  config.train.memory_gib = budget_for(block, stored)
  config.train.batch_size = 64
  rows = stream.create(stored, schema, config, parallel.Devices(devices))
  assert rows.rows == ROWS
  orders = []
  for epoch in (1, 2, 1):
    blocks = list(rows.of_epoch(epoch))
    count = rows.steps * 64 // len(rows.sample)
    assert [number for number, _ in blocks] == [(b,) for b in range(count)]
    assert len(rows.sample) % 64 == 0  # Whole batches.
    arrays = [jax.device_get(a) for _, a in blocks]
    assert {len(a["labels"]) for a in arrays} == {len(rows.sample)}
    assert len(rows.sample) <= block
    assert rows.steps * 64 - ROWS < len(rows.sample)
    # Made of the features' shapes, not their values.
    assert jax.tree.map(np.shape, arrays[0]) == jax.tree.map(lambda a: a.shape, rows.arrays)
    held = np.concatenate([table(a["features"], a["labels"], a["weights"]) for a in arrays])
    orders.append(held)
    np.testing.assert_array_equal(held[ROWS:, -1], 0)  # What fills up the last block.
    ones = held[:ROWS].copy()
    ones[:, -1] = 1
    expected = rows_of(whole)
    expected[:, -1] = 1  # config.loss.sample_weight is off.
    np.testing.assert_array_equal(in_order(ones), in_order(expected))
  np.testing.assert_array_equal(orders[0], orders[2])
  assert not np.array_equal(orders[0], orders[1])


def test_steps_are_those_of_all_blocks(config, schema, stored):
  config.train.memory_gib = budget_for(1002, stored)
  rows = stream.create(stored, schema, config, parallel.Devices(1))
  assert rows.steps == 3 * 6  # 16 batches of 128 rows, of which 7 fit a block.


def test_without_shuffling_blocks_stand_as_on_disk(config, schema, stored, whole):
  config.train.memory_gib = budget_for(400, stored)
  config.train.shuffle = False
  rows = stream.create(stored, schema, config, parallel.Devices(1))
  arrays = [jax.device_get(a) for _, a in rows.of_epoch(1)]
  labels = np.concatenate([a["labels"] for a in arrays])
  np.testing.assert_array_equal(labels[:ROWS], whole.labels)


def test_labels_of_every_block_are_checked(prepared, tmp_path):
  config = smoke.get_config("esmm")
  config.data_dir = str(tmp_path / "data")
  config.train.devices = 1
  config.train.batch_size = 128
  shutil.copytree(prepared, config.data_dir)
  path = os.path.join(config.data_dir, "train", "labels.npy")
  labels = np.load(path)
  names = [t.name for t in data.Schema.restore(os.path.join(prepared, "schema.json")).tasks]
  labels[-1, names.index("education")], labels[-1, names.index("bachelors")] = 0, 1
  np.save(path, labels)
  _, splits = data.load(config.data_dir, **config.data, budget=1.0)
  config.train.memory_gib = budget_for(300, splits["train"])
  with pytest.raises(UserError, match="1 train rows have 'bachelors' without 'education'"):
    train.train_and_evaluate(config, str(tmp_path / "w"))


def test_a_streamed_run_learns_what_a_resident_one_does(config, stored, tmp_path):
  config.train.epochs = 6
  resident = train.train_and_evaluate(config, str(tmp_path / "resident"))
  config.train.memory_gib = budget_for(400, stored)
  streamed = train.train_and_evaluate(config, str(tmp_path / "streamed"))
  assert streamed["train_rows"] == ROWS
  assert streamed["notes"] == {"train": "measured on 384 rows of it, at random"}
  assert resident["notes"] == {}
  assert "\ntrain: measured on 384 rows" in report.table(streamed, "w")
  auc = "income_50k/auc"
  assert abs(streamed["test"][auc] - resident["test"][auc]) < 0.02
  assert resident["test"][auc] > 0.8


def test_a_streamed_run_resumes_bit_for_bit(config, stored, tmp_path):
  config.train.memory_gib = budget_for(400, stored)
  config.model.expert_dropout = 0.2
  config.train.epochs = 3
  train.train_and_evaluate(config, str(tmp_path / "whole"))
  folder = str(tmp_path / "cut")
  config.checkpoint.every_epochs = 1

  class Killed(Exception):
    pass

  def dying(self, record, write=stream.Streamed.of_epoch):
    if record == 3:
      raise Killed
    return write(self, record)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(stream.Streamed, "of_epoch", dying)
    with pytest.raises(Killed):
      train.train_and_evaluate(config, folder)
  train.train_and_evaluate(config, folder)
  lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(x)["epoch"] for x in lines] == [1, 2, 3]
  leaves_equal(*(restored(tmp_path / name, config) for name in ("whole", "cut")))


def test_what_does_not_fit_or_cannot_be_streamed_is_told(config, stored, tmp_path):
  config.train.memory_gib = budget_for(100, stored)
  with pytest.raises(UserError, match="blocks of one batch of 128 rows do not fit; allow more"):
    train.train_and_evaluate(config, str(tmp_path / "w"))
  with pytest.raises(UserError, match="populations hold their rows in memory"):
    population.train_population(config, [{"seed": 0}], str(tmp_path / "w"))
  config.data.crosses = ("sex#education",)
  with pytest.raises(UserError, match="train rows are streamed, and get no crosses"):
    train.train_and_evaluate(config, str(tmp_path / "w"))
  config.data.crosses = ()
  config.train.memory_gib = -1.0
  with pytest.raises(UserError, match=r"memory_gib is -1.0; must be at least 0"):
    train.train_and_evaluate(config, str(tmp_path / "w"))
  assert not (tmp_path / "w").exists()
