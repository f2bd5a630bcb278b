"""Drafts of specs: valid, with the roles that a person would choose, and notes."""

import numpy as np
import pandas as pd
import pytest

from data_prep import preparation, splitting
from data_prep.inspect import inspect
from data_prep.spec import parse_spec
from mmoe_jax.errors import UserError
from tests import census_rows, shop_rows


def draft(frame, tmp_path, **settings):
  path = str(tmp_path / "rows.csv")
  frame.to_csv(path, index=False)
  text, warnings = inspect([path], **settings)
  return parse_spec(text, "draft"), warnings, path


def test_roles_are_those_of_a_person(tmp_path):
  frame = shop_rows.make(3000, 2)
  path = shop_rows.write_csv(frame, str(tmp_path / "shop.csv"))
  for inputs in ([path], [shop_rows.write_parquet(frame, str(tmp_path / "shop.parquet"))]):
    text, warnings = inspect(inputs, tasks=("click", "rating"))
    spec = parse_spec(text, "draft")
    roles = {name: column.role for name, column in spec.columns.items()}
    assert roles == {
      "row": "keep",
      "user": "category",
      "country": "category",
      "device": "category",
      "age": "number",
      "price": "number",
      "score": "number",
      "tags": "list",
      "time": "time",
      "weight": "category",
      "rating": "label",
      "click": "label",
      "buy": "category",
      "note": "keep",
    }
    assert spec.columns["user"].min_count == 2
    assert spec.tasks["click"].condition == "click == 1"
    assert spec.tasks["rating"].kind == "multiclass"
    assert spec.columns["age"].missing == (("NA",) if inputs == [path] else ())
    assert any(w.startswith("note: 3,000 values in 3,000 rows") for w in warnings)


def test_the_draft_prepares_the_table(tmp_path):
  frame = shop_rows.make(1200, 3)
  path = shop_rows.write_csv(frame, str(tmp_path / "shop.csv"))
  spec = parse_spec(inspect([path])[0], "draft")
  assert {"click", "buy", "rating"} <= set(spec.tasks)
  groups = splitting.splitters_of(spec.split, {"input": [path]})
  schema = preparation.prepare(spec, groups, str(tmp_path / "out"))
  assert sum(count["rows"] for count in schema.counts.values()) == 1200


def test_what_looks_wrong_is_noted(tmp_path):
  rng = np.random.default_rng(0)
  label = (rng.random(2000) < 0.3).astype(int)
  amount = rng.normal(0, 1, 2000).round(3)
  frame = pd.DataFrame(
    {
      "constant": "x",
      "leak": np.where(label == 1, rng.choice(["a", "b"], 2000), rng.choice(["c", "d"], 2000)),
      "near": label * 10 + rng.normal(0, 1, 2000),
      "city": rng.choice(["Ulm", "Bonn", "Kiel"], 2000),
      "amount": np.where(rng.random(2000) < 0.01, "unknown", amount.astype(str)),
      "clicked": label,
    }
  )
  frame["town"] = frame["city"].map({"Ulm": "U", "Bonn": "B", "Kiel": "K"})
  frame["rare"] = np.where(np.arange(2000) < 5, "yes", "no")
  spec, warnings, _ = draft(frame, tmp_path, tasks=("clicked", "rare"))
  text = "\n".join(warnings)
  assert "constant: constant" in text
  assert "leak: alone predicts clicked with an AUC of" in text
  assert "near: alone predicts clicked with an AUC of" in text
  assert "town: says the same as city in every row" in text
  assert "rare: only 5 rows of the sample have 'yes'" in text
  assert "amount: a number except for 'unknown', which the draft takes for missing" in text
  assert "city: alone" not in text
  assert spec.columns["amount"].missing == ("unknown",)
  assert spec.columns["constant"].role == "ignore"
  assert spec.tasks["rare"].condition == 'rare == "yes"'


def test_the_leak_of_census_is_noted(tmp_path):
  rows = census_rows.make(2000, 4)
  frame = pd.DataFrame(rows, columns=census_rows.COLUMNS)
  single = frame["marital_stat"] == "Never married"
  frame["det_hh_fam_stat"] = np.where(single, "child", "spouse")
  _, warnings, _ = draft(frame, tmp_path, tasks=("marital_stat", "income_50k"))
  assert not [w for w in warnings if w.startswith("det_hh_fam_stat: alone predicts income")]


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
def test_the_separator_is_found(tmp_path, separator):
  frame = shop_rows.make(200, 1)[["country", "price", "age", "click"]]
  path = str(tmp_path / "rows.csv")
  frame.to_csv(path, index=False, sep=separator)
  spec = parse_spec(inspect([path])[0], "draft")
  assert spec.separator == separator
  assert list(spec.columns) == list(frame.columns)


def test_names_that_toml_or_conditions_must_quote(tmp_path):
  columns = {"ä b": ["x", "y"] * 60, 'if "so"': range(120), "is ok?": ["no", "yes"] * 60}
  frame = pd.DataFrame(columns)
  spec, _, path = draft(frame, tmp_path, tasks=("is ok?",))
  assert list(spec.columns) == list(frame.columns)
  assert spec.tasks["is ok?"].condition == '`is ok?` == "yes"'
  groups = splitting.splitters_of(spec.split, {"input": [path]})
  preparation.prepare(spec, groups, str(tmp_path / "out"))


def test_faults_are_named(tmp_path):
  path = str(tmp_path / "rows.csv")
  pd.DataFrame({"a": [1, 2], "b": [3, 4]}).to_csv(path, index=False)
  with pytest.raises(UserError, match="'c', which does not exist"):
    inspect([path], tasks=("c",))
  with pytest.raises(UserError, match="must be at least 1"):
    inspect([path], sample=0)
  (tmp_path / "empty.csv").write_text("")
  with pytest.raises(UserError, match="the file is empty"):
    inspect([str(tmp_path / "empty.csv")])
