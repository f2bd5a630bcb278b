"""Gate report: groups of rows, numbers, files."""

import json
import os
import shutil
import types

import flax.linen as nn
import numpy as np
import pytest

from configs import smoke
from mmoe_jax import data, gate_report
from mmoe_jax.config import override
from mmoe_jax.errors import UserError
from mmoe_jax.evaluation import evaluate
from mmoe_jax.evaluation.gate_plots import plot_gates
from mmoe_jax.evaluation.gate_tables import format_gates
from mmoe_jax.prediction import gate_measurements
from mmoe_jax.prediction.gate_measurements import measure_gates
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.prediction.splits import load_split
from mmoe_jax.training import loop, population
from tests.commands import run
from tests.frames import read_frame

TASKS = ("income_50k", "marital_stat")
PNG = b"\x89PNG"


def trained(prepared, path, epochs, numeric="both"):
  config = smoke.get_config()
  config.data_dir = prepared
  config.train.devices = 1
  config.train.epochs = epochs
  config.data.numeric = numeric
  config.data.exclude = ("sex",)  # Groups need not be features.
  loop.train_and_evaluate(config, path)
  return path


@pytest.fixture(scope="module")
def workdir(prepared, tmp_path_factory):
  return trained(prepared, str(tmp_path_factory.mktemp("gates") / "w"), epochs=1)


@pytest.fixture(scope="module")
def found(workdir):
  return measure_gates(workdir, split="test", by=["sex", "age", "num_emp"])


@pytest.fixture(scope="module")
def raw_and_gates(workdir, prepared, raw):
  """Returns the raw test rows, and their gates from `make_gates`."""
  rows = np.load(os.path.join(prepared, "test", "rows.npy"))
  frame = read_frame(raw[1], data.restore_schema(os.path.join(prepared, "schema.json")).columns)
  frame = frame.iloc[rows]
  predictor = Predictor(workdir)
  features = data.to_features(predictor.schema, data.encode(predictor.schema, frame))
  return frame, np.asarray(evaluate.make_gates(predictor.model)(predictor.variables, features))


def test_groups_hold_the_rows_and_gates_of_the_raw_file(found, raw_and_gates):
  frame, gates_TxNxE = raw_and_gates
  age = frame["age"].astype(int).to_numpy()
  groups = {("sex", value): (frame["sex"] == value).to_numpy() for value in ("Female", "Male")}
  groups |= {("age", "0-15"): age < 16, ("age", "16-24"): (age >= 16) & (age < 25)}
  groups |= {("num_emp", "3"): (frame["num_emp"] == "3").to_numpy()}
  for (column, value), mask in groups.items():
    (group,) = (g for g in found["by"][column] if g["value"] == value)
    assert group["rows"] == mask.sum()
    own = gates_TxNxE[:, mask].astype(np.float64)
    for t, task in enumerate(TASKS):
      for e, weight in enumerate(own[t].mean(0)):
        assert group[f"gates/{task}/expert_{e}"] == pytest.approx(weight, abs=1e-5)
      entropy = -(own[t] * np.log(own[t])).sum(-1).mean()
      assert group[f"gates/{task}/entropy"] == pytest.approx(entropy, abs=1e-5)
    alike = 1 - np.abs(own[0] - own[1]).sum(-1).mean() / 2
    assert group["gates/similarity/income_50k~marital_stat"] == pytest.approx(alike, abs=1e-5)


def test_groups_of_a_column_are_all_rows_once(found):
  for groups in found["by"].values():
    assert sum(group["rows"] for group in groups) == found["rows"]
    for name, value in found["all"].items():
      if "/expert_" in name or name.endswith("/entropy") or "similarity" in name:
        mean = sum(g["rows"] * g[name] for g in groups) / found["rows"]
        assert mean == pytest.approx(value, abs=1e-5)


def test_the_report_states_what_it_measured(found, workdir, prepared):
  said = {key: found[key] for key in ("workdir", "data", "split", "model", "tasks", "experts")}
  assert said == {
    "workdir": workdir,
    "data": prepared,
    "split": "test",
    "model": "mmoe",
    "tasks": list(TASKS),
    "experts": 4,
  }
  assert [g["value"] for g in found["by"]["age"]][:3] == ["0-15", "16-24", "25-34"]
  assert len(found["by"]["age"]) == 7


def test_columns_are_those_of_the_census_unless_named(workdir):
  by = measure_gates(workdir)["by"]
  assert list(by) == ["age", "sex", "education"]
  counts = [group["rows"] for group in by["education"]]
  assert counts == sorted(counts, reverse=True)
  assert measure_gates(workdir, by=[])["by"] == {}


