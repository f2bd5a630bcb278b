"""Names of what differs between two runs."""

import dataclasses

from mmoe_jax.data import IdFeature, NumericFeature, Schema
from mmoe_jax.workdir import differences

AGE, SEX = IdFeature("age", "bins", ("age",), (1.0, 2.0)), IdFeature("sex", "category", ("sex",))
PAY = NumericFeature("pay", 1.0, 2.0)
SCHEMA = Schema(("age", "sex", "pay"), (AGE, SEX), (PAY,), ())


def of(**changes) -> str:
  return differences.of_schemas(SCHEMA, dataclasses.replace(SCHEMA, **changes))


def test_schemas_differ_by_the_names_of_their_parts():
  assert of() == ""
  assert of(id_features=(SEX, AGE)) == "the order of the id features"
  assert of(id_features=(AGE,)) == "the id feature 'sex' is missing"
  other = dataclasses.replace(AGE, values=(1.0,), has_missing=True)
  assert of(id_features=(other, SEX)) == "the id feature 'age' differs in its values, has_missing"
  assert of(numeric=(PAY, dataclasses.replace(PAY, name="gain"))) == "the number 'gain' is new"
  assert of(weight_column="w", separator=";") == "its weight column; its separator"


def test_only_the_parts_that_are_asked_for_count():
  changed = dataclasses.replace(SCHEMA, separator=";")
  assert differences.of_schemas(SCHEMA, changed, ("id_features", "numeric")) == ""


def test_settings_differ_by_their_keys():
  before = {"a": 1, "b": 2, "c": (3,), "d": "x" * 100, "e": 1, "free": 0}
  assert differences.of_settings(before, {**before, "free": 1}, ("free",)) == ""
  assert differences.of_settings(before, {**before, "b": 3}, ()) == "config.b=2, not 3"
  found = differences.of_settings(before, {"a": 2, "c": (4,), "new": 1}, ("free",))
  assert found == "config.a=1, not 2; config.b=2, not None; config.c=(3,), not (4,); 3 more"
  assert len(differences.of_settings(before, {**before, "d": "y" * 100}, ())) < 150
