"""Specs: what is wrong is named by file and key; no text gives a traceback."""

import string
import tomllib

import hypothesis
import pytest
from hypothesis import strategies as st

from data_prep import census_income, clicks, flights
from data_prep.spec import Column, Spec, parse_spec, read_spec
from mmoe_jax.errors import UserError
from tests import shop_rows


def test_the_specs_of_the_repository_are_valid(tmp_path):
  for path in (census_income.SPEC, flights.SPEC, clicks.SPEC):
    assert isinstance(read_spec(path), Spec)
  with pytest.raises(FileNotFoundError):
    read_spec(str(tmp_path / "none.toml"))
  (tmp_path / "latin.toml").write_bytes("a = 'Zürich'".encode("latin-1"))
  with pytest.raises(UserError, match=r"latin\.toml: not a text file in UTF-8"):
    read_spec(str(tmp_path / "latin.toml"))


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ('role = "category" }', 'role = "categorie" }', r"columns\.country\.role: invalid enum value"),
    ("buckets = 50", "bukets = 50", "has no key 'bukets'; did you mean 'buckets'"),
    (", buckets = 50", "", r"columns\.user\.buckets is missing"),
    ("buckets = 50", "buckets = -1", r"columns\.user\.buckets = -1: must be from 0"),
    ("bins = 8", "bins = 0", r"columns\.age\.bins = 0: must be from 1"),
    ("bins = 8", "bins = '8'", r"columns\.age\.bins: expected `int`, got `str`"),
    ("bins = 8", "min_count = 8", r"columns\.age\.min_count: has no effect on the role 'number'"),
    ('transform = "log1p"', 'transform = "log"', r"columns\.price\.transform: invalid enum"),
    ("min_count = 20", "min_count = 0", r"columns\.device\.min_count = 0: must be at least 1"),
    ("length = 3", "length = 3, separator = ''", r"columns\.tags\.separator is empty"),
    ('parts = ["weekday", "hour"]', "parts = []", r"columns\.time\.parts is empty"),
    ('note = { role = "ignore" }', 'note = { role = "weight" }', "weight, note have the role"),
    ('condition = "click == 1" }', 'condition = "clik == 1" }', "did you mean 'click'"),
    ('condition = "click == 1" }', 'condition = "click = 1" }', r"tasks\.click\.condition = "),
    ('{ condition = "click == 1" }', "{ }", r"tasks\.click\.condition is missing"),
    ('implies = ["click"]', 'implies = ["rating"]', "must be other binary tasks"),
    ('implies = ["click"]', 'implies = ["clck"]', "did you mean 'click'"),
    ('column = "rating" }', 'column = "ratng" }', "did you mean 'rating'"),
    ('kind = "regression", column = "rating"', 'kind = "regression"', r"rating\.column is missing"),
    ("validation = 0.2", "validation = 0.9", r"are 1\.1 of the rows together"),
    ("test = 0.2", "test = 0", r"split\.test = 0.0: must be a share"),
    ("seed = 3", "seed = -3", r"split\.seed = -3"),
    ('method = "random"', 'method = "group"', r"split\.column is missing"),
    (
      'method = "random"',
      'method = "time"\ncolumn = "time"',
      r"split\.validation_from: is missing",
    ),
    ('method = "random"', 'method = "random"\ncolumn = "user"', r"split\.column: has no effect"),
    (
      'method = "random"',
      'method = "time"\ncolumn = "time"\nvalidation_from = "2026-02-01"\ntest_from = "soon"',
      r"split\.test_from.*'soon' is not a time",
    ),
    (
      'method = "random"',
      'method = "time"\ncolumn = "time"\nvalidation_from = "2026-02-01"\ntest_from = "2026-01-01"',
      "validation_from must be before test_from",
    ),
    ('"country#device"', '"country"', "'country' must have the form a#b"),
    ('"country#device"', '"country#note"', "a feature of 'country#note' in crosses"),
    ("german =", '"a/b" =', "a name must not be empty or contain"),
    ("[tasks]", "[task]", "has no key 'task'; did you mean 'tasks'"),
    ("[columns]", "[columns", "not TOML"),
    ("crosses", 'separator = "ab"\ncrosses', "separator = 'ab': must be one character"),
  ],
)
def test_faults_are_named_by_file_and_key(old, new, message):
  assert old in shop_rows.SPEC
  with pytest.raises(UserError, match=message) as caught:
    parse_spec(shop_rows.SPEC.replace(old, new), "my.toml")
  assert str(caught.value).startswith("my.toml: ")


VALUES = st.recursive(
  st.none().map(lambda _: "x") | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(Column.__struct_fields__) | st.text(), inner, max_size=3)
  ),
  max_leaves=8,
)


def to_toml(value):
  """Formats a value as inline TOML; returns None where TOML has no form for it."""
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, str):
    return '"' + "".join(f"\\U{ord(c):08x}" for c in value if not 0xD800 <= ord(c) < 0xE000) + '"'
  if isinstance(value, list):
    return f"[{', '.join(map(to_toml, value))}]"
  if isinstance(value, dict):
    items = {k: v for k, v in value.items() if not any(0xD800 <= ord(c) < 0xE000 for c in k)}
    return "{" + ", ".join(f"{to_toml(k)} = {to_toml(v)}" for k, v in items.items()) + "}"
  return str(value)


def check(text):
  """Parses a text; anything but a spec or one line is an error."""
  message = "f.toml"
  try:
    parse_spec(text, "f.toml")
  except UserError as error:
    message = str(error)
  assert message.startswith("f.toml")


LINES = shop_rows.SPEC.strip().splitlines()


@st.composite
def changed_specs(draw):
  """Returns the shop's spec with a line that has another value, or is lost or twice."""
  lines = list(LINES)
  for _ in range(draw(st.integers(1, 3))):
    at = draw(st.integers(0, len(lines) - 1))
    change = draw(st.sampled_from(("value", "lose", "repeat", "text", "condition")))
    key, equals, _ = lines[at].partition(" = ")
    if change == "value" and equals:
      lines[at] = f"{key} = {to_toml(draw(VALUES))}"
    elif change == "condition" and equals:
      words = st.sampled_from(("click", "rating", "==", ">=", "1", "'DE'", "and", "not", "(", ")"))
      lines[at] = f"{key} = {{ condition = {to_toml(' '.join(draw(st.lists(words))))} }}"
    elif change == "lose":
      del lines[at]
    elif change == "repeat":
      lines.insert(at, lines[at])
    else:
      at_character = draw(st.integers(0, len(lines[at])))
      text = draw(st.text(string.printable, max_size=4))
      lines[at] = lines[at][:at_character] + text + lines[at][at_character:]
    if not lines:
      break
  return "\n".join(lines)


@hypothesis.given(changed_specs())
@hypothesis.settings(max_examples=150, deadline=None)
def test_any_changed_spec_is_a_spec_or_one_error(text):
  check(text)


@pytest.mark.slow
@hypothesis.given(changed_specs() | st.text())
@hypothesis.settings(max_examples=5000, deadline=None)
def test_five_thousand_specs(text):
  check(text)


@pytest.mark.parametrize(
  "text", ["", "a" * 10_000, "[" * 100_000, "a = " + "[" * 5000, "\0", "x=1e999"]
)
def test_texts_that_are_no_spec(text):
  with pytest.raises(UserError, match=r"^f\.toml: "):
    parse_spec(text, "f.toml")


def test_the_shop_spec_is_toml():
  assert set(tomllib.loads(shop_rows.SPEC)) == {"crosses", "columns", "tasks", "split", "slices"}
