"""Hostile tables, rows and settings: a right result or one clear line, never a traceback.

`MMOE_FUZZ_CASES=2000 python -m pytest tests/test_hostile_input.py` is the long form.
"""

import csv
import gzip
import json
import os
import random
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import tabular
from data_prep import preparation, splitting
from data_prep.spec import parse_spec
from mmoe_jax import config as config_lib
from mmoe_jax import data
from mmoe_jax.data import csv_files, shards
from mmoe_jax.errors import UserError
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.prediction.scoring import score_files
from mmoe_jax.training import checks, loop
from tests import shop_rows

CASES = int(os.environ.get("MMOE_FUZZ_CASES", "40"))
fuzz = settings(
  max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=False
)
# Bytes that break readers of tables.
TOKENS = (
  *(b'"', b'""', b",", b"\n", b"\r\n", b"\r", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3\x28"),
  *(
    b"nan",
    b"NaN",
    b"inf",
    b"-inf",
    b"1e999",
    b"-0",
    b"9" * 40,
    b"0x10",
    b"1_000",
    b"\xe2\x88\x9e",
  ),
  *(b"=1+1", b"../../x", b"NA", b"null", b"None", b"TRUE", b" " * 300, b"2026-13-45", b"\x1a"),
  *(b"\xef\xbc\x91", b"\xe2\x85\xa7", b"|" * 50, b"a" * 5000, b",," * 40, b"-9223372036854775809"),
)
VALUES = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(),
  st.floats(),
  st.text(max_size=20),
  st.binary(max_size=5),
  st.lists(st.one_of(st.text(max_size=3), st.integers(), st.none()), max_size=4),
  st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
  st.sampled_from([10**400, -(2**63) - 1, float("nan"), float("inf"), "", "1e400", "\udc80", "NA"]),
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> str:
  """Returns a folder with a spec, rows.csv, rows.parquet, prepared data and a run."""
  folder = str(tmp_path_factory.mktemp("hostile"))
  path = shop_rows.write_csv(shop_rows.make(1500, 5), f"{folder}/shop.csv")
  spec = parse_spec(shop_rows.SPEC, "shop.toml")
  groups = splitting.splitters_of(spec.split, {"input": [path]})
  preparation.prepare(spec, groups, f"{folder}/data")
  config = tabular.get_config(f"mmoe,data={folder}/data,tasks=click+buy")
  config.train.epochs, config.train.devices = 1, 1
  loop.train_and_evaluate(config, f"{folder}/run")
  shop_rows.write_csv(shop_rows.make(60, 8), f"{folder}/rows.csv")
  shop_rows.write_parquet(shop_rows.make(60, 8), f"{folder}/rows.parquet")
  return folder


@pytest.fixture(scope="module")
def predictor(shop) -> Predictor:
  return Predictor(f"{shop}/run")


def mutate(content: bytes, rng: random.Random) -> bytes:
  """Returns bytes with one to four faults: flips, cuts, repeats, swaps, hostile tokens."""
  for _ in range(rng.randint(1, 4)):
    at, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 7, 40, 400))
    end = min(len(content), at + length)
    kind = rng.randrange(6)
    if kind == 0 and at < len(content):
      content = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    elif kind == 1:
      content = content[:at]
    elif kind == 2:
      content = content[:at] + content[end:]
    elif kind == 3:
      content = content[:end] + content[at:end] * rng.choice((1, 3)) + content[end:]
    elif kind == 4:
      content = content[:at] + rng.choice(TOKENS) + content[end:]
    else:
      content = content[:at] + rng.choice(TOKENS) + content[at:]
  return content


def rows_of_csv(path: str) -> dict[tuple[str, ...], dict[str, str]]:
  """Returns the rows of a scored file by the texts of their raw columns."""
  with open(path, encoding="utf-8", newline="") as file:
    return {tuple(row[c] for c in RAW): row for row in csv.DictReader(file)}


RAW = tuple(c for c in shop_rows.make(1, 0).columns if c not in ("note", "rating", "click", "buy"))


@pytest.fixture(scope="module")
def expected(shop, predictor) -> dict[tuple[str, ...], dict[str, str]]:
  """Returns the rows of rows.csv with their scores."""
  score_files(predictor, [f"{shop}/rows.csv"], f"{shop}/expected.csv", keep=RAW)
  return rows_of_csv(f"{shop}/expected.csv")


