"""Runs on a table with lists: packed in training, padded in scoring, resumed."""

import os

import numpy as np
import pytest

from configs import tabular
from data_prep import preparation, splitting
from data_prep.spec import parse_spec
from mmoe_jax.models import packed_lists
from mmoe_jax.training import list_packing, loop
from tests import shop_rows
from tests.training.test_large_tables import last_arrays, train_and_stop


@pytest.fixture
def shop_config(tmp_path):
  """Returns a config on rows with lists of up to 12 tags, most much shorter."""
  rows = shop_rows.make(1500, 5)
  rows.loc[7, "tags"].extend(["red", "blue"] * 5)
  path = shop_rows.write_parquet(rows, str(tmp_path / "shop.parquet"))
  text = shop_rows.SPEC.replace('tags = { role = "list", length = 3 }', 'tags = { role = "list" }')
  spec = parse_spec(text, "shop.toml")
  groups = splitting.splitters_of(spec.split, {"input": [path]})
  preparation.prepare(spec, groups, str(tmp_path / "data"))
  config = tabular.get_config(f"mmoe,data={tmp_path}/data,tasks=click+buy")
  config.train.epochs, config.train.devices, config.train.batch_size = 2, 1, 256
  config.checkpoint.every_epochs = 1
  return config


@pytest.mark.parametrize("updates", ["rows", pytest.param("dense", marks=pytest.mark.slow)])
def test_a_resumed_run_with_packed_lists_is_bitwise_identical(
  shop_config, tmp_path, monkeypatch, updates
):
  shop_config.optimizer.embedding.updates = updates
  packed = []
  pack = packed_lists.pack
  spy = lambda ids, capacity: packed.append((ids.shape, capacity)) or pack(ids, capacity)
  monkeypatch.setattr(list_packing, "pack", spy)
  whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
  results = loop.train_and_evaluate(shop_config, whole)
  assert packed
  for (rows, length), capacity in packed:
    assert capacity < packed_lists._WORTH * rows * length
  train_and_stop(shop_config, cut, 1, monkeypatch)
  assert loop.train_and_evaluate(shop_config, cut)["test"] == results["test"]
  a = last_arrays(whole) if updates == "rows" else loop.checkpoint.read_arrays(whole)
  b = last_arrays(cut) if updates == "rows" else loop.checkpoint.read_arrays(cut)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.slow
def test_packed_and_padded_runs_agree(shop_config, tmp_path, monkeypatch):
  packed = loop.train_and_evaluate(shop_config, str(tmp_path / "packed"))["test"]
  monkeypatch.setattr(list_packing, "choose_capacity", lambda *_: 0)
  padded = loop.train_and_evaluate(shop_config, str(tmp_path / "padded"))["test"]
  assert packed["click/log_loss"] == pytest.approx(padded["click/log_loss"], abs=1e-4)
  assert os.path.exists(tmp_path / "padded" / "results.json")
