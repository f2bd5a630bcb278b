"""Damaged tables and hostile rows: every row that is scored, is scored as the reference does."""

import csv
import gzip
import io
import json
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import preparation, splitting
from data_prep.spec import parse_spec
from mmoe_jax import data
from mmoe_jax.data import csv_files
from mmoe_jax.errors import UserError
from mmoe_jax.prediction.scoring import score_files
from tests import shop_rows
from tests.hostile_input.faults import VALUES, fuzz, mutate, refusal

RAW = tuple(c for c in shop_rows.make(1, 0).columns if c not in ("note", "rating", "click", "buy"))
TASKS = ("click", "buy")


def reference_scores(reference, predictor, rows) -> dict[str, np.ndarray]:
  """Scores rows that the reference encodes one by one."""
  encoded = [reference([row]) for row in rows]
  features = {name: np.concatenate([e[name] for e in encoded]) for name in encoded[0]}
  return predictor.score(features)


def assert_scored_as(reference, predictor, scored, rows) -> None:
  """Compares scores (task -> values) with those of the reference."""
  expected = reference_scores(reference, predictor, rows)
  for task in TASKS:
    np.testing.assert_allclose(np.array(scored[task], float), expected[task], atol=1e-6)


def damaged(path, rng) -> bytes:
  with open(path, "rb") as file:
    return mutate(file.read(), rng)


def write(path: str, content: bytes) -> str:
  with open(path, "wb") as file:
    file.write(content)
  return path


@fuzz(30)
@given(rng=st.randoms(use_true_random=False), sets_aside=st.booleans())
def test_damaged_csv_is_scored_as_the_reference_does(shop, predictor, reference, rng, sets_aside):
  content = damaged(f"{shop}/rows.csv", rng)
  path, out = write(f"{shop}/hostile.csv", content), f"{shop}/scores.csv"
  found = []
  score = lambda: found.append(
    score_files(predictor, [path], out, RAW, f"{shop}/bad.csv" if sets_aside else "")
  )
  if refusal(score):
    return
  with open(out, encoding="utf-8", newline="") as file:
    scored = list(csv.DictReader(file))
  assert len(scored) == found[0].rows
  assert_scored_as(reference, predictor, pd.DataFrame(scored), scored)
  if not sets_aside:  # No row is lost, and no value is of another row.
    text = content.decode("utf-8-sig")
    lines = list(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True))
    header = [name.strip() for name in lines[0]]
    is_header = "country" in header
    names = header if is_header else list(predictor.schema.columns)
    of_row = lambda row: tuple(" ".join(dict(zip(names, row, strict=True))[c].split()) for c in RAW)
    kept = [tuple(" ".join(row[c].split()) for c in RAW) for row in scored]
    assert kept == [of_row(row) for row in lines[is_header:]]


@fuzz(15)
@given(rng=st.randoms(use_true_random=False))
def test_damaged_parquet_is_scored_as_the_reference_does(shop, predictor, reference, rng):
  path = write(f"{shop}/hostile.parquet", damaged(f"{shop}/rows.parquet", rng))
  out = f"{shop}/scores.parquet"
  if refusal(lambda: score_files(predictor, [path], out, RAW)):
    return
  scored = pq.read_table(out)
  times = scored["time"].cast(pa.string())
  # Python, and with it the reference, has no other years.
  known = pc.fill_null(pc.match_substring_regex(times, r"^\d{4}-"), True)
  scored = scored.set_column(scored.column_names.index("time"), "time", times).filter(known)
  if len(scored):
    columns = {task: scored[task].to_numpy() for task in TASKS}
    assert_scored_as(reference, predictor, columns, scored.select(RAW).to_pylist())


@fuzz(8)
@given(rng=st.randoms(use_true_random=False))
def test_damaged_csv_is_prepared_or_refused(shop, tmp_path_factory, rng):
  out = str(tmp_path_factory.mktemp("prepared") / "data")
  path = write(f"{shop}/raw.csv", damaged(f"{shop}/rows.csv", rng))
  spec = parse_spec(shop_rows.SPEC, "shop.toml")
  loaded = []

  def prepare():
    groups = splitting.splitters_of(spec.split, {"input": [path]})
    preparation.prepare(spec, groups, out)
    data.verify(out)
    loaded.append(data.load(out, ("click",), "all"))

  if refusal(prepare):
    return
  schema, splits = loaded[0]
  sizes = np.array([f.size for f in schema.id_features for _ in range(f.length)])
  for split in splits.values():
    assert (split.features["ids"] < sizes).all()
    assert np.isfinite(split.features["numeric"]).all()


@fuzz(30)
@given(row=st.data())
def test_hostile_rows_are_scored_as_the_reference_does(predictor, reference, row):
  rows = shop_rows.make(3, 4)
  rows["time"] = rows["time"].astype(str)
  rows = json.loads(rows.to_json(orient="records"))
  columns = row.draw(st.lists(st.sampled_from(list(RAW)), min_size=1, max_size=4, unique=True))
  for column in columns:
    rows[1][column] = row.draw(VALUES)
  scored = []
  if refusal(lambda: scored.append(predictor(rows))):
    return
  assert np.isfinite(scored[0].to_numpy()).all()
  assert_scored_as(reference, predictor, scored[0], rows)


@fuzz(30)
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
      *(pa.large_string(), pa.binary(), pa.float16(), pa.decimal128(5, 2), pa.bool_(), pa.null()),
      *(pa.list_(pa.null()), pa.struct([("a", pa.int8())]), pa.date32(), pa.time32("s")),
      *(pa.duration("s"), pa.uint64(), pa.list_(pa.list_(pa.string())), pa.timestamp("ns", "UTC")),
      *(pa.dictionary(pa.int8(), pa.float64()), pa.run_end_encoded(pa.int16(), pa.string())),
      *(pa.list_view(pa.string()), pa.string_view(), pa.map_(pa.string(), pa.int8())),
    )
    table = pa.Table.from_pandas(frame, preserve_index=False)
    at = table.column_names.index(column)
    wanted = draw.draw(st.sampled_from(types))
    table = table.set_column(at, column, pa.nulls(4, wanted))
  scored = []
  if refusal(lambda: scored.append(predictor(table))) is None:
    assert len(scored[0]) == 4
    assert np.isfinite(scored[0].to_numpy()).all()


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
