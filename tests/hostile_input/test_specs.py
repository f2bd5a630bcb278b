"""Hostile specs of tables: a spec is refused by one line, or prepares what it says."""

import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import preparation, splitting
from data_prep.spec import parse_spec, read_spec
from mmoe_jax import data
from mmoe_jax.errors import UserError
from tests import shop_rows
from tests.hostile_input.faults import fuzz, mutate, mutate_tree, refusal

CONTENT = tomllib.loads(shop_rows.SPEC)


def to_toml(value) -> str:
  """Returns a value as TOML; None, which it does not have, becomes a text."""
  if isinstance(value, dict):
    entries = [f"{to_toml(str(k))} = {to_toml(v)}" for k, v in value.items()]
    return f"{{ {', '.join(entries)} }}"
  if isinstance(value, list):
    return f"[{', '.join(map(to_toml, value))}]"
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, int | float):
    return repr(value)
  text = str(value).encode("unicode_escape").decode()
  escaped = "".join(c if c.isalnum() else f"\\u{ord(c):04x}" for c in str(value) if ord(c) < 65536)
  return f'"{escaped}"' if text else '""'


def of_content(content: dict) -> str:
  return "".join(f"{to_toml(str(key))} = {to_toml(value)}\n" for key, value in content.items())


def test_the_writer_of_specs_is_faithful():
  assert tomllib.loads(of_content(CONTENT)) == CONTENT


def prepare(spec, shop, out):
  groups = splitting.splitters_of(spec.split, {"input": [f"{shop}/rows.csv"]})
  preparation.prepare(spec, groups, out)
  data.verify(out)
  return data.load(out, tuple(spec.tasks), "all")


def assert_prepared_as_said(spec, schema, splits) -> None:
  """Checks the parts of a schema against its spec."""
  assert [task.name for task in schema.tasks] == list(spec.tasks)
  assert sum(len(split.labels) for split in splits.values()) == 60
  for name, column in spec.columns.items():
    found = [f for f in schema.id_features if f.sources == (name,)]
    # A column that gives the label of a task is no feature in its run.
    if any(task.column == name or name in (task.condition or "") for task in spec.tasks.values()):
      continue
    if column.role == "hash":
      assert found[0].buckets == column.buckets
    if column.role == "list" and column.length:
      assert found[0].length == column.length
    if column.role in ("ignore", "keep", "label", "weight"):
      assert not found
  sizes = np.array([f.size for f in schema.id_features for _ in range(f.length)], np.int64)
  for split in splits.values():
    assert (split.features["ids"] < sizes).all()
    assert np.isfinite(split.features["numeric"]).all()


@fuzz(25)
@given(draw=st.data())
def test_hostile_specs_prepare_what_they_say_or_are_refused(shop, tmp_path_factory, draw):
  text = of_content(mutate_tree(CONTENT, draw.draw))
  loaded = []

  def run():
    spec = parse_spec(text, "shop.toml")
    out = str(tmp_path_factory.mktemp("spec") / "data")
    loaded.append((spec, *prepare(spec, shop, out)))

  if refusal(run) is None:
    assert_prepared_as_said(*loaded[0])


@fuzz(30)
@given(rng=st.randoms(use_true_random=False))
def test_damaged_specs_are_parsed_or_refused(tmp_path_factory, rng):
  content = mutate(shop_rows.SPEC.encode(), rng)
  path = tmp_path_factory.mktemp("spec") / "spec.toml"
  path.write_bytes(content)
  found = []
  if refusal(lambda: found.append(read_spec(str(path)))) is None:
    content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    assert list(found[0].columns) == list(content["columns"])
    assert list(found[0].tasks) == list(content["tasks"])


@pytest.mark.parametrize(
  "text",
  [
    "",
    "[" * 100_000,
    "a = " + "[" * 5000,
    "a." * 5000 + "b = 1",
    'columns = "a"',
    "columns = []",
    "[columns]\na = 1",
    shop_rows.SPEC.replace("buckets = 50", "buckets = 1e2"),
    shop_rows.SPEC.replace("buckets = 50", "buckets = 99999999999999999999"),
    shop_rows.SPEC.replace("bins = 8", "bins = nan"),
    shop_rows.SPEC.replace("seed = 3", "seed = -3"),
    shop_rows.SPEC.replace("test = 0.2", "test = nan"),
    shop_rows.SPEC.replace("click == 1 and", "(" * 3000 + "click == 1 and"),
    shop_rows.SPEC.replace("click == 1 and", "not " * 5000 + "click == 1 and"),
    shop_rows.SPEC.replace("click == 1 and", "click == 1 and " * 5000),
    shop_rows.SPEC.replace("click == 1 and", "click == 1 and __import__('os') and"),
    shop_rows.SPEC.replace("german", "../../german"),
    shop_rows.SPEC.replace("buy = { condition", '"../buy" = { condition'),
    shop_rows.SPEC.replace("user = { role", '"a/../../user" = { table = "../../x", role'),
  ],
)
def test_specs_that_nobody_means_are_one_line(text, shop, tmp_path):
  with pytest.raises(UserError) as raised:
    prepare(parse_spec(text, "shop.toml"), shop, str(tmp_path / "data"))
  assert "Traceback" not in str(raised.value)
  assert [path.name for path in tmp_path.iterdir()] in ([], ["data"])
