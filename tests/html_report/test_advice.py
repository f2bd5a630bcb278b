"""Advice: each rule applies to the runs that it is for, and to no others."""

import types

import numpy as np
import pytest

from mmoe_jax.data import Task
from mmoe_jax.evaluation.held_out_statistics import Interval
from mmoe_jax.html_report import advice
from mmoe_jax.html_report.facts import ColumnEffects

GOOD = Interval(0.9, 0.88, 0.92)


def make(**changes):
  """Returns the facts of a run that no rule has advice for, but for other seeds."""
  labels = np.tile([0.0, 1.0], 500)[:, None]
  gates = {"warnings": [], "experts": 2, "tasks": ["t"], "thresholds": {"in_use": 0.05}}
  gates["all"] = {"gates/t/entropy": 0.5, "gates/t/expert_0": 0.5, "gates/t/expert_1": 0.5}
  facts = {
    "tasks": [Task("t")],
    "results": {
      "best_epoch": 5,
      "epochs": 8,
      "train": {"t/auc": 0.905},
      "validation": {"t/auc": 0.9},
      "test": {"t/auc": 0.9},
    },
    "whole": {},
    "member": 1,
    "intervals": {"t": {"auc": GOOD, "pcoc": Interval(1.0, 0.97, 1.03)}},
    "gates": gates,
    "held_out": types.SimpleNamespace(split=types.SimpleNamespace(labels=labels)),
    "effects": effects([0.1, 0.05]),
  }
  facts = {**facts, **changes}
  best_epochs = [(facts["results"]["best_epoch"], facts["results"]["epochs"])]
  return types.SimpleNamespace(is_mean=False, best_epochs=best_epochs, gates_of_members=[], **facts)


def effects(permuted, unknown=(0.0, 0.0)):
  columns = lambda values: np.array(values)[:, None]
  return ColumnEffects(
    ["a", "b"], columns(permuted), columns([1e-3, 1e-3]), columns(unknown), np.zeros(2), 9, 2
  )


def results(**changes):
  return {**make().results, **changes}


def titles(facts):
  return [each.title for each in advice.advise(facts)]


def test_a_good_run_gets_no_advice():
  assert titles(make()) == []


def measured(**changes):
  gates = make().gates
  return {**gates, "all": {**gates["all"], **{f"gates/t/{k}": v for k, v in changes.items()}}}


@pytest.mark.parametrize(
  ("changes", "title"),
  [
    ({"member": None}, "Repeat with other seeds before you compare"),
    ({"whole": {"members": [{}, {"error": "bad"}]}}, "1 of 2 members diverged"),
    ({"results": results(best_epoch=8)}, "Train longer"),
    ({"results": results(best_epoch=2)}, "Lower the learning rate, or regularise"),
    ({"results": results(train={"t/auc": 0.96})}, "Overfitting"),
    ({"results": results(train={"t/auc": 0.901})}, "A larger model may help"),
    (
      {"results": results(validation={"t/auc": 0.95})},
      "Validation and test rows of t differ",
    ),
    (
      {"intervals": {"t": {"auc": Interval(0.9, 0.49, 0.98)}}},
      "The scores of t are not better than chance",
    ),
    (
      {"intervals": {"t": {"auc": GOOD, "pcoc": Interval(0.8, 0.7, 0.9)}}},
      "Probabilities of t are too low",
    ),
    ({"gates": {**make().gates, "warnings": ["the gate has collapsed"]}}, "A collapsed gate"),
    ({"gates": measured(entropy=0.69)}, "The gates hardly choose"),
    (
      {"gates": measured(expert_0=0.98, expert_1=0.02)},
      "Hardly used: 1 of 2 experts",
    ),
    ({"effects": effects([0.3, 0.01])}, "Does a give t away?"),
    ({"effects": effects([0.1, 1e-5])}, "Columns that hardly matter: 1"),
    ({"effects": effects([0.1, 0.05], [0.0, 0.04])}, "t needs known values"),
    (
      {"held_out": types.SimpleNamespace(split=types.SimpleNamespace(labels=np.eye(300)[:, :1]))},
      "Few test rows of one class of t",
    ),
  ],
)
def test_each_rule_gives_its_advice_alone(changes, title):
  (found,) = advice.advise(make(**changes))
  assert found.title == title
  assert found.reason.endswith((".", "?")) or title.endswith("diverged")
  assert found.rule.endswith(".")


def test_every_rule_is_in_use():
  rules = [name for name, value in vars(advice).items() if name.startswith("_") and callable(value)]
  used = {rule.__name__ for rule in advice.RULES}
  assert used == set(rules) - {"_gap"}


def test_differences_within_the_noise_are_no_overfitting():
  wide = {"t": {"auc": Interval(0.9, 0.8, 1.0)}}
  assert titles(make(results=results(train={"t/auc": 0.96}), intervals=wide)) == []


def test_without_test_rows_the_rules_on_results_remain():
  facts = make(intervals={}, gates=None, held_out=None, effects=None)
  assert titles(facts) == []
  facts.best_epochs[:] = [(8, 8)]
  assert titles(facts) == ["Train longer"]
