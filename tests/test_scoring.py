"""Scoring of files: the same scores in any form, bounded parts, bad rows, kills."""

import csv
import os

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from configs import tabular
from data_prep import preparation, splitting
from data_prep.spec import parse_spec
from mmoe_jax import parallel
from mmoe_jax.data import tables
from mmoe_jax.errors import UserError
from mmoe_jax.evaluation import evaluate
from mmoe_jax.prediction import scoring
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.training import loop
from mmoe_jax.workdir import preemption
from tests import shop_rows

TASKS = ["click", "buy", "rating", "country=DE", "country=FR", "country=JP"]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
  return shop_rows.make(700, 8)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
  folder = tmp_path_factory.mktemp("shop")
  path = shop_rows.write_csv(shop_rows.make(1500, 5), str(folder / "shop.csv"))
  spec = parse_spec(shop_rows.SPEC, "shop.toml")
  groups = splitting.splitters_of(spec.split, {"input": [path]})
  preparation.prepare(spec, groups, str(folder / "data"))
  config = tabular.get_config(f"mmoe,data={folder}/data,tasks=click+buy+rating+country")
  config.train.epochs, config.train.devices, config.data.numeric = 1, 1, "piecewise"
  loop.train_and_evaluate(config, str(folder / "run"))
  found = Predictor(str(folder / "run"))
  # As users compile it; without optimisation, as tests do, last bits depend on the batch.
  predict = evaluate.make_predict(found.model)
  found._predict = parallel.jit(predict, xla_backend_optimization_level=3)
  return found


@pytest.fixture
def parts(monkeypatch):
  """Makes parts small, so that a table has many."""
  monkeypatch.setattr(tables, "PART_BYTES", 6000)
  monkeypatch.setattr(tables, "BATCH", 50)


def score(predictor, inputs, output, **settings):
  totals = scoring.score_files(predictor, [str(path) for path in inputs], str(output), **settings)
  read = pq.read_table(output).to_pandas() if str(output).endswith("parquet") else None
  return totals, pd.read_csv(output) if read is None else read


def test_scores_are_the_same_in_any_form_and_order(predictor, frame, tmp_path, parts):
  expected = predictor(frame)
  assert list(expected.columns) == TASKS
  csv_path = shop_rows.write_csv(frame, str(tmp_path / "rows.csv"))
  columns = list(np.random.default_rng().permutation(frame.columns))
  other = shop_rows.write_csv(frame[columns], str(tmp_path / "other.csv"))
  parquet = shop_rows.write_parquet(frame[columns], str(tmp_path / "rows.parquet"))
  bare = frame.drop(columns=["click", "buy", "rating", "note", "weight", "row"])
  few = shop_rows.write_csv(bare, str(tmp_path / "few.csv"))
  for path in (csv_path, other, parquet, few):
    for end in ("csv", "parquet"):
      totals, got = score(predictor, [path], tmp_path / f"scores.{end}")
      assert totals.rows == 700
      pd.testing.assert_frame_equal(got, expected, check_exact=True)
  dicts = frame.astype(object).where(frame.notna(), None).to_dict("records")
  for row in (0, 333, 699):
    alone = predictor.scores(dicts[row])
    assert [alone[name][0] for name in TASKS] == expected.iloc[row].tolist()


def test_kept_columns_come_first(predictor, frame, tmp_path, parts):
  path = shop_rows.write_parquet(frame, str(tmp_path / "rows.parquet"))
  _, got = score(predictor, [path], tmp_path / "out.parquet", keep=("row", "user", "note"))
  assert list(got.columns) == ["row", "user", "note", *TASKS]
  pd.testing.assert_frame_equal(got[["row", "user", "note"]], frame[["row", "user", "note"]])
  csv_path = shop_rows.write_csv(frame, str(tmp_path / "rows.csv"))
  _, got = score(predictor, [csv_path], tmp_path / "out.csv", keep=("row", "user", "note"))
  pd.testing.assert_frame_equal(got[["row", "user", "note"]], frame[["row", "user", "note"]])
  for keep, message in ((("click",), "has the name of a score"), (("nme",), "'nme' is missing")):
    with pytest.raises(UserError, match=message):
      score(predictor, [path], tmp_path / "bad.csv", keep=keep)
  assert sorted(os.listdir(tmp_path)) == ["out.csv", "out.parquet", "rows.csv", "rows.parquet"]


def test_several_files_are_one_table(predictor, frame, tmp_path, parts):
  expected = predictor(frame)
  first = shop_rows.write_csv(frame[:300], str(tmp_path / "a.csv"))
  second = shop_rows.write_parquet(frame[300:], str(tmp_path / "b.parquet"))
  _, got = score(predictor, [first, second], tmp_path / "out.parquet")
  pd.testing.assert_frame_equal(got, expected, check_exact=True)


