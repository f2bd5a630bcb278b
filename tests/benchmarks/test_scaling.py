"""Scaling benchmark: sizes, tasks, table and plot."""

import numpy as np
import pytest

from benchmarks import plots, scaling
from mmoe_jax import data

MACHINE = {"cores": 2, "processor": "a chip", "jax": "1.2", "device": "cpu"}


@pytest.mark.parametrize(
  ("axis", "size"),
  [
    ("tasks", 5),
    *(pytest.param(*a, marks=pytest.mark.slow) for a in (("experts", 2), ("members", 3))),
  ],
)
def test_each_axis_changes_its_size(prepared, axis, size):
  found = scaling.measure(axis, size, prepared, rounds=1)
  assert found["rows"] == 2003
  assert found["rows_per_second"][0] > 0
  assert found["peak_bytes"] > 2**20
  default = scaling.measure("batch", 1024, prepared, rounds=1)["parameters"]
  assert (found["parameters"] == default) == (axis == "members")


def test_tasks_are_repeated_with_their_labels(prepared):
  schema, splits = data.load(prepared, ("income_50k", "marital_stat"), "demo")
  more, labels = scaling._repeat_tasks(schema, splits["train"].labels, 5)
  assert len(more.tasks) == 5
  assert len({task.name for task in more.tasks}) == 5
  np.testing.assert_array_equal(labels[:, [0, 2, 4]], splits["train"].labels[:, [0, 0, 0]])
  np.testing.assert_array_equal(labels[:, 3], splits["train"].labels[:, 1])


def test_each_axis_has_a_curve_and_a_table(tmp_path):
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
  assert text.count("rows/s") == 2
