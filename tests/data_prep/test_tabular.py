"""Preparation of any table: features against NumPy, any parts and workers, kills, bad input."""

import filecmp
import glob
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from configs import census, tabular
from data_prep import output, preparation, splitting
from data_prep.spec import parse_spec
from mmoe_jax import data
from mmoe_jax.data import tables
from mmoe_jax.errors import UserError
from mmoe_jax.workdir import preemption
from tests import shop_rows

ROWS = 1500
SPEC = parse_spec(shop_rows.SPEC, "shop.toml")


def prepare(paths, out, spec=SPEC, **settings):
  groups = splitting.splitters_of(spec.split, {"input": list(paths)})
  return preparation.prepare(spec, groups, str(out), **settings)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
  return shop_rows.make(ROWS, 5)


@pytest.fixture(scope="module")
def csv(frame, tmp_path_factory) -> str:
  return shop_rows.write_csv(frame, str(tmp_path_factory.mktemp("raw") / "shop.csv"))


@pytest.fixture(scope="module")
def shop(csv, tmp_path_factory) -> str:
  out = str(tmp_path_factory.mktemp("prepared") / "shop")
  prepare([csv], out)
  return out


def joined(directory, field):
  """Returns the rows of an array over all splits and shards, in the order of the table."""
  arrays, rows = [], []
  for split in data.SPLITS:
    schema = data.restore_schema(os.path.join(directory, "schema.json"))
    for name in data.shard_names(schema, split):
      arrays.append(np.load(os.path.join(directory, name, f"{field}.npy")).astype(np.float64))
      rows.append(np.load(os.path.join(directory, name, "rows.npy")))
  order = np.argsort(np.concatenate(rows), kind="stable")
  return np.concatenate(arrays)[order]


def split_of(directory):
  """Returns the split of each row, and validates that each is in one."""
  rows = {s: np.load(os.path.join(directory, s, "rows.npy")) for s in data.SPLITS}
  lines = np.concatenate(list(rows.values())) - 1  # A header is line 1.
  np.testing.assert_array_equal(np.sort(lines), np.arange(ROWS))
  found = np.empty(ROWS, object)
  for split, numbers in rows.items():
    found[numbers - 1] = split
  return found


def test_features_are_those_of_a_reference(shop, frame):
  schema = data.restore_schema(os.path.join(shop, "schema.json"))
  train = frame[split_of(shop) == "train"]
  ids = joined(shop, "ids")
  at = schema.id_columns

  def column(name):
    return ids[:, at[name].start]

  countries = sorted(set(train["country"]))
  np.testing.assert_array_equal(
    column("country"), [countries.index(c) + 1 for c in frame["country"]]
  )
  common = sorted(v for v, n in train["device"].value_counts().items() if n >= 20)
  assert "rare" not in common
  expected = [common.index(d) + 1 if d in common else 0 for d in frame["device"]]
  np.testing.assert_array_equal(column("device"), expected)
  np.testing.assert_array_equal(column("time_hour"), frame["time"].dt.hour + 1)
  np.testing.assert_array_equal(column("time_weekday"), frame["time"].dt.day_of_week + 1)
  users = column("user")
  assert users.min() >= 1
  assert users.max() <= 50
  assert (pd.Series(users).groupby(frame["user"]).nunique() == 1).all()
  tags = sorted({t for row in train["tags"] for t in row})
  lists = ids[:, at["tags"]]
  for row, values in zip(lists, frame["tags"], strict=True):
    known = [tags.index(t) + 1 for t in values][:3]
    assert row.tolist() == known + [0] * (3 - len(known))
  is_missing = frame["age"].isna().to_numpy()
  bins = schema.id_feature("age_bins")
  assert (column("age_bins")[is_missing] == bins.size - 1).all()
  assert (column("age_bins")[~is_missing] < bins.size - 1).all()


def test_numbers_are_standardised_with_an_indicator_of_missing_ones(shop, frame):
  schema, splits = data.load(shop, ("click",), "")
  split = split_of(shop)
  train, test = frame[split == "train"], frame[split == "test"]
  numeric = splits["test"].features["numeric"]
  age = test["age"].astype(float).to_numpy()
  known = train["age"].dropna().astype(float)
  expected = np.nan_to_num((age - known.mean()) / known.std(ddof=0))
  np.testing.assert_allclose(numeric[:, 0], expected, atol=1e-5)
  log = np.log1p(train["price"])
  expected = (np.log1p(test["price"]) - log.mean()) / log.std(ddof=0)
  np.testing.assert_allclose(numeric[:, 1], expected, atol=1e-5)
  ranks = (train["score"].to_numpy() < test["score"].to_numpy()[:, None]).mean(1)
  got = numeric[:, 2] * schema.numeric[2].std + schema.numeric[2].mean
  np.testing.assert_allclose(got, ranks, atol=0.01)
  np.testing.assert_array_equal(numeric[:, 3], np.isnan(age))
  assert numeric.shape[1] == schema.numeric_count == 4