def test_bad_rows_are_refused_or_set_aside(predictor, frame, tmp_path, parts):
  rows = frame.astype(object)
  rows.loc[5, "price"] = "dear"
  rows.loc[600, "price"] = -2
  rows.loc[300, "time"] = "yesterday"
  path = shop_rows.write_csv(rows, str(tmp_path / "rows.csv"))
  with open(path, "a", encoding="utf-8") as file:
    file.write("1,2,3\n")
  with pytest.raises(UserError, match="line 7, column 'price': 'dear' is not a number"):
    score(predictor, [path], tmp_path / "out.csv")
  bad = tmp_path / "bad.csv"
  totals, got = score(predictor, [path], tmp_path / "out.csv", bad_rows=str(bad))
  assert (totals.rows, totals.bad) == (697, 4)
  with open(bad, encoding="utf-8", newline="") as file:
    header, *lines = csv.reader(file)
  assert header == ["file", "line", "reason"]
  assert [line[1] for line in lines] == ["7", "302", "602", "702"]
  assert "'dear' is not a number" in lines[0][2]
  assert "not a time" in lines[1][2]
  assert "'-2' is not a number >= 0" in lines[2][2]
  assert "has 3 columns, must have 14" in lines[3][2]
  expected = predictor(frame.drop(index=[5, 300, 600]))
  pd.testing.assert_frame_equal(got, expected.reset_index(drop=True), check_exact=True)


def test_an_interrupted_scoring_resumes_from_whole_parts(
  predictor, frame, tmp_path, parts, monkeypatch
):
  path = shop_rows.write_csv(frame, str(tmp_path / "rows.csv"))
  _, expected = score(predictor, [path], tmp_path / "whole.csv", keep=("row",))
  scored, original = [], scoring._Job.score_part

  def counting(self, read):
    if len(scored) == 4:
      raise KeyboardInterrupt
    scored.append(read)
    return original(self, read)

  monkeypatch.setattr(scoring._Job, "score_part", counting)
  with pytest.raises(KeyboardInterrupt):
    score(predictor, [path], tmp_path / "cut.csv", keep=("row",))
  assert not (tmp_path / "cut.csv").exists()
  done = [n for n in os.listdir(tmp_path / ".cut.csv.parts") if n.endswith(".json")]
  assert 3 <= len(done) <= 4
  resumed = []
  monkeypatch.setattr(
    scoring._Job, "score_part", lambda self, read: (resumed.append(1), original(self, read))[1]
  )
  _, got = score(predictor, [path], tmp_path / "cut.csv", keep=("row",))
  pd.testing.assert_frame_equal(got, expected, check_exact=True)
  total = len(tables.plan([path], tables.Format(), part_bytes=6000))
  assert len(resumed) == total - len(done)
  assert sorted(os.listdir(tmp_path)) == ["cut.csv", "rows.csv", "whole.csv"]


def test_a_signal_ends_scoring_after_a_part(predictor, frame, tmp_path, parts, monkeypatch):
  path = shop_rows.write_csv(frame, str(tmp_path / "rows.csv"))
  _, expected = score(predictor, [path], tmp_path / "whole.csv", keep=("row",))
  asked = iter([False] * 3)
  monkeypatch.setattr(preemption, "requested", lambda: next(asked, True))
  with pytest.raises(preemption.Preempted):
    score(predictor, [path], tmp_path / "cut.csv", keep=("row",))
  assert not (tmp_path / "cut.csv").exists()
  done = [n for n in os.listdir(tmp_path / ".cut.csv.parts") if n.endswith(".json")]
  assert len(done) in (3, 4)  # Three were counted, and one was in hand.
  monkeypatch.setattr(preemption, "requested", lambda: False)
  scored, original = [], scoring._Job.score_part
  monkeypatch.setattr(
    scoring._Job, "score_part", lambda self, read: (scored.append(1), original(self, read))[1]
  )
  _, got = score(predictor, [path], tmp_path / "cut.csv", keep=("row",))
  pd.testing.assert_frame_equal(got, expected, check_exact=True)
  assert len(scored) == len(tables.plan([path], tables.Format(), part_bytes=6000)) - len(done)


def test_parts_of_other_settings_are_not_used(predictor, frame, tmp_path, parts, monkeypatch):
  path = shop_rows.write_csv(frame, str(tmp_path / "rows.csv"))
  write, calls = scoring._write_part, []

  def dying(*arguments):
    calls.append(1)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return write(*arguments)

  monkeypatch.setattr(scoring, "_write_part", dying)
  with pytest.raises(KeyboardInterrupt):
    score(predictor, [path], tmp_path / "out.csv", keep=("row",))
  monkeypatch.setattr(scoring, "_write_part", write)
  _, got = score(predictor, [path], tmp_path / "out.csv")
  pd.testing.assert_frame_equal(got, predictor(frame), check_exact=True)


def test_unknown_and_dropped_values_are_counted(predictor, frame, tmp_path, parts):
  rows = frame.assign(country="XX", tags=[["red", "blue", "new", "old"]] * len(frame))
  path = shop_rows.write_parquet(rows, str(tmp_path / "rows.parquet"))
  totals, _ = score(predictor, [path], tmp_path / "out.csv")
  # `country` is a task of the run, so it is no feature and is not read.
  assert "country" not in totals.unknown
  assert totals.unknown["device"][1] == "rare"
  assert totals.dropped == {"tags": 700}
  assert any(
    "700 values beyond the first ones" in line for line in totals.lines(predictor.schema, "x")
  )
