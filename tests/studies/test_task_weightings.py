"""Study of task weightings: equal searches, differences, and times per epoch."""

import numpy as np
import pytest

from benchmarks import records
from mmoe_jax import data
from mmoe_jax.config import override
from mmoe_jax.training import checks
from studies import task_weightings, task_weightings_tables
from tests.studies.fake_trainings import TASKS


def test_each_weighting_has_the_same_trials_and_learning_rates():
  for method, spec in task_weightings.METHODS.items():
    trials = task_weightings.trials_of(method, 8)
    rates = [trial[task_weightings.RATE[0]] for trial in trials]
    assert rates == pytest.approx(np.geomspace(2e-3, 2e-2, 8))
    assert rates == [trial[task_weightings.RATE[1]] for trial in trials]
    if spec.key == "ratio":
      own = [a / b for a, b in (t["loss.task_weights"] for t in trials)]
      assert [sum(t["loss.task_weights"]) for t in trials] == pytest.approx([2] * 8)
    else:
      own = [trial.get(spec.key) for trial in trials]
    if not spec.key:
      assert own == [None] * 8
      continue
    assert sorted(own) == pytest.approx(np.geomspace(spec.low, spec.high, 8))
    # Neighbouring rates have levels that are at least two steps apart.
    steps = np.diff(np.argsort(np.argsort(own)))
    assert np.abs(steps).min() >= 2


@pytest.mark.parametrize("method", task_weightings.METHODS)
def test_trials_are_settings_that_training_accepts(prepared, method):
  config = task_weightings.create_config("group1", method, prepared)
  schema, _ = data.load(prepared, **config.data)
  for settings in task_weightings.trials_of(method, 3):
    checks.check_config(override(config, settings), schema)


def test_a_study_compares_with_equal_weights_and_resumes(prepared, fake_training, tmp_path):
  run = lambda: task_weightings.run_group(
    "group1", ("static_equal", "pcgrad"), 3, 2, str(tmp_path), prepared
  )
  runs, rows = run()
  assert len(fake_training.calls) == 4  # A search and the seeds of each.
  assert {m["seed"] for m in fake_training.calls[0][1]} == {task_weightings.SEARCH_SEED}
  assert [m["seed"] for m in fake_training.calls[1][1]] == [0, 1, 2]
  assert [(r["method"], r["seed"]) for r in runs[:4]] == [
    *(("static_equal", s) for s in range(3)),
    ("pcgrad", 0),
  ]
  assert run() == (runs, rows)
  assert len(fake_training.calls) == 4
  compared = task_weightings_tables.compare({"group1": (runs, rows)})
  assert [(r["task"], r["method"]) for r in compared] == [
    (t, m) for t in TASKS for m in ("static_equal", "pcgrad")
  ]
  figure = f"test/{TASKS[0]}/auc"
  assert compared[0]["auc"].value == pytest.approx(np.mean([r[figure] for r in runs[:3]]))
  # The fake scores of both are the same.
  assert compared[1]["difference"].value == pytest.approx(0)
  assert compared[1]["p"] == 1
  text = task_weightings_tables.format_comparison({"group1": (runs, rows)})
  assert "| pcgrad |" in text
  path = records.write(
    str(tmp_path), "task_weightings/group1", runs, rows=rows, settings={"group": "group1"}
  )
  found = records.read(str(tmp_path), "task_weightings/group1")
  assert path.endswith("group1.json")
  assert task_weightings_tables.format_records(found) == text
  again = task_weightings_tables.compare({"group1": (found.runs, found.rows)})
  assert again[0]["auc"] == pytest.approx(compared[0]["auc"])


def test_times_are_relative_to_the_same_round():
  runs = [
    {"group": "g", "method": method, "round": r, "seconds": seconds, "cpu_seconds": 1.0}
    for r, pair in enumerate(((1.0, 3.0), (2.0, 4.0), (4.0, 6.0)), 1)
    for method, seconds in zip(("static_equal", "gradnorm"), pair, strict=True)
  ]
  text = task_weightings_tables.format_times(runs)
  line = next(x for x in text.splitlines() if "gradnorm" in x)
  cells = [cell.strip() for cell in line.split("|")[3:6]]
  assert cells == ["4.00", "2.00 (1.50 to 3.00)", "1.00 (1.00 to 1.00)"]


@pytest.mark.slow
def test_each_round_measures_each_weighting(prepared):
  runs = task_weightings.measure_time("group1", ("static_equal", "gradnorm"), 2, prepared)
  assert [(r["method"], r["round"]) for r in runs] == [
    (m, r) for r in (1, 2) for m in ("static_equal", "gradnorm")
  ]
  assert all(r["seconds"] > 0 for r in runs)