def test_gates_by_epoch_come_from_the_log(workdir, found, tmp_path):
  copy = str(tmp_path / "w")
  shutil.copytree(workdir, copy)
  gates = found["all"]
  records = [
    {"epoch": 1, "loss": 1.0},
    {"epoch": 2, "loss": 0.7} | dict.fromkeys(gates),
    *({"epoch": n, "loss": 0.5} | gates for n in range(3, 90)),
  ]
  with open(os.path.join(copy, "metrics.jsonl"), "w", encoding="utf-8") as file:
    file.writelines(json.dumps(record) + "\n" for record in records)
  logged = measure_gates(copy, by=[])
  assert [r["epoch"] for r in logged["by_epoch"]] == list(range(3, 90))
  assert logged["by_epoch"][0] == {"epoch": 3} | gates
  # More epochs than a plot has rows; the last one is included.
  axis = plot_gates(logged)["by_epoch"].axes[0]
  labels = [label.get_text() for label in axis.get_yticklabels()]
  assert len(labels) <= 25
  assert labels[-1] == "89"
  assert "| 89 |" in format_gates(logged)


@pytest.mark.parametrize(
  ("numbers", "edges", "expected"),
  [
    ([3, 0, 1, 1], None, {"0": [1], "1": [2, 3], "3": [0]}),
    ([15, 16, 70, 24, 0], (16, 25, 65), {"0-15": [0, 4], "16-24": [1, 3], "70": [2]}),
    ([0.25, -1.5], None, {"-1.5": [1], "0.25": [0]}),
  ],
)
def test_ranges_of_numbers_by_hand(numbers, edges, expected):
  groups = gate_measurements.number_groups(np.array(numbers), edges)
  assert {name: np.flatnonzero(mask).tolist() for name, mask in groups} == expected
  assert [name for name, _ in groups] == list(expected)


def test_many_numbers_make_ranges_of_as_many_rows():
  rng = np.random.default_rng(0)
  groups = gate_measurements.number_groups(rng.normal(size=10_000))
  assert [int(mask.sum()) for _, mask in groups] == [2000] * 5
  assert " to " in groups[0][0]
  # Mostly zero, like capital gains: zero is a separate range.
  gains = np.where(rng.random(10_000) < 0.9, 0, rng.integers(1, 100_000, 10_000))
  groups = gate_measurements.number_groups(gains)
  assert groups[0][0] == "0"
  np.testing.assert_array_equal(groups[0][1], gains == 0)
  others = [int(mask.sum()) for _, mask in groups[1:]]
  assert len(others) == 4
  assert max(others) - min(others) <= 2


def test_values_that_training_does_not_know_are_a_group():
  groups = gate_measurements.category_groups(np.array([2, 0, 2, 1]), ("(unknown)", "a", "b"))
  assert [(name, mask.tolist()) for name, mask in groups] == [
    ("b", [True, False, True, False]),
    ("(unknown)", [False, True, False, False]),
    ("a", [False, False, False, True]),
  ]


def test_plots_show_the_numbers(found):
  drawn = plot_gates(found)
  assert list(drawn) == ["experts", "similarity", "by_epoch", "by_sex", "by_age", "by_num_emp"]
  heat = np.asarray(drawn["by_age"].axes[1].images[0].get_array())
  wanted = [
    [group[f"gates/marital_stat/expert_{e}"] for e in range(4)] for group in found["by"]["age"]
  ]
  np.testing.assert_allclose(heat, wanted)
  labels = [label.get_text() for label in drawn["by_age"].axes[0].get_yticklabels()]
  assert labels[0] == f"0-15  ({found['by']['age'][0]['rows']:,})"


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("experts", [1, 40])
def test_any_number_of_tasks_and_experts_can_be_drawn(tasks, experts, tmp_path):
  names = [f"task{t}" for t in range(tasks)]
  measures = {f"gates/{t}/expert_{e}": 1 / experts for t in names for e in range(experts)}
  for name in ("entropy", "mean_entropy", "effective_experts", "used_experts"):
    measures |= {f"gates/{t}/{name}": 1.0 for t in names}
  measures |= {f"gates/similarity/{a}~{b}": 0.5 for a in names for b in names if a < b}
  report = {
    **{"workdir": "w", "split": "test", "rows": 9, "model": "mmoe", "tasks": names},
    **{"experts": experts, "thresholds": {"in_use": 0.1}, "warnings": ["x|y"], "all": measures},
    "by": {"c": [{"value": "a|b" * 30, "rows": 9} | measures]},
    "by_epoch": [{"epoch": 1} | measures],
  }
  text = format_gates(report)
  assert "**Warning:** x|y." in text
  assert r"a\|b" in text
  drawn = plot_gates(report)
  assert ("similarity" in drawn) == (tasks > 1)
  for name, figure in drawn.items():
    figure.savefig(tmp_path / f"{name}.png")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"split": "tset"}, "--split is 'tset', which does not exist; did you mean 'test'"),
    ({"by": ["agee"]}, "a column in --by is 'agee', which does not exist; did you mean 'age'"),
    ({"data_dir": "/nowhere"}, "/nowhere: contains no prepared data; pass its folder as --data"),
    ({"workdir": "/nowhere"}, r"/nowhere: contains no config\.json"),
  ],
)
def test_wrong_arguments_are_named(workdir, arguments, message):
  with pytest.raises(UserError, match=message):
    measure_gates(**{"workdir": workdir, **arguments})


