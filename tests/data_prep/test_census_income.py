"""Preparation: the demo's rows, complete or absent, and no other folder changed."""

import hashlib
import json
import os

import numpy as np
import pandas as pd
import pytest

from data_prep import census_income, column_counts, fitting, output, summaries
from data_prep.spec import read_spec
from mmoe_jax import data
from mmoe_jax.data.columns import from_rows
from mmoe_jax.errors import UserError
from tests import census_rows, reference
from tests.census_rows import COLUMNS, NUMBERS
from tests.frames import read_frame


def test_columns_are_the_42_of_the_names_file_each_with_one_use():
  spec = read_spec(census_income.SPEC)
  assert tuple(spec.columns) == COLUMNS
  assert len(COLUMNS) == 42
  assert len(spec.of_role("category")) == 33
  assert spec.of_role("number") == NUMBERS
  assert (spec.of_role("weight"), spec.of_role("label")) == (("instance_weight",), ("income_50k",))


def test_validation_rows_are_the_demos(prepared, raw):
  table = pd.read_csv(raw[1], header=None)
  validation = table.sample(frac=0.5, replace=False, random_state=1)
  rows = {s: np.load(os.path.join(prepared, s, "rows.npy")) for s in ("validation", "test")}
  assert set(rows["validation"]) == set(validation.index)
  assert set(rows["test"]) == set(table.drop(validation.index).index)


def test_preparing_again_replaces_prepared_data_only(raw, tmp_path):
  out = tmp_path / "out"
  census_income.prepare(*raw, str(out))
  census_income.prepare(*raw, str(out), max_bins=8)
  assert "bins" in (out / "schema.json").read_text()
  (out / "notes.txt").write_text("on these very arrays")
  with pytest.raises(UserError, match=r"not a folder of prepared data alone .*notes\.txt"):
    census_income.prepare(*raw, str(out))
  assert (out / "notes.txt").exists()
  (out / "notes.txt").unlink()
  precious = tmp_path / "precious"
  precious.mkdir()
  (precious / "thesis.tex").write_text("years of work")
  with pytest.raises(UserError, match="not a folder of prepared data alone"):
    census_income.prepare(*raw, str(precious))
  assert os.listdir(precious) == ["thesis.tex"]
  assert sorted(os.listdir(tmp_path)) == ["out", "precious"]


def test_files_of_the_user_in_or_beside_prepared_data_survive(raw, tmp_path):
  out = tmp_path / "out"
  census_income.prepare(*raw, str(out))
  (tmp_path / "out.old").mkdir()
  (tmp_path / "out.old" / "mine.txt").write_text("mine")
  census_income.prepare(*raw, str(out))
  assert (tmp_path / "out.old" / "mine.txt").read_text() == "mine"
  (out / "train" / "mine.npy").write_text("mine")
  with pytest.raises(UserError, match=r"contains train/mine\.npy"):
    census_income.prepare(*raw, str(out))
  (out / "train" / "mine.npy").unlink()
  (tmp_path / "link").symlink_to(out)
  with pytest.raises(UserError, match="not a folder of prepared data alone"):
    census_income.prepare(*raw, str(tmp_path / "link"))
  # A file that appears during the preparation is noticed as well.
  with pytest.raises(UserError, match=r"contains late\.txt"), output.replace_folder(str(out)):
    (out / "late.txt").write_text("late")
  assert (out / "late.txt").exists()
  assert sorted(os.listdir(tmp_path)) == ["link", "out", "out.old"]


def test_folders_of_killed_preparations_are_cleaned_up_and_data_in_them_returns(raw, tmp_path):
  out = tmp_path / "out"
  census_income.prepare(*raw, str(out))
  before = (out / "schema.json").read_bytes()
  half, moved = tmp_path / ".out-abcdefgh.new", tmp_path / ".out-abcdefg0.before"
  half.mkdir()
  (half / "schema.json").write_text("{}")
  moved.mkdir()
  out.rename(moved / "out")  # A kill between two renames.
  running = tmp_path / ".out-abcdefg1.new"
  running.mkdir()
  with output.in_use(str(running)):
    with (
      pytest.raises(UserError, match="no rows"),
      output.replace_folder(str(out)),
    ):
      raise UserError("no rows")
    assert sorted(os.listdir(tmp_path)) == [running.name, "out"]
  assert (out / "schema.json").read_bytes() == before