def test_piecewise_linear_encoding_is_that_of_the_paper(shop, frame):
  schema, splits = data.load(shop, ("click",), "", "piecewise")
  numeric = splits["train"].features["numeric"]
  train = frame[split_of(shop) == "train"]
  edges = np.array(schema.numeric[1].edges)
  assert 2 < len(edges) <= 25
  start = 4 + max(0, len(schema.numeric[0].edges) - 1)
  got = numeric[:, start : start + len(edges) - 1]
  for x, row in zip(train["price"], got, strict=True):
    for t, (low, high) in enumerate(itertools.pairwise(edges)):
      value = 0 if x < low else 1 if x >= high else (x - low) / (high - low)
      assert row[t] == pytest.approx(value, abs=1e-5)


def test_labels_weights_and_slices_follow_the_spec(shop, frame):
  labels = joined(shop, "labels")
  rating = frame["rating"].astype(float).to_numpy()
  np.testing.assert_array_equal(labels[:, 0], frame["click"])
  np.testing.assert_array_equal(labels[:, 1], frame["buy"])
  np.testing.assert_array_equal(labels[:, 2], np.where(np.isnan(rating), np.nan, rating >= 4))
  known = rating[(split_of(shop) == "train") & ~np.isnan(rating)]
  np.testing.assert_allclose(labels[:, 3], (rating - known.mean()) / known.std(), atol=1e-5)
  np.testing.assert_array_equal(joined(shop, "weights"), frame["weight"])
  np.testing.assert_array_equal(joined(shop, "slices")[:, 0], frame["country"] == "DE")


def test_columns_of_a_task_are_no_features_of_its_run(shop):
  schema, _ = data.load(shop, ("country",), "")
  assert not [f for f in schema.id_features if "country" in f.sources]
  assert "country#device" not in [f.name for f in schema.id_features]
  schema, splits = data.load(shop, ("click",), "")
  cross = schema.id_feature("country#device")
  assert 3 <= len(cross.values) <= 9
  assert splits["train"].features["ids"][:, -1].max() == len(cross.values)


@pytest.mark.parametrize("kind", ["csv", "parquet", "many files", "gz"])
def test_schema_and_rows_do_not_depend_on_form_parts_and_workers(
  shop, frame, csv, tmp_path, monkeypatch, kind
):
  monkeypatch.setattr(tables, "BATCH", 50)
  paths = [csv]
  if kind == "parquet":
    paths = [shop_rows.write_parquet(frame, str(tmp_path / "shop.parquet"))]
  elif kind == "gz":
    frame = pd.read_csv(csv, dtype=str, na_filter=False)
    frame.to_csv(tmp_path / "shop.csv.gz", index=False)
    paths = [str(tmp_path / "shop.csv.gz")]
  elif kind == "many files":
    spec = parse_spec(shop_rows.SPEC.replace('"random"', '"group"\ncolumn = "user"'), "s")
    whole = prepare([csv], tmp_path / "whole", spec)
    ends = [0, 300, 301, 1100, ROWS]
    paths = [
      shop_rows.write_csv(frame[a:b], str(tmp_path / f"{a}.csv"))
      for a, b in itertools.pairwise(ends)
    ]
    schema = prepare(paths, tmp_path / "out", spec, part_bytes=10_000)
    assert schema.id_features == whole.id_features
    assert schema.numeric == whole.numeric
    return
  with ThreadPoolExecutor(3) as pool:
    got = prepare(paths, tmp_path / "out", part_bytes=9000, executor=pool, workers=3)
  expected = data.restore_schema(os.path.join(shop, "schema.json"))
  shards = [count.get("shards", [0]) for count in got.counts.values()]
  assert min(map(len, shards)) > 2
  for name in ("id_features", "numeric", "tasks", "slices", "crosses", "keep"):
    assert getattr(got, name) == getattr(expected, name), name
  for split in data.SPLITS:
    same = {k: v for k, v in got.counts[split].items() if k not in ("bytes", "shards")}
    assert same == {k: v for k, v in expected.counts[split].items() if k != "bytes"}
  for field in ("ids", "numbers", "labels", "weights", "slices"):
    np.testing.assert_array_equal(joined(str(tmp_path / "out"), field), joined(shop, field))
  loaded, splits = data.load(str(tmp_path / "out"), ("click", "buy"), "")
  assert len(splits["train"]) == got.counts["train"]["rows"]
  streamed = data.load(str(tmp_path / "out"), ("click", "buy"), "", budget=1.0)[1]["train"]
  ranges = [(0, 5), (200, 601), (850, len(splits["train"]))]
  rows = np.concatenate([np.arange(a, b) for a, b in ranges])
  read = streamed.read(ranges)
  for name, values in splits["train"].features.items():
    np.testing.assert_array_equal(read.features[name], values[rows])
  assert loaded.id_feature("country#device")
  assert data.verify(str(tmp_path / "out"))