def test_other_data_than_the_runs_is_refused(workdir, prepared, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(prepared, other)
  schema = json.loads((other / "schema.json").read_text())
  schema["numeric"][0]["mean"] += 0.5
  (other / "schema.json").write_text(json.dumps(schema))
  data.write_manifest(str(other))
  with pytest.raises(UserError, match="prepared differently from the data of the run"):
    measure_gates(workdir, data_dir=str(other))


def test_a_run_without_gates_is_refused(workdir, monkeypatch):
  monkeypatch.setattr(nn.Module, "sow", lambda *_, **__: False)
  with pytest.raises(UserError, match="the model 'mmoe' has no gates to report on"):
    measure_gates(workdir)


@pytest.mark.slow
def test_a_member_of_a_population_is_reported_as_its_own_run(prepared, tmp_path):
  config = smoke.get_config()
  config.data_dir = prepared
  config.train.devices = 1
  config.train.epochs = 3
  config.select.patience = 1
  both = str(tmp_path / "both")
  # The second member does not improve after its first epoch and stops before the other.
  rates = "optimizer.dense.learning_rate", "optimizer.embedding.learning_rate"
  members = [{"seed": s, **dict.fromkeys(rates, r)} for s, r in ((4, 3e-3), (5, 1e-12))]
  population.train_population(config, members, both)
  with pytest.raises(UserError, match="a population of 2 members; choose one by --member=0 to 1"):
    measure_gates(both)
  found = [measure_gates(both, member=m) for m in range(2)]
  assert found[0]["all"] != found[1]["all"]
  config = override(config, members[1])
  loop.train_and_evaluate(config, str(tmp_path / "alone"))
  alone = measure_gates(str(tmp_path / "alone"))
  for name, value in alone["all"].items():
    assert found[1]["all"][name] == pytest.approx(value, abs=1e-3)
  for ours, theirs in zip(found[1]["by_epoch"], alone["by_epoch"], strict=True):
    assert ours == pytest.approx(theirs, abs=1e-3)
  assert format_gates(found[1]).startswith(f"# Gates of {both}, member 1\n")


def test_the_command_leaves_the_files_and_warns(prepared, tmp_path, monkeypatch, capsys):
  # Embeddings start near zero: without numbers the gates start uniform and equal.
  workdir = trained(prepared, str(tmp_path / "w"), epochs=0, numeric="none")
  out = tmp_path / "made" / "report"
  flags = {"WORKDIR": workdir, "OUT": str(out), "BY": ["sex", "capital_gains"]}
  flags |= {"MEMBER": None, "DATA": "", "SPLIT": "validation"}
  for name, value in flags.items():
    monkeypatch.setattr(gate_report, f"_{name}", types.SimpleNamespace(value=value), raising=False)
  capsys.readouterr()
  gate_report.main([])
  done = capsys.readouterr()
  report = json.loads((out / "gates.json").read_text())
  (warning,) = report["warnings"]
  assert warning.startswith("the gates of all 2 tasks are the same")
  assert done.err == f"warning: {warning}\n"
  text = (out / "gates.md").read_text()
  assert f"**Warning:** {warning}." in text
  plots = ["experts", "similarity", "by_sex", "by_capital_gains"]
  assert {*os.listdir(out)} == {"gates.json", "gates.md", *(f"gates_{p}.png" for p in plots)}
  for plot in plots:
    assert (out / f"gates_{plot}.png").read_bytes().startswith(PNG)
    assert f"(gates_{plot}.png)" in text
  assert "of 4 effective experts" in done.out


def test_wrong_use_of_the_command_ends_in_one_line(workdir, tmp_path):
  done = run(
    "mmoe_jax.gate_report", "--workdir", workdir, "--out", tmp_path / "out", "--by", "sexx"
  )
  assert done.returncode == 2
  (line,) = (line for line in done.stderr.splitlines() if line.strip())
  assert line.startswith("error: a column in --by is 'sexx'")
  assert not (tmp_path / "out").exists()


def test_gates_of_a_sample_are_those_of_its_rows(workdir, prepared, raw_and_gates):
  _, gates_TxNxE = raw_and_gates
  predictor = Predictor(workdir)
  split = load_split(prepared, "test", predictor)
  rows = np.arange(3, len(split), 4)
  features = {name: array[rows] for name, array in split.features.items()}
  sample = gate_measurements.measure_gates_of_rows(predictor, prepared, "test", features, rows)
  for t, task in enumerate(TASKS):
    weight = sample["all"][f"gates/{task}/expert_0"]
    assert weight == pytest.approx(gates_TxNxE[t, rows, 0].mean(), abs=1e-5)
  for groups in sample["by"].values():
    assert sum(group["rows"] for group in groups) == sample["rows"] == len(rows)
