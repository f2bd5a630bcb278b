"""Tables that do not suit their spec: one line that names file, column and fault; nothing left."""

import os

import pandas as pd
import pytest

from data_prep import preparation, splitting
from data_prep.spec import parse_spec
from mmoe_jax.data import tables
from mmoe_jax.errors import UserError
from tests import shop_rows

SPEC = parse_spec(shop_rows.SPEC, "shop.toml")


def prepare(paths, out, spec=SPEC, **settings):
  groups = splitting.splitters_of(spec.split, {"input": list(paths)})
  return preparation.prepare(spec, groups, str(out), **settings)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
  return shop_rows.make(1500, 5)


@pytest.fixture(scope="module")
def csv(frame, tmp_path_factory) -> str:
  return shop_rows.write_csv(frame, str(tmp_path_factory.mktemp("raw") / "shop.csv"))


def edited(frame, **columns):
  return frame.astype(object).assign(**columns)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda f: f.rename(columns={"device": "devise"}),
      "'device' is missing; did you mean 'devise'",
    ),
    (lambda f: edited(f, extra=1), r"does not name the column 'extra'.*role = 'ignore'"),
    (lambda f: edited(f, click=0), "task click: no train row is positive|has click|no train row"),
    (lambda f: edited(f, price=["dear", *f["price"][1:]]), "line 2, column 'price': 'dear'"),
    (lambda f: edited(f, price=-1.0), "logarithms need numbers of at least 0"),
    (lambda f: edited(f, time="soon"), "line 2, column 'time': 'soon' is not a time"),
    (lambda f: edited(f, weight=-1), "column 'weight': '-1' is not a number >= 0"),
    (lambda f: edited(f, weight=None), "column 'weight': '' is not a number"),
    (lambda f: edited(f, score=None), "column 'score': no train row has a number"),
    (lambda f: edited(f, rating=3), "task liked: no train row is positive"),
    (lambda f: edited(f, country="DE"), "task country: all train rows have the same country"),
    (lambda f: f[:1], "the (train|validation|test) split is empty"),
    (lambda f: f[:0], "no rows"),
  ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_bad_tables_are_named_and_leave_nothing(frame, tmp_path, change, message, kind):
  if kind == "parquet" and "line 2" in message:
    message = message.replace("line 2", "line 1")
  changed = change(frame)
  path = str(tmp_path / f"bad.{kind}")
  if kind == "csv":
    shop_rows.write_csv(changed, path)
  else:
    texts = {
      c: changed[c].astype(str)
      for c in ("price", "time")
      if c in changed and changed[c].dtype == object
    }
    shop_rows.write_parquet(changed.assign(**texts).infer_objects(), path)
  with pytest.raises(UserError, match=message):
    prepare([path], tmp_path / "out")
  assert os.listdir(tmp_path) == [f"bad.{kind}"]


def test_files_that_differ_from_the_first_are_named(frame, csv, tmp_path):
  first = shop_rows.write_parquet(frame, str(tmp_path / "a.parquet"))
  other = frame.assign(price=frame["price"].astype(str))
  second = shop_rows.write_parquet(other, str(tmp_path / "b.parquet"))
  with pytest.raises(UserError, match=r"b\.parquet: column 'price' has the type .*string.*double"):
    prepare([first, second], tmp_path / "out")
  shop_rows.write_csv(frame.drop(columns="note"), str(tmp_path / "c.csv"))
  with pytest.raises(UserError, match=r"c\.csv: column 'note' is missing"):
    prepare([csv, str(tmp_path / "c.csv")], tmp_path / "out")
  (tmp_path / "d.parquet").write_bytes(b"PAR1 not")
  with pytest.raises(UserError, match=r"d\.parquet: not a Parquet file, or damaged"):
    prepare([str(tmp_path / "d.parquet")], tmp_path / "out")


def test_a_task_that_contradicts_implies_is_named(frame, tmp_path):
  path = shop_rows.write_csv(edited(frame, buy=1), str(tmp_path / "x.csv"))
  spec = parse_spec(shop_rows.SPEC.replace("click == 1 and buy == 1", "rating >= 3"), "s")
  with pytest.raises(UserError, match="label of 'buy' is 1 and that of 'click' 0"):
    prepare([path], tmp_path / "out", spec)


def test_a_table_that_changes_between_the_passes_is_named(frame, tmp_path, monkeypatch):
  path = shop_rows.write_csv(frame, str(tmp_path / "shop.csv"))
  second = preparation._second_pass

  def change(*arguments):
    with open(path, "a", encoding="utf-8") as file:
      file.write("\n")
    monkeypatch.setattr(tables, "SMALL", 0)
    return second(*arguments)

  monkeypatch.setattr(preparation, "_second_pass", change)
  monkeypatch.setattr(tables, "SMALL", 0)
  with pytest.raises(UserError, match=r"shop\.csv: changed while it was read; start again"):
    prepare([path], tmp_path / "out", part_bytes=9000)
  assert os.listdir(tmp_path) == ["shop.csv"]