@pytest.mark.parametrize(
  ("method", "check"),
  [
    ('"group"\ncolumn = "user"', lambda f, s: f.groupby("user")["s"].nunique().max() == 1),
    (
      '"time"\ncolumn = "time"\nvalidation_from = "2026-03-01"\ntest_from = "2026-04-01"',
      lambda f, s: (
        f[s == "train"]["time"].max()
        < pd.Timestamp("2026-03-01")
        <= f[s == "validation"]["time"].min()
        and f[s == "test"]["time"].min() >= pd.Timestamp("2026-04-01")
      ),
    ),
    ('"random"', lambda f, s: 0.1 < (s == "test").mean() < 0.3),
  ],
)
def test_splits_follow_their_method(frame, csv, tmp_path, method, check):
  spec = parse_spec(shop_rows.SPEC.replace('"random"', method), "s")
  prepare([csv], tmp_path / "out", spec)
  split = split_of(str(tmp_path / "out"))
  assert check(frame.assign(s=split), split)
  other = parse_spec(shop_rows.SPEC.replace("seed = 3", "seed = 4"), "s")
  prepare([csv], tmp_path / "other", other)
  assert (split_of(str(tmp_path / "other")) != split).any()


def test_splits_by_files(frame, tmp_path):
  paths = {
    name: [shop_rows.write_csv(frame[a:b], str(tmp_path / f"{name}.csv"))]
    for name, a, b in (("train", 0, 900), ("validation", 900, 1100), ("test", 1100, 1500))
  }
  spec = parse_spec(shop_rows.SPEC.replace('"random"', '"files"'), "s")
  schema = preparation.prepare(
    spec, splitting.splitters_of(spec.split, paths), str(tmp_path / "out")
  )
  assert [c["rows"] for c in schema.counts.values()] == [900, 200, 400]
  del paths["validation"]
  groups = splitting.splitters_of(spec.split, paths)
  schema = preparation.prepare(spec, groups, str(tmp_path / "out"))
  assert schema.counts["test"]["rows"] == 400
  assert 100 < schema.counts["validation"]["rows"] < 280
  with pytest.raises(UserError, match="the spec splits by 'files': give --train and --test"):
    splitting.splitters_of(spec.split, {"input": ["a"]})
  with pytest.raises(UserError, match="the spec splits by 'random': give all files as --input"):
    splitting.splitters_of(SPEC.split, paths)


def snapshot(folder):
  paths = glob.glob(os.path.join(folder, "**"), recursive=True)
  return {os.path.relpath(p, folder): os.stat(p).st_mtime_ns for p in paths if p.endswith(".npy")}


def test_a_killed_preparation_resumes_from_whole_shards(csv, tmp_path, monkeypatch):
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  prepare([csv], whole, part_bytes=9000)
  encode, calls = preparation.encode_part, []

  def dying(job, reader=None):
    calls.append(job)
    if len(calls) == 4:
      raise KeyboardInterrupt  # An interrupt leaves what a kill would leave.
    return encode(job, reader)

  monkeypatch.setattr(preparation, "encode_part", dying)
  with pytest.raises(KeyboardInterrupt):
    prepare([csv], cut, part_bytes=9000)
  assert not cut.exists()
  before = snapshot(tmp_path / ".cut.partial" / "data")
  assert len(before) >= 3 * 6
  monkeypatch.setattr(preparation, "collect", None)  # Not called again.
  prepare([csv], cut, part_bytes=9000)
  assert len(calls) == 4 + len(glob.glob(str(cut / "train" / "*"))) - 3
  after = snapshot(cut)
  assert {k: after[k] for k in before} == before
  assert (whole / "manifest.json").read_bytes() == (cut / "manifest.json").read_bytes()
  assert not (tmp_path / ".cut.partial").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_ends_a_preparation_after_a_part_of_either_pass(
  csv, tmp_path, monkeypatch, workers
):
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  prepare([csv], whole, part_bytes=9000)
  partial = tmp_path / ".cut.partial"
  collect, encode, calls = preparation.collect, preparation.encode_part, []
  for name, pass_over in (("collect", collect), ("encode_part", encode)):
    count = lambda *arguments, pass_over=pass_over: (calls.append(1), pass_over(*arguments))[1]
    monkeypatch.setattr(preparation, name, count)
  parts = len(os.listdir(whole / "train"))
  assert parts > 5
  stops, places = (2, 2, parts), []
  with ThreadPoolExecutor(2) as pool:
    executor = None if workers == 1 else pool
    for stop in stops:  # Twice in the first pass, once in the second.
      asked = iter([False] * stop)
      monkeypatch.setattr(preemption, "requested", lambda asked=asked: next(asked, True))
      with pytest.raises(preemption.Preempted):
        prepare([csv], cut, part_bytes=9000, executor=executor, workers=workers)
      assert not cut.exists()
      done = len(os.listdir(partial / "done")) if (partial / "done").exists() else 0
      places.append(((partial / "statistics").exists(), done))
    assert places == [(True, 0), (True, 0), (True, 3)]
    monkeypatch.setattr(preemption, "requested", lambda: False)
    prepare([csv], cut, part_bytes=9000, executor=executor, workers=workers)
  if workers == 1:  # No part was read twice in a pass.
    assert len(calls) == 2 * parts
  assert (whole / "manifest.json").read_bytes() == (cut / "manifest.json").read_bytes()


