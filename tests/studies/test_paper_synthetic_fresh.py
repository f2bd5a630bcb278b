"""Study of fresh rows: a real population of drawn rows, and search and report on fake trainings."""

import os
import types

import numpy as np
import pytest

from configs import synthetic as recipe
from data_prep import synthetic
from mmoe_jax.errors import UserError
from mmoe_jax.training import population
from studies import fresh_rows, fresh_runs, fresh_tables
from studies import paper_synthetic_fresh as study
from tests import reference
from tests.studies.fake_trainings import strict_json


def test_members_on_drawn_rows_train_on_their_own(tmp_path):
  config = recipe.get_config()
  config.train.batch_size, config.train.epochs, config.train.devices = 64, 1, 1
  made = [
    fresh_rows.splits(task, 0.9, rows=1000, held_out=200, stream=stream)
    for task, stream in ((3, 0), (4, 0), (3, 1), (3, 0))
  ]
  arguments = {"schema": made[0][0], "splits": [splits for _, splits in made], "verbose": False}
  members = [{"seed": 5}] * 4
  train = population.train_population
  results = train(config, members, str(tmp_path / "w"), report_on=("test",), **arguments)
  first, other_task, other_rows, again = (r["test"]["task_1/mse"] for r in results)
  assert first == again
  assert len({first, other_task, other_rows}) == 3
  assert {r["train_rows"] for r in results} == {1000}
  with pytest.raises(UserError, match="remove 'train'"):
    train(config, members, str(tmp_path / "other"), report_on=("train",), **arguments)


SIZE = study.Size(rows=60, epochs=4, held_out=20)


class FakeTraining:
  """Replaces train_population: losses by model, rate and seed, and a count of trainings."""

  def __init__(self):
    self.calls = []

  def __call__(self, config, members, workdir, splits, schema, report_on, verbose):
    del schema, verbose
    assert "train" not in report_on
    assert len(splits) == len(members)
    self.calls.append((workdir, config, members, [s["train"].arguments for s in splits]))
    os.makedirs(workdir, exist_ok=True)
    results = []
    for member in members:
      rate = member.get(study.RATE, config.optimizer.dense.learning_rate)
      loss = {"shared_bottom": 0.3, "omoe": 0.2, "mmoe": 0.1}[config.model.name]
      loss += abs(np.log10(rate) + 3) + 0.01 * (config.optimizer.dense.schedule == "cosine")
      loss -= 0.001 * (config.train.batch_size == 1024)
      metrics = {"task_1/mse": loss, "task_2/mse": loss + 1e-4 * (member["seed"] % 7)}
      each = {name: dict(metrics) for name in report_on}
      results.append({"member": dict(member), "parameters": 7, "best_epoch": 4, **each})
    return results


@pytest.fixture
def fake(monkeypatch):
  training = FakeTraining()
  monkeypatch.setattr(study.resumable.population, "train_population", training)
  return training


def search(tmp_path, minutes=1.0):
  path = str(tmp_path / "s.json")
  study.run_search(("omoe", "mmoe"), (0.5, 1.0), 2, str(tmp_path), SIZE, minutes, path=path)
  return strict_json(path)


def test_the_search_selects_rate_then_batch_and_schedule_for_each_model_and_p(fake, tmp_path):
  chosen = search(tmp_path)
  assert set(chosen) == {"omoe_p0.5", "omoe_p1", "mmoe_p0.5", "mmoe_p1"}
  wanted = {study.RATE: 1e-3, study.BATCH: 1024, study.SCHEDULE: "constant"}
  assert chosen["mmoe_p1"]["settings"] == wanted
  assert len(chosen["mmoe_p1"]["validation_loss"]) == 6
  assert all(m["seed"] >= study.SEARCH_SEED for call in fake.calls for m in call[2])
  trainings = len(fake.calls)
  assert trainings == 4 * 4
  assert search(tmp_path) == chosen
  assert len(fake.calls) == trainings


def test_a_part_stops_when_time_is_up_and_resumes(fake, tmp_path, capsys):
  with pytest.raises(SystemExit):
    search(tmp_path, minutes=0.0)
  assert "start the same command again" in capsys.readouterr().out
  assert not fake.calls
  assert len(search(tmp_path)) == 4


def test_runs_of_the_study_are_paired_and_causes_repeat_them(fake, tmp_path):
  chosen = search(tmp_path)
  populations = list(study.study_populations(("omoe", "mmoe"), (0.5, 1.0), 7, 5, chosen))
  assert len(populations) == 8
  assert [len(p.runs) for p in populations[::4]] == [5, 2]
  assert len({p.folder for p in populations}) == 8
  assert all(p.runs == populations[0].runs for p in populations[:4])
  causes = {}
  for p in study.cause_populations(study.CAUSES, ("mmoe",), (0.5,), chosen):
    causes.setdefault(p.folder.split("/")[1], []).append(p)
  assert causes["rate"][0].runs == causes["longer"][0].runs == populations[0].runs
  assert causes["rate"][0].settings[study.RATE] == 1e-2
  assert [p.epochs for p in causes["longer"]] == [4, 4]
  assert [r.seed for r in causes["longer"][1].runs] == [5, 6, 7, 8, 9]
  for p in causes["task"]:
    assert len({r.task for r in p.runs}) == 1
    assert len({r.seed for r in p.runs}) == study.REPEATS
  for p in causes["rows"]:
    assert len({(r.seed, r.task) for r in p.runs}) == 1
    assert len({r.stream for r in p.runs}) == study.REPEATS
  assert len({tuple(p.runs) for p in causes["task"]}) == study.GROUPS
  study.Trainer(str(tmp_path), SIZE, 1, 1.0).train(causes["longer"][0])
  _, config, members, tasks = fake.calls[-1]
  assert config.train.epochs == 16
  assert [m["seed"] for m in members] == [0, 1, 2, 3, 4]
  weights = {arguments["weights"].tobytes() for arguments in tasks}
  assert len(weights) == 5


