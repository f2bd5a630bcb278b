"""Vocabularies: our contenders, their rows, and the tables. No speed is tested."""

import sys

import numpy as np
import pytest

from benchmarks import plots, vocabularies
from benchmarks.contenders import protocol, tables_ours
from mmoe_jax.evaluation.tables import DASH


@pytest.fixture
def task(tmp_path) -> protocol.Task:
  path = str(tmp_path / "arrays.npz")
  vocabularies.write_arrays(path, 800, 256)
  held = dict(np.load(path))
  return protocol.Task(**held | {"sizes": held["sizes"].tolist()}, batch_size=64, seed=0)


@pytest.mark.parametrize("variant", ["dense_adam", "rows_rowwise_adagrad"])
def test_our_contenders_train_the_tables_in_their_way(task, variant, monkeypatch):
  monkeypatch.setenv("CONTENDER_VARIANT", variant)
  contender = tables_ours.TablesOurs(task)
  assert task.ids.max() < 100
  assert contender.train_epoch() == 256
  is_by_rows = hasattr(contender._state.opt_state, "rows")
  assert is_by_rows == variant.startswith("rows")
  assert contender._state.params["embedding"]["table_16"].shape[0] >= 800
  assert contender.parameters > 800 * 16


def test_contenders_take_turns_and_are_tabulated(tmp_path, monkeypatch):
  monkeypatch.setattr(vocabularies, "_STEPS", 2)
  names = ["ours_rowwise_adagrad"]
  points = vocabularies.measure(names, 800, 16, 1, sys.executable)
  assert points[0]["median"] > 0
  assert points[0]["peak_bytes"] > 1 << 20
  points.append({**points[0], "contender": "pytorch_dense_adam", "table_rows": 80})
  machine = {"cores": 2, "processor": "a chip", "jax": "1.2", "device": "cpu"}
  machine |= {"bandwidth": 8e9, "floor": vocabularies.floor(8e9)}
  text = vocabularies.markdown(points, machine)
  assert "| ours_rowwise_adagrad |" in text
  assert f"| {DASH} |" in text
  assert "The floor is 7,352,941 rows/s, at 8.0 GB/s" in text
  plots.vocabularies(str(tmp_path / "plot.png"), points)
  assert (tmp_path / "plot.png").stat().st_size > 1000
