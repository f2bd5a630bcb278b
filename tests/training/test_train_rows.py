"""Streamed train rows: every row once per epoch, for any memory budget."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from configs import smoke
from mmoe_jax import data, parallel
from mmoe_jax.errors import UserError
from mmoe_jax.evaluation.results_table import format_results
from mmoe_jax.training import loop, population, train_rows
from mmoe_jax.workdir import checkpoint

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
  """Returns the memory_gib for blocks of at most that many rows."""
  return (rows + 0.5) * train_rows._HELD * stored.row_bytes / 2**30


def table(features, labels, weights) -> np.ndarray:
  """Returns all values of rows as columns."""
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
  monkeypatch.setattr(data.shards, "CHUNK", 100)
  ranges = [(3, 950), (1, 2), (1000, 1100)]
  expected = np.concatenate([rows_of(whole)[a:b] for a, b in ranges])
  np.testing.assert_array_equal(rows_of(stored.read(ranges)), expected)


def test_crosses_of_streamed_rows_are_those_of_resident_rows(prepared, monkeypatch):
  monkeypatch.setattr(data.shards, "CHUNK", 100)
  arguments = (prepared, ("income_50k",), "demo", "both", (), ("sex#education", "race#age_bins"))
  schema, whole = data.load(*arguments)
  streamed, splits = data.load(*arguments, budget=1.0)
  assert isinstance(splits["train"], data.StoredSplit)
  assert streamed == schema
  ranges = [(3, 950), (1000, 1100)]
  expected = np.concatenate([rows_of(whole["train"])[a:b] for a, b in ranges])
  np.testing.assert_array_equal(rows_of(splits["train"].read(ranges)), expected)


@pytest.mark.parametrize(("block", "devices"), [(64, 1), (300, 1), (1002, 4), (1999, 1)])
def test_an_epoch_has_every_row_once(config, schema, stored, whole, block, devices):
  config.train.memory_gib = budget_for(block, stored)
  config.train.batch_size = 64
  rows = train_rows.create_train_rows(stored, schema, config, parallel.Devices(devices))
  assert rows.count == ROWS
  assert rows.steps == 32  # ceil(2,003 / 64): every batch is full but the last.
  expected = rows_of(whole)
  expected[:, -1] = 1  # config.loss.sample_weight is disabled.
  orders = []
  for epoch in (1, 2, 1):
    numbers, batches = zip(*rows.blocks(epoch), strict=True)
    assert numbers == tuple((b,) for b in range(len(batches)))
    batches = jax.device_get(batches)
    sizes = [len(batch.labels) for batch in batches]
    assert all(size % 64 == 0 and size <= block for size in sizes[:-1])
    assert {len(shape.labels) for shape in rows.shapes} == set(sizes)
    assert len(rows.sample) == sizes[0]
    orders.append(np.concatenate([table(*batch) for batch in batches]))
    np.testing.assert_array_equal(in_order(orders[-1]), in_order(expected))
  np.testing.assert_array_equal(orders[0], orders[2])
  assert not np.array_equal(orders[0], orders[1])


class HalfOfDevices(parallel.Devices):
  """Devices of which this host has one half, as `parallel.Devices` of two hosts."""

  def __init__(self, half):
    super().__init__(1)
    self.half = half

  def local_ranges(self, rows):
    middle = -(-rows // 2)
    return [(0, middle), (middle, rows)][self.half : self.half + 1]

  def gather(self, tree, rows):
    return tree


def test_hosts_read_their_shares_of_the_blocks_of_one(config, schema, stored):
  config.train.memory_gib = budget_for(300, stored)
  config.train.batch_size = 64
  alone = train_rows.create_train_rows(stored, schema, config, parallel.Devices(1))
  halves = [
    train_rows.create_train_rows(stored, schema, config, HalfOfDevices(half)) for half in range(2)
  ]
  sample = np.concatenate([rows_of(half.sample) for half in halves])
  np.testing.assert_array_equal(sample, rows_of(alone.sample))
  for expected, *shares in zip(*(rows.blocks(1, 2) for rows in (alone, *halves)), strict=True):
    assert [number for number, _ in shares] == [expected[0]] * 2
    rows = np.concatenate([table(*batch) for _, batch in shares])
    np.testing.assert_array_equal(rows, table(*expected[1]))


def test_steps_of_streamed_rows_are_those_of_resident_rows(config, schema, stored, monkeypatch):
  # 6,401 rows in blocks of 10 batches of 64: 101 steps, not 110.
  monkeypatch.setattr(data.StoredSplit, "__len__", lambda self: 6401)
  monkeypatch.setattr(
    train_rows.Streamed, "_read", lambda self, order, block: stored.read([(0, 64)])
  )
  config.train.batch_size = 64
  config.train.memory_gib = budget_for(640, stored)
  rows = train_rows.create_train_rows(stored, schema, config, parallel.Devices(1))
  assert rows.steps == 101
  assert rows._bounds[-1] == 6401
  assert max(np.diff(rows._bounds)) <= 640


def test_without_shuffling_blocks_stand_as_on_disk(config, schema, stored, whole):
  config.train.memory_gib = budget_for(400, stored)
  config.train.shuffle = False
  rows = train_rows.create_train_rows(stored, schema, config, parallel.Devices(1))
  labels = np.concatenate([batch.labels for _, batch in rows.blocks(1)])
  np.testing.assert_array_equal(labels, whole.labels)


def test_labels_of_every_block_are_checked(prepared, tmp_path):
  config = smoke.get_config("esmm")
  config.data_dir = str(tmp_path / "data")
  config.train.devices = 1
  config.train.batch_size = 128
  shutil.copytree(prepared, config.data_dir)
  path = os.path.join(config.data_dir, "train", "labels.npy")
  labels = np.load(path)
  names = [t.name for t in data.restore_schema(os.path.join(prepared, "schema.json")).tasks]
  labels[-1, names.index("education")], labels[-1, names.index("bachelors")] = 0, 1
  np.save(path, labels)
  os.remove(os.path.join(config.data_dir, "manifest.json"))
  _, splits = data.load(config.data_dir, **config.data, budget=1.0)
  config.train.memory_gib = budget_for(300, splits["train"])
  with pytest.raises(UserError, match="1 train rows have 'bachelors' without 'education'"):
    loop.train_and_evaluate(config, str(tmp_path / "w"))


@pytest.mark.slow
def test_a_streamed_run_reaches_the_auc_of_a_resident_one(config, stored, tmp_path):
  config.train.epochs = 6
  resident = loop.train_and_evaluate(config, str(tmp_path / "resident"))
  config.train.memory_gib = budget_for(400, stored)
  streamed = loop.train_and_evaluate(config, str(tmp_path / "streamed"))
  assert streamed["train_rows"] == ROWS
  assert streamed["notes"] == {"train": "measured on a random sample of 384 rows"}
  assert resident["notes"] == {}
  assert "\ntrain: measured on a random sample of 384 rows" in format_results(streamed, "w")
  auc = "income_50k/auc"
  assert abs(streamed["test"][auc] - resident["test"][auc]) < 0.02
  assert resident["test"][auc] > 0.8


def test_a_resumed_streamed_run_is_bitwise_identical(config, stored, tmp_path):
  config.train.memory_gib = budget_for(400, stored)
  config.model.expert_dropout = 0.2
  config.train.epochs = 3
  loop.train_and_evaluate(config, str(tmp_path / "whole"))
  folder = str(tmp_path / "cut")
  config.checkpoint.every_epochs = 1

  class Killed(Exception):
    pass

  def dying(self, epoch, first=0, blocks=train_rows.Streamed.blocks):
    if epoch == 3:
      raise Killed
    return blocks(self, epoch, first)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train_rows.Streamed, "blocks", dying)
    with pytest.raises(Killed):
      loop.train_and_evaluate(config, folder)
  loop.train_and_evaluate(config, folder)
  lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(x)["epoch"] for x in lines] == [1, 2, 3]
  whole, cut = (checkpoint.read_arrays(str(tmp_path / name)) for name in ("whole", "cut"))
  assert whole.keys() == cut.keys()
  for name, array in whole.items():
    np.testing.assert_array_equal(array, cut[name], err_msg=name)


@pytest.mark.slow
def test_a_streamed_population_trains_on_the_blocks_of_a_streamed_run(config, stored, tmp_path):
  config.train.memory_gib = budget_for(400, stored)
  config.train.epochs = 2
  config.data.crosses = ("sex#race",)
  alone = loop.train_and_evaluate(config, str(tmp_path / "alone"))
  members = [{"seed": config.seed}, {"seed": 7}]
  results = population.train_population(config, members, str(tmp_path / "members"))
  for split in ("train", "validation", "test"):
    assert results[0][split] == alone[split]
    assert results[1][split] != alone[split]
  assert results[0]["notes"]["train"] == alone["notes"]["train"]
  with open(tmp_path / "members" / "metrics.jsonl", encoding="utf-8") as file:
    losses = [json.loads(line)["loss"][0] for line in file]
  with open(tmp_path / "alone" / "metrics.jsonl", encoding="utf-8") as file:
    assert losses == [json.loads(line)["loss"] for line in file]


def test_impossible_streaming_is_refused(config, stored, tmp_path):
  config.train.memory_gib = budget_for(100, stored)
  with pytest.raises(UserError, match="must hold 4 blocks of one batch of 128 rows; increase it"):
    loop.train_and_evaluate(config, str(tmp_path / "w"))
  with pytest.raises(UserError, match="must hold 4 blocks of one batch of 128 rows; increase it"):
    population.train_population(config, [{"seed": 0}], str(tmp_path / "w"))
  config.train.memory_gib = -1.0
  with pytest.raises(UserError, match=r"memory_gib = -1.0: must be at least 0"):
    loop.train_and_evaluate(config, str(tmp_path / "w"))
  assert not (tmp_path / "w").exists()
