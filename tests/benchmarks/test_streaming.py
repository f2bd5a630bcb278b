"""Streaming benchmark: the data set that it writes."""

import numpy as np

from benchmarks import streaming
from mmoe_jax import data


def test_the_data_set_is_copies_of_the_prepared_rows(prepared, tmp_path):
  folder = str(tmp_path / "more")
  assert streaming.multiply(prepared, folder, 3) == 3 * 2003
  once = data.load(prepared, ("income_50k",), "demo")[1]
  more = data.load(folder, ("income_50k",), "demo")[1]
  for name, values in more["train"].features.items():
    np.testing.assert_array_equal(values, np.tile(once["train"].features[name], (3, 1)))
  np.testing.assert_array_equal(more["test"].labels, once["test"].labels)