def test_a_study_needs_the_search():
  with pytest.raises(UserError, match=r"mmoe_p0\.5 has no searched settings; run --part search"):
    study.settings_of({}, "mmoe", 0.5)


def test_units_are_dead_or_in_the_plane_of_the_weights():
  rng = reference.fresh_rng()
  weights = synthetic.weight_vectors(rng, 0.5, 9)
  x = rng.normal(size=(4000, 9))
  plane = weights.T @ rng.normal(size=(2, 3))
  kernel = np.concatenate([plane, plane[:, :1], np.linalg.svd(weights)[2][2:5].T], 1)
  bias = np.array([0.1, 0.0, -0.1, -100.0, 0.0, 0.0, 0.0])
  expected = {"units": 7, "dead_units": 1, "aligned_units": 3}
  assert fresh_runs.units(kernel, bias, x, weights) == expected
  # With equal weights there is only one direction.
  same = np.stack([weights[0], weights[0]])
  assert fresh_runs.units(kernel, bias, x, same)["aligned_units"] < 3
  assert fresh_runs.units(weights[:1].T, bias[:1], x, same)["aligned_units"] == 1


def run(**changes):
  base = {"group": "g", "model": "mmoe", "correlation": 0.5, "seed": 0, "rows": 100}
  base |= {"learning_rate": 1e-3, "batch_size": 256, "schedule": "constant", "test/mse": 0.1}
  base |= {"validation/mse": 0.1, "aligned_units": 5, "dead_units": 1, "entropy": 1.0}
  base |= {"validation/mse_at_three_quarters": 0.2, "validation/mse_at_end": 0.1}
  return base | {"gate_overlap": 0.5} | changes


def record(runs):
  return types.SimpleNamespace(runs=runs)


def test_tables_of_the_study():
  loss = {"shared_bottom": (0.3, 0.2), "omoe": (0.2, 0.1), "mmoe": (0.05, 0.01)}
  runs = [
    run(model=m, seed=s, aligned_units=12 - s, **{"test/mse": a + b * s / 11})
    for m, (a, b) in loss.items()
    for s in range(12)
  ]
  lines = fresh_tables.spread(record(runs)).splitlines()
  assert [line.split(" | ")[0] for line in lines[2:]] == [
    "| 0.5, shared_bottom",
    "| 0.5, omoe",
    "| 0.5, mmoe",
  ]
  assert "| 0.0550 | 0.05" in lines[-1]
  assert "| 0.0033 (" in lines[-1]
  assert "| 0 (0 to 26 %) | 0.080 |" in lines[-1]
  assert "| 12 (74 to 100 %) | 0.255 |" in lines[2]
  difference = fresh_tables.pairs(record(runs)).splitlines()[-1]
  assert "mmoe \N{MINUS SIGN} omoe | \N{MINUS SIGN}0.1950 |" in difference
  assert "| 100 % (74 to 100) | 0.10 (0.10 to 0.10) |" in difference
  network = fresh_tables.networks(record(runs)).splitlines()[-1]
  assert "| 50 ± 0 | 6.5 | 1.0 | 1.00 | 0.50 | \N{MINUS SIGN}1.00 (" in network
  high = [run(group="rate/x", seed=s, learning_rate=1e-2, dead_units=40) for s in (1, 0)]
  rates = fresh_tables.rates(record(runs), record(high)).splitlines()
  assert "| searched: 0.001 | 2 | 0.0505 ± " in rates[2]
  assert "| highest: 0.01 | 2 | 0.1000 ± 0.0000 | 0.1000 | 0.1000 | 5.0 | 40.0 |" in rates[3]
  more = [run(group="longer/x", seed=s, rows=400, **{"test/mse": 0.04}) for s in (0, 1)]
  longer = fresh_tables.longer(record(runs), record(more)).splitlines()
  assert "| 400 | 0.0400 | 0.0000 | 0.0400 | \N{MINUS SIGN}0.0105 ± " in longer[3]
  groups = [
    run(group=f"task/{g}", seed=10 * g + s, **{"test/mse": 0.1 * g + 0.001 * s})
    for g in range(3)
    for s in range(4)
  ]
  line = fresh_tables.sources(record(groups)).splitlines()[2]
  assert "| task (3) | initialisation and rows (4) | 0.1000 | 0.0013 | 100 % (" in line


def test_the_table_of_the_search_marks_the_best_setting():
  runs = [run(learning_rate=r, **{"validation/mse": v}) for r, v in ((1e-3, 0.2), (1e-2, 0.1))]
  runs += [run(learning_rate=1e-3, **{"validation/mse": 0.3}), run(model="omoe")]
  text = fresh_tables.search(record(runs))
  assert "| 0.001, 256, constant | **0.100** | 0.250 |" in text
  assert "| 0.01, 256, constant | \N{EN DASH} | **0.100** |" in text