def test_the_manifest_lists_every_file_and_is_the_same_again(raw, tmp_path):
  census_income.prepare(*raw, str(tmp_path / "a"))
  census_income.prepare(*raw, str(tmp_path / "b"))
  text = (tmp_path / "a" / "manifest.json").read_text()
  assert text == (tmp_path / "b" / "manifest.json").read_text()
  files = json.loads(text)["files"]
  assert len(files) == 19
  for name, entry in files.items():
    content = (tmp_path / "a" / name).read_bytes()
    assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_failure_leaves_only_the_earlier_data(raw, tmp_path):
  out = tmp_path / "out"
  census_income.prepare(*raw, str(out))
  before = sorted(os.listdir(out))
  rows = census_rows.make(50, 3)
  rows[20][0] = "forty"
  broken = census_rows.write(str(tmp_path / "broken"), rows)
  with pytest.raises(UserError, match="line 21, column 'age': 'forty'"):
    census_income.prepare(raw[0], broken, str(out))
  assert sorted(os.listdir(out)) == before
  assert sorted(os.listdir(tmp_path)) == ["broken", "out"]


def test_too_few_rows_for_a_split_are_named(raw, tmp_path):
  single = census_rows.write(str(tmp_path / "one"), census_rows.make(1, 3))
  with pytest.raises(UserError, match="validation split is empty"):
    census_income.prepare(raw[0], single, str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()


def test_summary_has_rows_positives_and_sizes(raw, tmp_path):
  schema = census_income.prepare(*raw, str(tmp_path / "out"))
  text = summaries.format_schema(schema, "DIR")
  positives = (read_frame(raw[0], COLUMNS)["income_50k"] == "50000+.").sum()
  assert "2,003" in text
  assert f"{positives:,}" in text
  assert "DIR" in text


def test_labels_come_from_train_rows_that_have_them():
  def texts(*values):
    return column_counts.count_texts(from_rows([{"c": v} for v in values]).factor("c"))

  def numbers(*values):
    return column_counts.count_numbers(np.array(values, float))

  binary = fitting.fit_task(data.Task("t", "word", ("a",)), texts("", "a", "b", "b"))
  assert (binary.positive, binary.negative) == (("a",), ("b",))
  task = data.Task("t", "word", kind="multiclass")
  assert fitting.fit_task(task, texts("", "a", "b")).classes == ("a", "b")
  size = fitting.fit_task(data.Task("t", "size", kind="regression"), numbers(2, np.nan, 4, 6))
  assert (size.mean, size.std) == (pytest.approx(4), pytest.approx(np.std([2, 4, 6])))
  with pytest.raises(UserError, match="task t: all train rows have the same"):
    fitting.fit_task(task, texts("b", "b", ""))
  with pytest.raises(UserError, match="task t: all train rows have the same"):
    fitting.fit_task(data.Task("t", "size", kind="regression"), numbers(3, 3))
  with pytest.raises(UserError, match="task t: no train row has word 'z'; it has 'a', 'b'"):
    fitting.fit_task(data.Task("t", "word", ("z",)), texts("a", "b"))


def test_bins_give_heavy_values_their_own_and_share_out_the_rest():
  rng = reference.fresh_rng()
  x = np.where(rng.random(100_000) < 0.96, 0, rng.integers(1, 100_000, 100_000)).astype(float)
  edges = fitting.bin_edges(column_counts.count_numbers(x), 64)
  assert edges[0] == 0
  assert 50 <= len(edges) <= 64
  counts = np.bincount(np.searchsorted(edges, x, side="right"))[2:]
  assert counts.max() < 2 * counts.mean()


@pytest.mark.parametrize("max_bins", [1, 2, 5, 64, 255])
def test_there_are_never_more_bins_than_asked_for(max_bins):
  rng = reference.fresh_rng()
  few = np.repeat([0, 1, 2, 3], [20, 60, 20, 2])
  draws = (few, rng.integers(0, 91, 5000), rng.zipf(1.5, 5000), rng.normal(size=5000), np.zeros(9))
  for x in draws:
    edges = fitting.bin_edges(column_counts.count_numbers(x.astype(float)), max_bins)
    assert 1 <= len(edges) <= max_bins
    assert edges[0] == x.min()
    assert (np.diff(edges) > 0).all()
