"""Facts: the best member, records of members, bounded samples."""

import json

import numpy as np
import pytest

from mmoe_jax.errors import UserError
from mmoe_jax.html_report import facts as facts_lib


def members(metric, values):
  """Returns the results of a population; None for a member that diverged."""
  metrics = lambda v: {f"a/{metric}": v, f"b/{metric}": v, f"a/{metric}_slice": 9.0}
  return {
    "members": [{"error": "bad"} if v is None else {"validation": metrics(v)} for v in values]
  }


@pytest.mark.parametrize(
  ("metric", "values", "best"),
  [("auc", [0.8, 0.9, 0.85], 1), ("log_loss", [0.8, 0.9, 0.85], 0), ("auc", [None, 0.5, 0.5], 1)],
)
def test_the_best_member_is_that_of_the_selection_metric(metric, values, best):
  config = {"select": {"metric": metric, "tasks": []}}
  assert facts_lib.best_member(config, members(metric, values)) == best
  config["select"]["tasks"] = ["b"]
  assert facts_lib.best_member(config, members(metric, values)) == best


def test_a_population_without_a_good_member_is_one_line():
  config = {"select": {"metric": "auc", "tasks": []}}
  with pytest.raises(UserError, match="no member of the population"):
    facts_lib.best_member(config, members("auc", [None]))


def test_records_of_a_member_are_those_of_the_epochs_that_it_trained(tmp_path):
  lines = [
    {"epoch": 1, "active": [True, True], "loss": [1.0, 2.0]},
    {"epoch": 2, "active": [True, False], "loss": [0.5, None]},
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  read = lambda member: facts_lib.read_records(str(tmp_path), member)
  assert [r["loss"] for r in read(0)] == [1.0, 0.5]
  assert [r["loss"] for r in read(1)] == [2.0]
  assert read(None) == lines


def test_a_large_split_is_sampled(facts, monkeypatch):
  monkeypatch.setattr(facts_lib, "MOST_ROWS", 100)
  sample = facts_lib._score_test_rows(facts.predictor, facts.directory)
  whole = facts.held_out
  assert len(sample.split) == 100
  assert sample.all_rows == whole.all_rows == len(whole.split) > 200
  assert (np.diff(sample.rows) > 0).all()
  np.testing.assert_array_equal(sample.split.labels, whole.split.labels[sample.rows])
  for of_sample, of_all in zip(sample.scores, whole.scores, strict=True):
    np.testing.assert_allclose(of_sample, of_all[sample.rows], rtol=1e-4, atol=1e-6)
