"""schema.json: what was written comes back, anything else is one line."""

import copy
import json
import os

import pytest

from mmoe_jax import data
from mmoe_jax.errors import UserError
from mmoe_jax.files import write_json


@pytest.fixture(scope="module")
def content(prepared):
  with open(os.path.join(prepared, "schema.json"), encoding="utf-8") as file:
    return json.load(file)


def test_a_schema_comes_back_as_it_was(prepared, tmp_path):
  schema = data.restore_schema(os.path.join(prepared, "schema.json"))
  data.save_schema(schema, str(tmp_path / "schema.json"))
  assert data.restore_schema(str(tmp_path / "schema.json")) == schema
  with open(os.path.join(prepared, "schema.json"), encoding="utf-8") as file:
    assert json.load(file) == json.loads((tmp_path / "schema.json").read_text())


def places(tree, path=()):
  """Yields the path of every value of a JSON tree; of long lists only the first two."""
  items = tree.items() if isinstance(tree, dict) else enumerate(tree[:2])
  for key, value in items:
    yield (*path, key)
    if isinstance(value, dict | list):
      yield from places(value, (*path, key))


def test_any_other_content_is_refused_in_one_line_or_reads_as_a_schema(content, tmp_path):
  path = str(tmp_path / "schema.json")
  refused = 0
  values = (None, "x", -1, 1e400, [], {}, True, [None], {"a": 1})
  for i, place in enumerate(places(content)):
    for value in (values[i % 9], values[(i + 4) % 9]):
      changed = copy.deepcopy(content)
      at = changed
      for key in place[:-1]:
        at = at[key]
      at[place[-1]] = value
      with open(path, "w", encoding="utf-8") as file:
        json.dump(changed, file)
      try:
        schema = data.restore_schema(path)
      except UserError as error:
        refused += 1
        message = str(error)
        if not message.startswith(f"{path}: "):
          raise
      else:
        # Free fields: names, counts and the like.
        data.save_schema(schema, path)
        if data.restore_schema(path) != schema:
          pytest.fail(f"{place} = {value!r} does not come back")
  assert refused > 100


@pytest.mark.parametrize(
  "text", ["", "[]", "3", "null", "{", "[" * 100_000, '{"format_version": 2}', '{"a": NaN}']
)
def test_files_that_are_no_schema(tmp_path, text):
  (tmp_path / "schema.json").write_text(text)
  with pytest.raises(UserError, match=r"schema\.json: "):
    data.restore_schema(str(tmp_path / "schema.json"))


def test_the_key_of_a_wrong_value_is_named(content, tmp_path):
  changed = copy.deepcopy(content)
  changed["tasks"][1]["std"] = "1"
  path = str(tmp_path / "schema.json")
  write_json(path, changed)
  with pytest.raises(
    UserError, match=r"schema\.json: broken: .*float.*tasks\[...\]\.std|tasks\[1\]"
  ):
    data.restore_schema(path)