@pytest.mark.slow
def test_kills_at_random_moments_end_in_the_same_bytes(frame, tmp_path):
  large = pd.concat([frame] * 40, ignore_index=True)
  path = shop_rows.write_parquet(large, str(tmp_path / "shop.parquet"), 2000)
  (tmp_path / "spec.toml").write_text(shop_rows.SPEC)
  run = (
    "from mmoe_jax.data import tables; tables.PART_BYTES = 1 << 12; tables.SMALL = 0; "
    "import runpy, sys; sys.argv[0] = 'x'; "
    "runpy.run_module('data_prep.tabular', run_name='__main__')"
  )

  def command(out):
    flags = ["--spec", str(tmp_path / "spec.toml"), "--input", path, "--out", str(tmp_path / out)]
    return [sys.executable, "-c", run, *flags, "--workers", "1"]

  start = time.perf_counter()
  subprocess.run(command("whole"), check=True, capture_output=True)
  seconds = time.perf_counter() - start
  rng = np.random.default_rng()
  kills = 0
  for _ in range(12):
    process = subprocess.Popen(command("cut"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(rng.uniform(0.3, 1.0) * seconds)
    process.send_signal(signal.SIGKILL)
    kills += process.wait() == -signal.SIGKILL
    process.communicate()
  done = subprocess.run(command("cut"), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert kills
  for name in ("manifest.json", "schema.json"):
    assert filecmp.cmp(tmp_path / "whole" / name, tmp_path / "cut" / name, shallow=False)
  assert data.verify(str(tmp_path / "cut")) == data.verify(str(tmp_path / "whole"))


@pytest.mark.parametrize("model", sorted(census.MODELS))
def test_the_config_suits_every_model(shop, model):
  config = tabular.get_config(f"{model},data={shop}")
  assert config.data_dir == shop
  chained = model in ("esmm", "aitm")
  names = ("click", "buy") if chained else ("click", "buy", "liked", "rating", "country")
  assert config.data.tasks == names
  assert config.select.metric == ("auc" if chained else "log_loss")
  assert set(config.to_dict()) == set(census.get_config().to_dict())


def test_the_config_names_what_is_wrong(shop, tmp_path):
  with pytest.raises(
    UserError, match=r"contains no prepared data; run: python -m data_prep\.tabular"
  ):
    tabular.get_config(f"mmoe,data={tmp_path}")
  with pytest.raises(UserError, match="did you mean 'click'"):
    tabular.get_config(f"mmoe,data={shop},tasks=clck")
  config = tabular.get_config(f"mmoe,data={shop},tasks=rating")
  assert config.select.metric == "mse"
  assert re.match("(click|liked)", tabular.get_config(f"mmoe,data={shop}").select.tasks[0])


def test_manifest_and_schema_name_all_shards(csv, tmp_path):
  prepare([csv], tmp_path / "out", part_bytes=9000)
  files = json.loads((tmp_path / "out" / "manifest.json").read_text())["files"]
  on_disk = {
    os.path.relpath(os.path.join(folder, name), tmp_path / "out").replace(os.sep, "/")
    for folder, _, names in os.walk(tmp_path / "out")
    for name in names
  }
  assert on_disk == {*files, "manifest.json"}


def test_shards_that_a_kill_left_unfinished_are_no_part_of_the_output(tmp_path):
  out = str(tmp_path / "data")
  for _ in range(2):  # The second one replaces what the first has written.
    with output.resume_folder(out, "one") as folder:
      for place in (folder, os.path.join(folder, "train")):
        os.makedirs(os.path.join(place, f"{output.UNFINISHED}k9x_ab12"))
      with open(os.path.join(folder, "schema.json"), "w") as file:
        file.write("{}")
    found = [name for _, folders, names in os.walk(out) for name in (*folders, *names)]
    assert found == ["train", "schema.json"]
