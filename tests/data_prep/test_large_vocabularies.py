"""Tables whose vocabularies are in files, and columns that share one, from raw rows to scores."""

import os

import numpy as np
import pandas as pd
import pytest

from configs import tabular
from data_prep import preparation, splitting
from data_prep.spec import parse_spec
from mmoe_jax import data
from mmoe_jax.data import vocabularies
from mmoe_jax.data.vocabularies import Vocabulary
from mmoe_jax.errors import UserError
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.training import loop

SPEC = """
[columns]
item = { role = "category", table = "items" }
seen = { role = "list", length = 4, table = "items" }
user = { role = "hash", buckets = 20, table = "people" }
friends = { role = "list", length = 3, buckets = 20, pooling = "sum", table = "people" }
country = { role = "category" }
click = { role = "label" }

[tasks]
click = { condition = "click == 1" }
"""


def make_frame():
  rng = np.random.default_rng(2)
  rows = 600

  def draw(most):
    lengths = rng.integers(0, most, rows)
    return ["|".join(f"i{i}" for i in rng.integers(0, 90, n)) for n in lengths]

  return pd.DataFrame(
    {
      "item": [f"i{i}" for i in rng.integers(0, 60, rows)],
      "seen": draw(6),
      "user": [f"u{i}" for i in rng.integers(0, 90, rows)],
      "friends": [text.replace("i", "u") for text in draw(4)],
      "country": rng.choice(["DE", "FR"], rows),
      "click": rng.integers(0, 2, rows),
    }
  )


def prepare(folder, out):
  spec = parse_spec(SPEC, "spec.toml")
  groups = splitting.splitters_of(spec.split, {"input": [str(folder / "rows.csv")]})
  return preparation.prepare(spec, groups, str(folder / out))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Returns a folder with the rows, prepared with vocabularies in JSON and in files."""
  found = tmp_path_factory.mktemp("large")
  make_frame().to_csv(found / "rows.csv", index=False)
  prepare(found, "json")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(vocabularies, "LARGE", 10)
    prepare(found, "files")
  return found


def ids_of(folder):
  schema = data.restore_schema(str(folder / "schema.json"))
  return {split: np.load(folder / split / "ids.npy") for split in data.SPLITS}, schema


def test_ids_do_not_depend_on_where_the_vocabulary_is(folder):
  expected, in_json = ids_of(folder / "json")
  found, schema = ids_of(folder / "files")
  for split in data.SPLITS:
    np.testing.assert_array_equal(found[split], expected[split])
  assert os.listdir(folder / "files" / "vocabularies") == ["items.arrow"]
  assert not (folder / "json" / "vocabularies").exists()
  for a, b in zip(schema.id_features, in_json.id_features, strict=True):
    assert tuple(a.values) == b.values
    assert (a.size, a.table) == (b.size, b.table)
  assert isinstance(schema.id_feature("item").values, Vocabulary)
  assert schema.id_feature("item").values is schema.id_feature("seen").values
  assert data.verify(str(folder / "files"))


def test_columns_of_one_table_have_the_same_ids(folder):
  frame = make_frame()
  arrays, schema = ids_of(folder / "files")
  rows = np.load(folder / "files" / "train" / "rows.npy")
  train = frame.iloc[rows - 1].reset_index(drop=True)
  known = sorted(set(train["item"]) | {v for t in train["seen"] for v in t.split("|") if v})
  number = {value: i for i, value in enumerate(known, 1)}
  at = schema.id_columns
  ids = arrays["train"]
  np.testing.assert_array_equal(ids[:, at["item"].start], [number[v] for v in train["item"]])
  lists = [[number[v] for v in text.split("|") if v][:4] for text in train["seen"]]
  np.testing.assert_array_equal(ids[:, at["seen"]], [(row + [0] * 4)[:4] for row in lists])
  of_user = dict(zip(train["user"], ids[:, at["user"].start], strict=True))
  friends = [[of_user.get(v, -1) for v in text.split("|") if v][:3] for text in train["friends"]]
  for found, row in zip(ids[:, at["friends"]], friends, strict=True):
    for a, b in zip(found, row, strict=False):
      assert b in (-1, a)


def test_a_run_carries_its_vocabularies(folder, tmp_path):
  scores = []
  for name in ("json", "files"):
    config = tabular.get_config(f"mmoe,data={folder}/{name}")
    config.train.epochs, config.train.devices = 2, 1
    loop.train_and_evaluate(config, str(tmp_path / name))
    scores.append(Predictor(str(tmp_path / name))(make_frame()))
  pd.testing.assert_frame_equal(*scores)
  one = make_frame().iloc[3].to_dict()
  assert Predictor(str(tmp_path / "files"))([one])["click"][0] == pytest.approx(
    scores[1]["click"][3], abs=1e-6
  )
  path = tmp_path / "files" / "vocabularies" / "items.arrow"
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  with pytest.raises(UserError, match=r"items\.arrow changed or is damaged; .*train again"):
    Predictor(str(tmp_path / "files"))
  path.unlink()
  with pytest.raises(UserError, match=r"items\.arrow is missing"):
    Predictor(str(tmp_path / "files"))


def test_collisions_of_hashed_columns_are_reported(folder, capsys):
  prepare(folder, "again")
  shown = capsys.readouterr().err
  assert "note: column 'user': about 9" in shown
  assert "values in 20 buckets; 9" in shown
  assert "note: column 'friends': about 9" in shown


@pytest.mark.parametrize(
  ("before", "after", "message"),
  [
    ("buckets = 20, pooling", "buckets = 21, pooling", "share the table 'people': buckets must be"),
    (
      "length = 4, table",
      "length = 4, min_count = 2, table",
      "'items': min_count must be the same",
    ),
    ('{ role = "label" }', '{ role = "label", table = "a" }', "columns.click.table: has no effect"),
    ('table = "items" }\nseen', 'table = "a/b" }\nseen', "columns.item.table: a name must not"),
  ],
)
def test_wrong_tables_are_named(before, after, message):
  assert before in SPEC
  with pytest.raises(UserError, match=message):
    parse_spec(SPEC.replace(before, after, 1), "spec.toml")


def test_features_of_one_table_need_one_width(folder, tmp_path):
  config = tabular.get_config(f"mmoe,data={folder}/json")
  config.model.embedding_dim_of = {"seen": 8}
  with pytest.raises(UserError, match=r"features of the table 'items' must have the same width"):
    loop.train_and_evaluate(config, str(tmp_path / "w"))
