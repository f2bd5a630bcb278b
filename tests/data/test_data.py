"""Schema, encoding, selection and loading, fitted on train rows only."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from data_prep import census_income
from mmoe_jax import data
from mmoe_jax.errors import UserError
from tests import census_rows
from tests.frames import read_frame


@pytest.fixture(scope="module")
def schema(prepared) -> data.Schema:
  return data.restore_schema(os.path.join(prepared, "schema.json"))


@pytest.fixture(scope="module")
def frame(raw) -> pd.DataFrame:
  return read_frame(raw[1], census_rows.COLUMNS).astype(object)  # Copies, to be changed.


def column(schema, arrays, name):
  return arrays.ids[:, [f.name for f in schema.id_features].index(name)]


@pytest.mark.parametrize("split", data.SPLITS)
def test_stored_arrays_equal_encoded_rows(schema, prepared, raw, split):
  table = read_frame(raw[0] if split == "train" else raw[1], census_rows.COLUMNS)
  rows = np.load(os.path.join(prepared, split, "rows.npy"))
  arrays = data.encode(schema, table.iloc[rows], labels=True)
  for field in ("ids", "numbers", "labels", "weights"):
    stored = np.load(os.path.join(prepared, split, f"{field}.npy"))
    assert field != "labels" or stored.dtype == np.float32
    np.testing.assert_array_equal(getattr(arrays, field), stored)


def test_a_row_encodes_the_same_alone_and_among_others(schema, frame):
  together = data.to_features(schema, data.encode(schema, frame))
  for row in (0, 17, 1000):
    alone = data.to_features(schema, data.encode(schema, frame.iloc[[row]]))
    for name, values in alone.items():
      np.testing.assert_array_equal(values[0], together[name][row])


def test_ids_are_the_position_in_the_vocabulary(schema, frame):
  arrays = data.encode(schema, frame)
  values = schema.id_feature("education").values
  expected = [values.index(v) + 1 for v in frame["education"]]
  np.testing.assert_array_equal(column(schema, arrays, "education"), expected)


def test_unknown_categories_get_the_reserved_id(schema, frame):
  other = frame.copy()
  other.loc[other.index[3], "education"] = "Clown school"
  before, after = data.encode(schema, frame), data.encode(schema, other)
  assert column(schema, after, "education")[3] == data.UNKNOWN
  assert (before.ids != after.ids).sum() == 1


def test_missing_column_is_named(schema, frame):
  with pytest.raises(UserError, match=r"cards\.csv: column 'sex' is missing"):
    data.encode(schema, frame.drop(columns="sex"), where="cards.csv")


@pytest.mark.parametrize("value", ["old", "", "-3", "nan", "inf"])
def test_a_wrong_number_is_named_with_line_and_column(schema, frame, value):
  other = frame.copy()
  other.loc[42, "age"] = value
  with pytest.raises(UserError, match=rf"line 42, column 'age': '{value}' is not a number"):
    data.encode(schema, other)


def test_missing_labels_are_masked_and_unknown_ones_refused(schema, frame):
  other = frame.copy()
  other.loc[other.index[0], "income_50k"] = ""
  labels = data.encode(schema, other, labels=True).labels
  assert np.isnan(labels[0, 0])
  assert np.isfinite(labels[1:]).all()
  other.loc[other.index[1], "income_50k"] = "a lot"
  with pytest.raises(
    UserError, match="line 2, column 'income_50k': 'a lot' is not a value of the task 'income_50k'"
  ):
    data.encode(schema, other, labels=True)


def test_labels_follow_the_raw_strings(schema, frame):
  labels = data.encode(schema, frame, labels=True).labels
  np.testing.assert_array_equal(labels[:, 0], frame["income_50k"] == "50000+.")
  np.testing.assert_array_equal(labels[:, 1], frame["marital_stat"] == "Never married")
  np.testing.assert_array_equal(labels[:, 2], frame["education"].isin(census_rows.COLLEGE))
  bachelors = {v for v in census_rows.COLLEGE if not v.startswith("Associates")}
  np.testing.assert_array_equal(labels[:, 3], frame["education"].isin(bachelors))
  assert (labels[:, 2] >= labels[:, 3]).all()


def test_multiclass_labels_are_positions_in_the_classes(schema, frame):
  task = schema.tasks[4]
  assert (task.name, task.kind) == ("education_level", "multiclass")
  assert task.outputs == len(task.classes) == frame["education"].nunique()
  labels = data.encode(schema, frame, labels=True).labels[:, 4]
  assert [task.classes[int(y)] for y in labels] == list(frame["education"])


def test_regression_labels_are_standardised_by_the_train_rows(schema, frame, raw):
  task = schema.tasks[5]
  assert (task.name, task.kind, task.outputs) == ("weeks_worked", "regression", 1)
  train = read_frame(raw[0], census_rows.COLUMNS)["weeks_worked"].astype(float)
  labels = data.encode(schema, frame, labels=True).labels[:, 5]
  expected = (frame["weeks_worked"].astype(float) - train.mean()) / train.std(ddof=0)
  np.testing.assert_allclose(labels, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", ["education_level", "weeks_worked"])
def test_missing_labels_of_each_kind_are_masked_and_wrong_ones_refused(schema, frame, task):
  chosen = data.select(schema, (task,), "demo")
  column = chosen.tasks[0].column
  other = frame.copy()
  other.loc[other.index[:2], column] = ""
  labels = data.encode(chosen, other, labels=True).labels
  assert np.isnan(labels[:2]).all()
  np.testing.assert_array_equal(labels[2:], data.encode(chosen, frame, labels=True).labels[2:])
  other.loc[other.index[4], column] = "plenty"
  with pytest.raises(UserError, match=f"line 5, column '{column}': 'plenty' is no"):
    data.encode(chosen, other, labels=True)


@pytest.mark.parametrize("numeric", data.NUMERIC_FORMS)
def test_a_numeric_column_of_a_task_is_no_feature_in_any_form(prepared, numeric):
  schema, splits = data.load(prepared, ("weeks_worked", "bachelors"), "demo", numeric)
  sources = {c for f in schema.id_features for c in f.sources} | {n.name for n in schema.numeric}
  assert not sources & {"weeks_worked", "education"}
  assert "age" in sources or numeric == "none"
  features = splits["train"].features
  assert features["ids"].shape[1] == len(schema.id_features)
  assert features["numeric"].shape[1] == schema.numeric_count
  assert len(schema.numeric) == (6 if numeric in ("standardize", "both", "piecewise") else 0)


def test_numbers_without_a_transform_may_be_negative():
  feature = data.NumericFeature("x", 2.0, 4.0, "identity")
  schema = data.Schema(("x", "y"), (), (feature, data.NumericFeature("y", 0.0, 1.0)), ())
  frame = pd.DataFrame({"x": ["-6", "2"], "y": ["0", "3"]}, index=[1, 2])
  got = data.to_features(schema, data.encode(schema, frame))["numeric"]
  np.testing.assert_allclose(got, [[-2, 0], [0, np.log(4)]], rtol=1e-6)
  frame.loc[2, "y"] = "-1"
  with pytest.raises(UserError, match="line 2, column 'y': '-1' is not a number >= 0"):
    data.encode(schema, frame)


@pytest.mark.parametrize(
  ("task", "value"), [(0, 2), (0, 0.5), (4, -1), (4, 1e3), (4, 0.5), (5, np.inf)]
)
def test_stored_labels_that_no_task_could_have_are_refused(prepared, tmp_path, task, value):
  shutil.copytree(prepared, tmp_path / "d")
  path = tmp_path / "d" / "test" / "labels.npy"
  labels = np.load(path)
  labels[3, task] = np.nan
  np.save(path, labels)
  data.load(str(tmp_path / "d"), ("income_50k",), "demo")
  labels[3, task] = value
  np.save(path, labels)
  with pytest.raises(UserError, match=r"do not fit schema\.json"):
    data.load(str(tmp_path / "d"), ("income_50k",), "demo")


def test_na_and_question_mark_are_categories(schema):
  assert "NA" in schema.id_feature("hisp_origin").values
  assert "?" in schema.id_feature("mig_chg_msa").values


def test_vocabularies_and_statistics_come_from_train_rows_alone(raw, tmp_path, schema):
  rows = census_rows.make(1001, 2)
  age, sex = (census_rows.COLUMNS.index(c) for c in ("age", "sex"))
  for row in rows:
    row[age] = "500"
    row[sex] = "Only in test"
  changed = census_rows.write(str(tmp_path / "test"), rows)
  other = census_income.prepare(raw[0], changed, str(tmp_path / "out"))
  assert other.id_features == schema.id_features
  assert other.numeric == schema.numeric
  ids = np.load(tmp_path / "out" / "test" / "ids.npy")
  assert (ids[:, [f.name for f in other.id_features].index("sex")] == data.UNKNOWN).all()


def test_numeric_features_are_standardised_log1p_of_train(schema, raw):
  train = read_frame(raw[0], census_rows.COLUMNS).astype(object)
  log = np.log1p(train["capital_gains"].astype(float))
  features = data.to_features(schema, data.encode(schema, train))["numeric"]
  at = [n.name for n in schema.numeric].index("capital_gains")
  expected = ((log - log.mean()) / log.std(ddof=0)).to_numpy()
  np.testing.assert_allclose(features[:, at], expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(features.std(0), 1, rtol=1e-5)


def test_bins_are_quantiles_that_never_split_equal_values(schema, raw):
  train = read_frame(raw[0], census_rows.COLUMNS).astype(object)
  for name in census_rows.NUMBERS:
    x = train[name].astype(float)
    ids = pd.Series(column(schema, data.encode(schema, train), f"{name}_bins"), index=x.index)
    assert ids.min() == 1
    assert ids.max() == len(schema.id_feature(f"{name}_bins").values)
    assert (ids.groupby(x).nunique() == 1).all()
    assert (ids.iloc[np.argsort(x.to_numpy(), kind="stable")].diff().dropna() >= 0).all()


def test_log_int_is_the_demos_transform(schema, frame):
  arrays = data.encode(schema, frame)
  values = schema.id_feature("weeks_worked_log_int").values
  decoded = np.array([-1, *values])[column(schema, arrays, "weeks_worked_log_int")]
  expected = np.log(frame["weeks_worked"].astype(int) + 1).astype(int)
  np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("protocol", ["demo", "paper"])
@pytest.mark.parametrize("numeric", data.NUMERIC_FORMS)
@pytest.mark.parametrize("tasks", [("income_50k", "marital_stat"), ("education", "marital_stat")])
def test_labels_and_the_weight_are_never_features(schema, protocol, numeric, tasks):
  chosen = data.select(schema, tasks, protocol, numeric)
  sources = {c for f in chosen.id_features for c in f.sources} | {n.name for n in chosen.numeric}
  assert not sources & {"income_50k", "instance_weight", "marital_stat"}
  assert ("education" in sources) == (protocol == "demo" and "education" not in tasks)
  expected = dict.fromkeys(("standardize", "both", "piecewise"), 7).get(numeric, 0)
  assert len(chosen.numeric) == expected


def test_the_demo_protocol_has_32_nominal_and_7_numeric_features(schema):
  chosen = data.select(schema, ("income_50k", "marital_stat"), "demo")
  assert (len(chosen.id_features), len(chosen.numeric)) == (32, 7)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"tasks": ("incme_50k",)}, "did you mean 'income_50k'"),
    ({"tasks": ()}, r"tasks = \(\): must name"),
    ({"tasks": ("education", "education")}, "must not repeat a task"),
    ({"protocol": "papr"}, "did you mean 'paper'"),
    ({"numeric": "bin"}, "did you mean 'bins'"),
    ({"exclude": ("aeg",)}, "did you mean 'age'"),
    ({"crosses": ("age_bins",)}, "must have the form a#b"),
    ({"crosses": ("sex#educatoin",)}, "did you mean 'education'"),
  ],
)
def test_wrong_selections_are_named(prepared, arguments, message):
  with pytest.raises(UserError, match=message):
    data.load(prepared, **{"tasks": ("income_50k",), "protocol": "demo", **arguments})


def test_exclude_leaves_columns_out(prepared):
  schema, splits = data.load(prepared, ("income_50k",), "demo", "both", exclude=("age", "sex"))
  names = [f.name for f in schema.id_features] + [n.name for n in schema.numeric]
  assert not {"age", "age_bins", "sex"} & set(names)
  assert splits["test"].features["numeric"].shape[1] == 6


def test_crosses_number_the_pairs_of_train_rows(prepared, raw, frame):
  cross = "sex#education"
  schema, splits = data.load(prepared, ("income_50k",), "demo", crosses=(cross,))
  train = read_frame(raw[0], census_rows.COLUMNS).astype(object)
  pairs = train["sex"] + "|" + train["education"]
  assert schema.id_feature(cross).size == pairs.nunique() + 1
  ids = pd.Series(splits["train"].features["ids"][:, -1], index=pairs.index)
  assert (ids.groupby(pairs).nunique() == 1).all()
  assert ids.nunique() == pairs.nunique()
  encoded = data.encode(schema, frame)
  rows = np.load(os.path.join(prepared, "test", "rows.npy"))
  np.testing.assert_array_equal(encoded.ids[rows], splits["test"].features["ids"])
  other = frame.copy()
  other["sex"] = "unheard of"
  assert (data.encode(schema, other).ids[:, -1] == data.UNKNOWN).all()


def test_integers_are_as_small_as_they_can_be(prepared):
  ids = np.load(os.path.join(prepared, "train", "ids.npy"), mmap_mode="r")
  numbers = np.load(os.path.join(prepared, "train", "numbers.npy"), mmap_mode="r")
  assert isinstance(ids, np.memmap)
  assert (ids.dtype, numbers.dtype) == (np.uint8, np.uint32)


def test_slice_holds_the_rows_aged_16_and_over(prepared, raw):
  _, splits = data.load(prepared, ("income_50k",), "demo")
  ages = read_frame(raw[0], census_rows.COLUMNS)["age"].astype(int).to_numpy()
  np.testing.assert_array_equal(splits["train"].slices["16_and_over"], ages >= 16)


def test_a_saved_schema_comes_back_equal(schema, tmp_path):
  path = str(tmp_path / "schema.json")
  data.save_schema(schema, path)
  assert data.restore_schema(path) == schema


def test_broken_data_is_named(prepared, tmp_path):
  def load():
    return data.load(str(tmp_path / "d"), ("income_50k",), "demo")

  with pytest.raises(UserError, match=r"contains no prepared data; run: python -m data_prep"):
    load()
  shutil.copytree(prepared, tmp_path / "d")
  ids = tmp_path / "d" / "test" / "ids.npy"
  ids.write_bytes(ids.read_bytes()[:1000])
  with pytest.raises(UserError, match=r"ids\.npy: broken array"):
    load()
  for field in ("ids", "numbers", "labels", "weights", "slices", "rows"):
    path = tmp_path / "d" / "test" / f"{field}.npy"
    np.save(path, np.load(os.path.join(prepared, "test", f"{field}.npy"))[:0])
  with pytest.raises(UserError, match="test: the split is empty"):
    load()
  path = tmp_path / "d" / "schema.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 1}))
  with pytest.raises(UserError, match=r"format version 1, must be 4; prepare the data again"):
    load()
  path.write_text("{")
  with pytest.raises(UserError, match="broken: not JSON"):
    load()


def test_schema_knows_its_counts(schema):
  assert [c["rows"] for c in schema.counts.values()] == [2003, 500, 501]
  counts = dataclasses.asdict(schema)["counts"]["train"]
  assert counts["labelled"]["education"] == 2003
  assert sum(counts["classes"]["education_level"]) == 2003
  assert counts["means"]["weeks_worked"] == pytest.approx(schema.tasks[5].mean, abs=1e-4)
  assert list(counts["positives"]) == ["income_50k", "marital_stat", "education", "bachelors"]


@pytest.fixture
def copy(prepared, tmp_path) -> str:
  return shutil.copytree(prepared, str(tmp_path / "copy"))


@pytest.mark.parametrize("name", ["schema.json", "train/ids.npy", "test/labels.npy"])
def test_verification_names_a_file_with_a_flipped_bit(copy, name):
  before = data.verify(copy)
  path = os.path.join(copy, name)
  with open(path, "r+b") as file:
    file.seek(os.path.getsize(path) // 2)
    byte = file.read(1)[0]
    file.seek(-1, os.SEEK_CUR)
    file.write(bytes([byte ^ 4]))
  with pytest.raises(UserError, match=rf"{name}: changed or damaged since the data was prepared"):
    data.verify(copy)
  os.remove(path)
  with pytest.raises(UserError, match=r"is missing|no prepared data"):
    data.verify(copy)
  assert len(before) == 64


def test_verification_identifies_the_data(prepared, copy, capsys):
  assert data.verify(prepared) == data.verify(copy)
  assert not capsys.readouterr().err
  for split in ("validation", "test"):
    os.rename(os.path.join(copy, split), os.path.join(copy, f"{split}-"))
  os.rename(os.path.join(copy, "validation-"), os.path.join(copy, "test"))
  os.rename(os.path.join(copy, "test-"), os.path.join(copy, "validation"))
  with pytest.raises(UserError, match="changed or damaged"):
    data.verify(copy)
  # Without a manifest, as before there were any, the files alone identify the data.
  os.remove(os.path.join(copy, "manifest.json"))
  assert data.verify(copy) != data.verify(prepared)
  assert "cannot be verified" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("field", "change"),
  [
    ("numbers", lambda a: np.where(np.arange(len(a))[:, None] == 5, -1.0, a)),
    ("numbers", lambda a: np.where(np.arange(len(a))[:, None] == 5, np.nan, a)),
    ("weights", lambda a: np.where(np.arange(len(a)) == 7, -1.0, a).astype(np.float32)),
    ("ids", lambda a: a.astype(">u2")),
  ],
)
def test_arrays_that_cannot_be_are_refused(copy, field, change):
  path = os.path.join(copy, "train", f"{field}.npy")
  np.save(path, change(np.load(path)))
  with pytest.raises(UserError, match=r"train.*prepare the data again"):
    data.load(copy, ("income_50k",), "demo")


def test_an_archive_named_as_an_array_is_refused(copy):
  path = os.path.join(copy, "train", "ids.npy")
  with open(path, "wb") as file:
    np.savez(file, ids=np.zeros((2, 2)))
  with pytest.raises(UserError, match=r"ids\.npy: not an array"):
    data.load(copy, ("income_50k",), "demo")
