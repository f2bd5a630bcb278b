"""Conditions: Python's own evaluation, SQL's missing values, errors at a character."""

import itertools
import math
import operator

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mmoe_jax.data.columns import from_rows
from mmoe_jax.data.conditions import evaluate, parse_condition
from mmoe_jax.errors import UserError

ROWS = [
  {"a": a, "b": b, "c d": c}
  for a, b, c in itertools.product((None, 1, 2.5), ("x", "y z", None), ("1", "7"))
]


def holds(text):
  return evaluate(parse_condition(text), from_rows(ROWS)).tolist()


def expected(function, *columns):
  return [
    math.nan if any(row[c] is None for c in columns) else float(function(row)) for row in ROWS
  ]


@pytest.mark.parametrize(
  ("text", "function", "columns"),
  [
    ("a >= 2", lambda r: r["a"] >= 2, "a"),
    ("a == 1", lambda r: r["a"] == 1, "a"),
    ("a != 1.0", lambda r: r["a"] != 1, "a"),
    ("b == 'y z'", lambda r: r["b"] == "y z", "b"),
    ('b != "x"', lambda r: r["b"] != "x", "b"),
    ("b in ('x', 'q')", lambda r: r["b"] == "x", "b"),
    ("a not in (1, 3)", lambda r: r["a"] != 1, "a"),
    ("`c d` < 3", lambda r: int(r["c d"]) < 3, ()),
    ("`c d` == '7'", lambda r: r["c d"] == "7", ()),
    ("not b == 'x'", lambda r: r["b"] != "x", "b"),
    ("a > -1e3", lambda r: True, "a"),
  ],
)
def test_comparisons_are_those_of_python(text, function, columns):
  np.testing.assert_array_equal(holds(text), expected(function, *columns))


def test_missing_values_propagate_as_in_sql():
  a, b = holds("a == 1"), holds("b == 'x'")

  def sql_and(p, q):
    return 0.0 if 0 in (p, q) else math.nan if math.isnan(p + q) else 1.0

  both = [sql_and(p, q) for p, q in zip(a, b, strict=True)]
  np.testing.assert_array_equal(holds("a == 1 and b == 'x'"), both)
  either = [1 - sql_and(1 - p, 1 - q) for p, q in zip(a, b, strict=True)]
  np.testing.assert_array_equal(holds("(a == 1) or b == 'x'"), either)
  assert holds("a is missing") == [float(row["a"] is None) for row in ROWS]
  assert holds("b is not missing") == [float(row["b"] is not None) for row in ROWS]


def test_and_binds_more_than_or():
  assert parse_condition("a == 1 or a == 2 and b == 3") == parse_condition(
    "a == 1 or (a == 2 and b == 3)"
  )


def test_columns_and_values_are_named():
  condition = parse_condition("not (a in ('u', 'v') or `c d` is missing) and a == 'w'")
  assert condition.columns == ("a", "c d")
  assert condition.values == ()
  assert parse_condition("a in ('u', 'v')").values == ("u", "v")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "character 1: must be the name of a column, not the end"),
    ("a = 1", "character 3: '=' has no meaning"),
    ("a == b", "character 6: must be a number or a text in quotes, not b; write 'b' in quotes"),
    ("a == 1 b", "character 8: must end here"),
    ("(a == 1", "character 8: must be '\\)', not the end"),
    ("a < 'x'", "< needs a number"),
    ("a in (1, 'x')", "must not mix numbers and texts"),
    ("a == ''", "write 'is missing'"),
    ("a == ' x'", "must not begin or end with a space"),
    ("a is 3", "must be 'missing', not 3"),
    ("1 == a", "must be the name of a column"),
    ("not " * 60 + "a == 1", "more than 50 nested parts"),
    ("(" * 60 + "a == 1" + ")" * 60, "more than 50 nested parts"),
    ("a == 1 or " * 2000 + "a == 1", "must have at most 10,000 characters"),
    ("__import__('os')", "character 11"),
  ],
)
def test_faults_are_named_with_their_place(text, message):
  with pytest.raises(UserError, match=message):
    parse_condition(text, "spec.toml: tasks.t.condition")


PIECES = ("a", "`c d`", "==", ">=", "<", "in", "not", "is", "missing", "and", "or", "(", ")", ",")


@hypothesis.given(st.lists(st.sampled_from((*PIECES, "1", "'x'", "-2.5e1", "\x00", "é", "`"))))
@hypothesis.settings(max_examples=300, deadline=None)
def test_any_text_is_a_condition_or_one_error(pieces):
  try:
    condition = parse_condition(" ".join(pieces))
  except UserError:
    return
  if set(condition.columns) <= {"a", "c d"}:
    got = evaluate(condition, from_rows([{"a": 1.5, "c d": "7"}, {"a": None, "c d": "2"}]))
    assert got.shape == (2,)


def test_numbers_are_compared_as_numbers():
  table = from_rows([{"a": "10"}, {"a": "9"}, {"a": "1e1"}])
  for name in ("lt", "ge"):
    symbol = {"lt": "<", "ge": ">="}[name]
    got = evaluate(parse_condition(f"a {symbol} 10"), table)
    assert got.tolist() == [float(getattr(operator, name)(float(x), 10)) for x in ("10", "9", "10")]
  with pytest.raises(UserError, match="line 1, column 'a': 'ten' is not a number"):
    evaluate(parse_condition("a < 10"), from_rows([{"a": "ten"}]))
