"""The encoder that exports contain: bitwise equal to training's, with NumPy alone."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from data_prep import preparation, splitting
from data_prep.spec import parse_spec
from mmoe_jax import data
from mmoe_jax.data import vocabularies
from mmoe_jax.export import bundle, encoder, golden
from tests import reference, shop_rows


def assert_equal_encoding(schema, rows, folder):
  """Encodes rows by both encoders and compares the arrays."""
  bundle._write_schema(schema, str(folder))
  got = encoder.Encoder(str(folder))(rows)
  expected = data.to_features(schema, data.encode(schema, rows))
  np.testing.assert_array_equal(got["ids"], expected["ids"])
  assert got["numeric"].dtype == np.float32
  assert got["numeric"].tobytes() == expected["numeric"].tobytes()


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
  folder = tmp_path_factory.mktemp("shop")
  path = shop_rows.write_csv(shop_rows.make(1500, 5), str(folder / "shop.csv"))
  spec = parse_spec(
    shop_rows.SPEC.replace(
      'tags = { role = "list", length = 3 }',
      'tags = { role = "list", length = 3, missing = ["none"] }',
    ),
    "shop.toml",
  )
  groups = splitting.splitters_of(spec.split, {"input": [path]})
  preparation.prepare(spec, groups, str(folder / "data"))
  return str(folder / "data")


@pytest.mark.parametrize("numeric", ["standardize", "both", "piecewise", "none"])
def test_any_table_is_encoded_like_in_training(shop, tmp_path, monkeypatch, numeric):
  monkeypatch.setattr(vocabularies, "LARGE", 4)  # Tags are in a file.
  schema, _ = data.load(shop, ("click", "buy"), "", numeric)
  assert any(f.kind == "cross" for f in schema.id_features)
  rows = golden.make_rows(schema, 300, int(reference.fresh_rng().integers(1 << 30)))
  rows[0]["tags"], rows[1]["tags"], rows[2]["tags"] = "none", ["none", "red"], " red | blue "
  large = {
    f.name: vocabularies.to_values(pa.array(list(f.values)))
    for f in schema.id_features
    if f.kind in ("category", "list") and f.values
  }
  schema = dataclasses.replace(
    schema,
    id_features=tuple(
      dataclasses.replace(f, values=large.get(f.name, f.values)) for f in schema.id_features
    ),
  )
  assert_equal_encoding(schema, rows, tmp_path)


@pytest.mark.parametrize("numeric", ["both", "log_int"])
def test_census_is_encoded_like_in_training(prepared, tmp_path, numeric):
  crosses = ("education#sex",)
  schema, _ = data.load(prepared, ("income_50k",), "demo", numeric, crosses=crosses)
  rows = golden.make_rows(schema, 300, int(reference.fresh_rng().integers(1 << 30)))
  assert_equal_encoding(schema, rows, tmp_path)


def test_values_of_any_type_read_the_same(shop, tmp_path):
  schema, _ = data.load(shop, ("click", "buy"), "", "both")
  values = [7, 7.0, np.float32(0.1), np.int8(3), True, b" x ", None, float("nan"), pd.NA, pd.NaT]
  row = golden.make_rows(schema, 1)[0] | {"age": 30, "price": "1e2"}
  rows = [{**row, "country": value, "user": value, "tags": [value, "red"]} for value in values]
  rows += [{**row, "price": v} for v in (" 2.50 ", "1e-3", 7, np.float32(0.1), True)[:4]]
  times = ("2026-03-01", "2026-03", "2026-03-01T10:20:30+02:00", "1700000000", "", None)
  rows += [{**row, "time": t} for t in times]
  assert_equal_encoding(schema, rows, tmp_path)


@pytest.mark.parametrize(
  ("column", "value", "message"),
  [
    ("price", None, "row 1, column 'price': must not be missing"),
    ("price", -1, r"row 1, column 'price': '-1' is not a number >= 0"),
    ("score", "abc", r"row 1, column 'score': 'abc' is not a number"),
    ("score", "inf", r"column 'score': 'inf' is not a number"),
    ("score", 1e31, r"column 'score': '1e\+31' is not a number"),
    ("time", "yesterday", "row 1, column 'time': 'yesterday' is not a time"),
  ],
)
def test_wrong_values_are_named(shop, tmp_path, column, value, message):
  schema, _ = data.load(shop, ("click", "buy"), "", "both")
  bundle._write_schema(schema, str(tmp_path))
  rows = golden.make_rows(schema, 2)
  rows[1][column] = value
  with pytest.raises(ValueError, match=message):
    encoder.Encoder(str(tmp_path))(rows)


def test_hashes_are_those_of_pandas():
  rng = reference.fresh_rng()
  texts = ["", "a", "漢字"] + ["".join(map(chr, rng.integers(32, 500, n))) for n in range(70)]
  expected = pd.util.hash_array(np.array(texts, object), categorize=False)
  assert [encoder._bucket_hash(text.encode()) for text in texts] == expected.tolist()


def test_the_encoder_needs_numpy_alone(shop, tmp_path):
  schema, _ = data.load(shop, ("click", "buy"), "", "both")
  bundle._write_schema(schema, str(tmp_path))
  code = (
    "import sys, importlib.util as u; before = set(sys.modules);"
    f"spec = u.spec_from_file_location('e', {encoder.__file__!r}); m = u.module_from_spec(spec);"
    f"spec.loader.exec_module(m); m.Encoder({str(tmp_path)!r})([]);"
    "found = {n.split('.')[0] for n in set(sys.modules) - before};"
    "print(sorted(found & {'jax', 'flax', 'pandas', 'pyarrow', 'mmoe_jax', 'numpy'}))"
  )
  shown = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=os.sep
  )
  assert shown.stdout.strip() == "['numpy']"
