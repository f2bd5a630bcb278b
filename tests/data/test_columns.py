"""Raw values: the same from CSV, Parquet, a DataFrame, an Arrow table and dicts."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mmoe_jax.data import tables
from mmoe_jax.data.columns import from_arrow, from_pandas, from_rows, to_table
from mmoe_jax.data.times import times_of
from mmoe_jax.errors import UserError
from tests import reference, shop_rows


def texts(table, column):
  factor = table.factor(column)
  return [factor.texts()[code] for code in factor.codes]


def forms(tmp_path, frame):
  """Returns the rows as tables of every kind."""
  dicts = frame.astype(object).where(frame.notna(), None).to_dict("records")
  return {
    "csv": tables.read_table(shop_rows.write_csv(frame, str(tmp_path / "rows.csv"))),
    "parquet": tables.read_table(shop_rows.write_parquet(frame, str(tmp_path / "rows.parquet"))),
    "frame": from_pandas(frame.reset_index(drop=True)),
    "arrow": from_arrow(pa.Table.from_pandas(frame, preserve_index=False)),
    "dicts": from_rows(dicts),
  }


def test_values_do_not_depend_on_where_they_come_from(tmp_path):
  found = forms(tmp_path, shop_rows.make(60, 1))
  for table in found.values():
    table.missing = {"age": ("NA",)}
  first = found["csv"]
  for table in found.values():
    for column in ("row", "user", "country", "age", "price", "weight", "rating", "note"):
      assert texts(table, column) == texts(first, column)
    for column in ("age", "price", "score", "rating"):
      np.testing.assert_array_equal(table.numbers(column), first.numbers(column))
    rows, values = table.lists("tags", "|")
    expected_rows, expected = first.lists("tags", "|")
    np.testing.assert_array_equal(rows, expected_rows)
    assert [values.texts()[c] for c in values.codes] == [
      expected.texts()[c] for c in expected.codes
    ]
    np.testing.assert_array_equal(times_of(table, "time"), times_of(first, "time"))


def test_float32_has_the_value_that_a_file_would_hold():
  values = reference.fresh_rng().normal(0, 1, 500).astype(np.float32)
  table = from_arrow(pa.table({"x": values}))
  texts_of_file = pd.Series(values).astype(str)
  np.testing.assert_array_equal(table.numbers("x"), texts_of_file.astype(float))
  assert texts(table, "x") == list(texts_of_file)


@pytest.mark.parametrize("kind", ["list", "arrow", "plain"])
def test_numbers_are_correctly_rounded(kind):
  rng = reference.fresh_rng()
  values = np.concatenate([rng.normal(0, 1, 300), np.exp(rng.uniform(-60, 60, 300))])
  given = [repr(float(v)) for v in values] + ["+5", " 7 ", ".5", "3.", "1E3", "-0"]
  expected = [float(v) for v in given]
  column = given if kind == "list" else pa.array(given)
  if kind == "arrow":
    column = column.dictionary_encode()
  table = from_rows([{"x": v} for v in given])
  table.columns = {"x": column}
  np.testing.assert_array_equal(table.numbers("x"), expected)


@pytest.mark.parametrize(
  "value", ["1,5", "0x10", "1_000", "nan", "inf", "-inf", "\u0661", "1e400", "-", "1e"]
)
@pytest.mark.parametrize("as_list", [True, False])
def test_other_texts_are_no_numbers(value, as_list):
  table = from_rows([{"x": "1"}, {"x": value}])
  if not as_list:
    table.columns = {"x": pa.array(["1", value])}
  with pytest.raises(UserError, match="line 2, column 'x'"):
    table.numbers("x")


def test_bad_rows_are_collected_on_request():
  table = from_rows([{"x": v} for v in ("1", "old", "", "-3", "1e31")])
  table.bad = {}
  table.numbers("x", 0.0)
  assert sorted(table.bad) == [1, 3, 4]
  assert "'old' is not a number" in table.bad[1]
  assert "not a number >= 0" in table.bad[3]


@pytest.mark.parametrize("values", [["a;b", "", " b ; ;a"], [["a", "b"], None, ["b", None, "a"]]])
def test_lists_leave_out_empty_values(values):
  for column in (values, pa.array(values)):
    table = from_rows([{"t": "x"}] * 3)
    table.columns = {"t": column}
    rows, factor = table.lists("t", ";")
    assert rows.tolist() == [0, 0, 2, 2]
    assert [factor.texts()[c] for c in factor.codes] == ["a", "b", "b", "a"]


def test_times_are_read_in_utc():
  given = [
    "2026-01-31",
    "2026-01-31 18:30:05",
    "2026-01-31T18:30:05Z",
    "2026-01-31T18:30:05+02:00",
    "",
    "86400",
  ]
  got = times_of(from_rows([{"t": v} for v in given]), "t").astype("datetime64[s]")
  expected = [
    "2026-01-31",
    "2026-01-31T18:30:05",
    "2026-01-31T18:30:05",
    "2026-01-31T16:30:05",
    "NaT",
    "1970-01-02",
  ]
  np.testing.assert_array_equal(got, np.array(expected, "datetime64[s]"))
  with pytest.raises(UserError, match="line 1, column 't': 'yesterday' is not a time"):
    times_of(from_rows([{"t": "yesterday"}]), "t")


def test_other_objects_are_refused():
  for rows in (3, "text", [1, 2]):
    with pytest.raises(UserError, match="must be a DataFrame, an Arrow table, a dict or a list"):
      to_table(rows)
  with pytest.raises(UserError, match="no rows"):
    to_table([])


@pytest.mark.parametrize(
  "values",
  [
    pa.array([{"a": 1}]),
    pa.array([[1]]),
    pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
  ],
)
def test_nested_values_are_named(values):
  table = from_arrow(pa.table({"x": values}), "rows.parquet")
  with pytest.raises(UserError, match=r"rows\.parquet, column 'x': has the type .*must hold texts"):
    table.factor("x")
  lists = from_arrow(pa.table({"x": pa.array([[{"a": 1}]])}), "rows.parquet")
  with pytest.raises(UserError, match=r"column 'x': has the type struct<a: int64>, must hold"):
    lists.lists("x", "|")