@fuzz
@given(rng=st.randoms(use_true_random=False), sets_aside=st.booleans())
def test_damaged_csv_is_scored_rightly_or_refused(shop, predictor, expected, rng, sets_aside):
  with open(f"{shop}/rows.csv", "rb") as file:
    content = file.read()
  with open(f"{shop}/hostile.csv", "wb") as file:
    file.write(mutate(content, rng))
  bad = f"{shop}/bad.csv" if sets_aside else ""
  try:
    totals = score_files(
      predictor, [f"{shop}/hostile.csv"], f"{shop}/scores.csv", keep=RAW, bad_rows=bad
    )
  except UserError as error:
    assert_is_for_people(error)
    return
  scored = rows_of_csv(f"{shop}/scores.csv")
  assert len(scored) <= totals.rows
  same = scored.keys() & expected.keys()
  for key in same:
    for task in ("click", "buy"):
      assert float(scored[key][task]) == pytest.approx(float(expected[key][task]), abs=1e-6)
  for row in scored.values():
    assert 0 <= float(row["click"]) <= 1


def assert_is_for_people(error: UserError) -> None:
  text = str(error)
  assert text
  assert "Traceback" not in text
  assert "object at 0x" not in text


@fuzz
@given(rng=st.randoms(use_true_random=False))
def test_damaged_parquet_is_scored_or_refused(shop, predictor, rng):
  with open(f"{shop}/rows.parquet", "rb") as file:
    content = file.read()
  with open(f"{shop}/hostile.parquet", "wb") as file:
    file.write(mutate(content, rng))
  try:
    score_files(predictor, [f"{shop}/hostile.parquet"], f"{shop}/scores.csv")
  except UserError as error:
    assert_is_for_people(error)


@fuzz
@given(rng=st.randoms(use_true_random=False))
def test_damaged_csv_is_prepared_or_refused(shop, tmp_path_factory, rng):
  out = str(tmp_path_factory.mktemp("prepared") / "data")
  with open(f"{shop}/rows.csv", "rb") as file:
    content = file.read()
  with open(f"{shop}/raw.csv", "wb") as file:
    file.write(mutate(content, rng))
  spec = parse_spec(shop_rows.SPEC, "shop.toml")
  try:
    groups = splitting.splitters_of(spec.split, {"input": [f"{shop}/raw.csv"]})
    preparation.prepare(spec, groups, out)
    schema, splits = data.load(out, ("click",), "all")
  except UserError as error:
    assert_is_for_people(error)
    return
  for split in splits.values():
    ids, sizes = (
      split.features["ids"],
      [f.size for f in schema.id_features for _ in range(f.length)],
    )
    assert (ids < np.array(sizes)).all()
    assert np.isfinite(split.features["numeric"]).all()


@fuzz
@given(row=st.data())
def test_hostile_rows_are_scored_or_refused(shop, predictor, row):
  rows = shop_rows.make(3, 4)
  rows["time"] = rows["time"].astype(str)
  rows = json.loads(rows.to_json(orient="records"))
  expected = predictor(rows)
  columns = row.draw(st.lists(st.sampled_from(list(RAW)), min_size=1, max_size=4, unique=True))
  for column in columns:
    rows[1][column] = row.draw(VALUES)
  try:
    scores = predictor(rows)
  except UserError as error:
    assert_is_for_people(error)
    return
  assert np.isfinite(scores.to_numpy()).all()
  pd.testing.assert_frame_equal(scores.iloc[[0, 2]], expected.iloc[[0, 2]], atol=1e-6)


