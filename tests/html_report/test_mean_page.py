"""The page about the mean of a population's members."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mmoe_jax.errors import UserError
from mmoe_jax.evaluation import evaluate
from mmoe_jax.evaluation.gate_statistics import PREFIX
from mmoe_jax.export import golden
from mmoe_jax.html_report import facts as facts_lib
from mmoe_jax.html_report import page as page_lib
from mmoe_jax.html_report.page import run_page
from mmoe_jax.prediction.predictor import MEAN, Predictor
from mmoe_jax.workdir import contract
from tests.html_report import node
from tests.html_report.conftest import write
from tests.html_report.reading import Page
from tests.html_report.test_page import check_is_self_contained

pytestmark = pytest.mark.slow

_CODE = """
const whatIf = startWhatIf(input.data, null);
console.log(JSON.stringify(input.rows.map((row) => whatIf.score(row))));
"""


@pytest.fixture(scope="module")
def read(mean_page):
  return Page(mean_page)


def section(page, key):
  ((_, text),) = [found for found in page.all("section") if found[0]["id"] == key]
  return text


def test_the_page_has_all_parts_and_says_what_it_describes(read):
  check_is_self_contained(read)
  found = [attributes["id"] for attributes, _ in read.all("section")]
  parts = ["next", "results", "members", "curves", "scores", "columns", "gates"]
  assert found == [*parts, "what-if", "settings"]
  assert "The mean of the scores of 2 members of a population of the model mmoe" in read.source
  assert "This page describes the mean of their scores" in section(read, "members")
  assert "mean of scores, shown here" in section(read, "members")
  assert "see Members" in section(read, "settings")


def test_results_are_those_of_the_mean(read, mean_facts, members_with_gates):
  expected = contract.read_results(members_with_gates)["mean"]["test"]
  text = section(read, "results")
  for name, metric in (("click", "auc"), ("rating", "r2"), ("country", "log_loss")):
    value = expected[f"{name}/{metric}"]
    assert f"{value:,.4f}".replace("-", "\u2212") in text
    interval = mean_facts.intervals[name][metric]
    np.testing.assert_allclose(interval.value, value, atol=1e-4)
    assert interval.low < value < interval.high


def test_effects_are_those_of_the_mean(mean_facts):
  predictor, split = mean_facts.predictor, mean_facts.held_out.split
  feature = predictor.schema.id_feature("device")
  ids = split.features["ids"].copy()
  ids[:, predictor.schema.id_columns["device"]] = feature.size - 1 if feature.has_missing else 0
  is_positive = split.labels[:, 0] == 1
  aucs = []
  for features in (split.features, {**split.features, "ids": ids}):
    scores = predictor.score(features)["click"]
    aucs.append((scores[is_positive][:, None] > scores[~is_positive][None]).mean())
  effects = mean_facts.effects
  found = effects.unknown[effects.names.index("device"), 0]
  np.testing.assert_allclose(found, aucs[0] - aucs[1], atol=1e-4)


def test_gates_are_those_of_each_member(read, mean_facts, members_with_gates):
  for m, found in enumerate(mean_facts.gates_of_members):
    predictor = Predictor(members_with_gates, m)
    gates = jax.jit(evaluate.make_gates(predictor.model))
    means = gates(predictor.variables, mean_facts.held_out.split.features).mean(1)
    for t, task in enumerate(predictor.schema.tasks):
      measured = [found["all"][f"{PREFIX}{task.name}/expert_{e}"] for e in range(8)]
      np.testing.assert_allclose(measured, means[t], atol=1e-5)
  text = section(read, "gates")
  assert "A mean of scores has no gates" in text
  assert "member 1" in text


@node.needs_node
def test_scores_of_the_what_if_are_means_of_the_members(read, members_with_gates):
  predictor = Predictor(members_with_gates, MEAN)
  rows = golden.make_rows(predictor.schema, 30)
  found = node.run(_CODE, {"data": read.json("what-if-data"), "rows": rows})
  each = [Predictor(members_with_gates, m).scores(rows) for m in (0, 1)]
  scores = predictor.scores(rows)
  for name in each[0]:
    values = np.stack([of_member[name] for of_member in each])
    get = lambda key, name=name: np.array([row[key][name] for row in found])
    np.testing.assert_allclose(get("scores"), scores[name], atol=1e-5)
    ranges = np.stack([values.min(0), values.max(0)], 1)
    np.testing.assert_allclose(get("ranges"), ranges, atol=1e-5)


def test_members_that_do_not_fit_are_declined_in_a_sentence(mean_facts, tmp_path, monkeypatch):
  monkeypatch.setattr(page_lib, "MOST_BYTES", 150_000)
  page = Page(write(tmp_path / "page.html", run_page(mean_facts)))
  assert page.json("what-if-data") is None
  text = section(page, "what-if")
  assert "does not carry the model mmoe: the 2 members' weights and vocabularies" in text
  assert "--member=N" in text


def test_a_population_without_a_mean_is_one_line(members_with_gates):
  results = {**contract.read_results(members_with_gates), "mean": {}}
  with pytest.raises(UserError, match=r"w: .* no metrics of the mean of members.*--member=N"):
    facts_lib._mean_results("w", results)


def test_records_of_a_mean_are_of_epochs_that_all_members_trained(tmp_path):
  lines = [
    {"epoch": 1, "active": [True, True, True], "loss": [1.0, 2.0, 9.0], "auc": [0.5, None, 0.5]},
    {"epoch": 2, "active": [True, False, True], "loss": [0.5, None, 9.0], "auc": [0.6, 0.7, 0.5]},
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  assert facts_lib.read_records(str(tmp_path), [0, 1]) == [{"epoch": 1, "loss": 1.5}]


@pytest.mark.parametrize(("gain", "is_advised"), [(0.0001, True), (0.01, False)])
def test_a_mean_that_gains_little_is_advised_against(mean_facts, gain, is_advised):
  names = ("click/auc", "rating/r2", "country/log_loss")  # Of a log loss, less is better.
  members = [{**m, "test": dict.fromkeys(names, 0.8)} for m in mean_facts.whole["members"]]
  test = {"click/auc": 0.8 + gain, "rating/r2": 0.8, "country/log_loss": 0.9}
  changed = dataclasses.replace(
    mean_facts,
    results={**mean_facts.results, "test": test},
    whole={**mean_facts.whole, "members": members},
  )
  titles = [each.title for each in page_lib.advice_rules.advise(changed)]
  assert ("A single member may do" in titles) == is_advised
