"""Lists: the rows, the epochs and the table. No speed is tested."""

import numpy as np

from benchmarks import lists


def test_rows_have_as_many_values_as_said():
  schema, split = lists.make_rows(50, 5.0, 1000, 20_000)
  values_NxL = split.features["ids"][:, 4:]
  counts_N = (values_NxL > 0).sum(1)
  assert abs(counts_N.mean() - 5) < 0.1
  assert counts_N.min() == 1
  np.testing.assert_array_equal(values_NxL > 0, np.arange(50) < counts_N[:, None])
  assert schema.id_count == split.features["ids"].shape[1] == 54


def test_both_forms_are_measured_and_tabulated():
  point = lists.measure(8, 2.0, "rows", 2048, 1)
  assert point["padded"] > 0 < point["packed"]
  text = lists.markdown([point], 2.0, {"processor": "a chip", "jax": "1.2"})
  assert "| 8 | rows |" in text
  assert "a chip, jax 1.2" in text