@fuzz
@given(draw=st.data())
def test_hostile_columns_of_arrow_and_pandas_are_scored_or_refused(predictor, draw):
  frame = shop_rows.make(4, 4)
  column = draw.draw(st.sampled_from(list(RAW)))
  kind = draw.draw(st.sampled_from(["object", "arrow", "float", "bytes", "missing", "twice"]))
  if kind == "object":
    frame[column] = pd.Series([draw.draw(VALUES) for _ in range(4)], dtype=object)
  elif kind == "float":
    frame[column] = np.array(draw.draw(st.lists(st.floats(), min_size=4, max_size=4)))
  elif kind == "bytes":
    frame[column] = [b"\xff", b"", b"1", b"a"]
  elif kind == "missing":
    frame = frame.drop(columns=column)
  elif kind == "twice":
    frame = pd.concat([frame, frame[[column]]], axis=1)
  table = frame
  if kind == "arrow":
    types = (
      pa.large_string(),
      pa.binary(),
      pa.float16(),
      pa.decimal128(5, 2),
      pa.bool_(),
      pa.null(),
    )
    table = pa.Table.from_pandas(frame, preserve_index=False)
    at = table.column_names.index(column)
    wanted = draw.draw(st.sampled_from(types))
    table = table.set_column(at, column, pa.nulls(4, wanted))
  try:
    scores = predictor(table)
  except UserError as error:
    assert_is_for_people(error)
    return
  assert np.isfinite(scores.to_numpy()).all()


def _leaves(keys, path=()):
  for key, kind in keys.items():
    yield from _leaves(kind, (*path, key)) if isinstance(kind, dict) else [(*path, key)]


@fuzz
@given(draw=st.data())
def test_hostile_settings_are_accepted_or_refused(shop, draw):
  config = tabular.get_config(f"mmoe,data={shop}/data,tasks=click+buy")
  schema, _ = data.load(f"{shop}/data", **config.data)
  paths = [path for path in _leaves(config.to_dict()) if path[0] not in ("data_dir", "search")]
  for path in draw.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=3, unique=True)):
    group = config
    for key in path[:-1]:
      group = group[key]
    value = draw.draw(VALUES)
    # The config library itself turns numbers into floats, of which commands report the overflow.
    if not (isinstance(value, int) and abs(value) > 1e300):
      with group.unlocked(), group.ignore_type():
        group[path[-1]] = value
  try:
    config_lib.check_structure(config)
    checks.check_config(config, schema)
  except UserError as error:
    assert_is_for_people(error)


def test_numpy_files_with_pickles_are_never_loaded(tmp_path):
  class Evil:
    def __reduce__(self):
      return (open, (str(tmp_path / "written"), "w"))

  folder = tmp_path / "data"
  folder.mkdir()
  np.save(folder / "evil.npy", np.array([Evil()], object), allow_pickle=True)
  with pytest.raises(UserError):
    shards.open_array(str(folder), "evil")
  assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("name", ["bomb.csv.gz", "bomb.csv"])
@pytest.mark.parametrize("sets_aside", [False, True])
def test_a_line_without_end_is_refused_with_bounded_memory(
  shop, predictor, tmp_path, name, sets_aside
):
  path = str(tmp_path / name)
  with (
    open(f"{shop}/rows.csv", "rb") as file,
    (gzip.open if name.endswith("gz") else open)(path, "wb") as out,
  ):
    out.write(file.read())
    for _ in range(24):
      out.write(b"a" * (1 << 22))  # 96 MiB in one line.
  bad = str(tmp_path / "bad.csv") if sets_aside else ""
  tracemalloc.start()
  with pytest.raises(UserError, match="16 MiB"):
    score_files(predictor, [path], str(tmp_path / "scores.csv"), bad_rows=bad)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 200 << 20


def test_lines_of_a_table_may_be_long():
  row = b"a" * (1 << 20)
  table = csv_files.parse(row + b",1\n" + b'"' + row + b'",2\n', ("a", "b"), ",", "f.csv", 1)
  assert table.num_rows == 2
  with pytest.raises(UserError, match="line 3: is longer than 16 MiB"):
    csv_files.parse(b"a,1\n" + b"b" * (1 << 25), ("a", "b"), ",", "f.csv", 2)


def test_decompression_leaves_space_on_the_disk(shop, tmp_path, monkeypatch):
  path = str(tmp_path / "rows.csv.gz")
  with open(f"{shop}/rows.csv", "rb") as file, gzip.open(path, "wb") as out:
    out.write(file.read())
  monkeypatch.setattr(csv_files, "_LEAST_FREE", 1 << 80)
  with pytest.raises(UserError, match="does not fit on the disk"):
    csv_files.decompress(path, str(tmp_path / "rows.csv"))
