"""The package as a library: a few names, and a model from outside it."""

import json
import os
import subprocess
import sys

import flax.linen as nn
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

import mmoe_jax
from examples import own_model
from mmoe_jax.errors import UserError
from mmoe_jax.export import model as exported
from mmoe_jax.models import SharedBottom, SingleTask, check_model, find_model
from mmoe_jax.serve.scorer import Scorer
from tests import ROOT
from tests.census_rows import COLUMNS
from tests.frames import read_frame

OWN = "examples.own_model:GatedUnits"


@pytest.fixture(scope="module")
def own_config(_config):
  """Returns the settings of the example, on the synthetic rows, for one epoch."""
  config = own_model.get_config()
  config.data_dir, config.train.devices, config.train.epochs = _config.data_dir, 1, 1
  config.model.bottom_hidden, config.train.batch_size = (8,), 128
  return config


@pytest.fixture(scope="module")
def own_run(own_config, tmp_path_factory):
  """Returns the work directory of a run of the example, and its results."""
  workdir = str(tmp_path_factory.mktemp("own") / "run")
  return workdir, mmoe_jax.train(own_config, workdir)


def test_names_are_imported_when_they_are_used():
  code = "import sys, mmoe_jax; print(mmoe_jax.load_data.__name__, 'jax' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert (done.stdout, done.stderr) == ("load False\n", "")
  assert set(mmoe_jax.__all__) <= set(dir(mmoe_jax))
  assert [name for name in mmoe_jax.__all__ if not callable(getattr(mmoe_jax, name))] == []
  with pytest.raises(AttributeError, match="no attribute 'trian'"):
    mmoe_jax.trian  # noqa: B018


def test_type_checkers_and_python_see_the_same_names():
  with open(mmoe_jax.__file__, encoding="utf-8") as file:
    block = file.read().split("if TYPE_CHECKING:")[1].split("__all__")[0]
  for line in filter(None, map(str.strip, block.splitlines())):
    module, names = line.removeprefix("from ").split(" import ")
    for name in names.split(", "):
      original, _, alias = name.partition(" as ")
      place = module.removeprefix("mmoe_jax."), original
      assert mmoe_jax._PLACES[alias or original] == place
  assert sorted(mmoe_jax._PLACES) == sorted(mmoe_jax.__all__)


def test_metrics_of_raw_rows_are_those_of_results_and_of_scikit_learn(own_run, own_config, raw):
  workdir, results = own_run
  predictor = mmoe_jax.Predictor(workdir)
  frame = read_frame(raw[1], COLUMNS)
  schema, splits = mmoe_jax.load_data(own_config.data_dir, **own_config.data)
  rows = np.load(os.path.join(own_config.data_dir, "test", "rows.npy"))
  metrics = mmoe_jax.evaluate(predictor, frame.iloc[rows])
  notes = metrics.pop("notes")
  assert metrics == pytest.approx(results["test"], abs=1e-6, nan_ok=True)
  assert {f"test/{name}" for name in notes} == {n for n in results["notes"] if n.startswith("test")}
  scores = predictor(frame.iloc[rows])
  for t, task in enumerate(schema.tasks):
    auc = roc_auc_score(splits["test"].labels[:, t], scores[task.name])
    assert metrics[f"{task.name}/auc"] == pytest.approx(auc, abs=1e-6)


def test_a_predictor_scores_frames_dicts_and_arrow_tables_alike(own_run, raw):
  predictor = mmoe_jax.Predictor(own_run[0])
  frame = read_frame(raw[1], COLUMNS).head(5)
  scores = predictor(frame)
  for rows in (frame.to_dict("records"), pa.Table.from_pandas(frame)):
    pd.testing.assert_frame_equal(predictor(rows), scores)
  pd.testing.assert_frame_equal(predictor(frame.iloc[0].to_dict()), scores.head(1))


def test_evaluate_refuses_a_table_without_rows_or_labels(own_run, raw):
  predictor = mmoe_jax.Predictor(own_run[0])
  frame = read_frame(raw[1], COLUMNS)
  with pytest.raises(UserError, match="the table: contains no rows"):
    mmoe_jax.evaluate(predictor, frame.head(0))
  column = predictor.schema.tasks[0].columns[0]
  with pytest.raises(UserError, match=column):
    mmoe_jax.evaluate(predictor, frame.drop(columns=column))


def test_a_population_of_an_own_model_has_a_mean(own_config, tmp_path, raw):
  members = [{"seed": s, "model.gate_scale": g} for s, g in ((0, 2.0), (1, 1.0))]
  workdir = str(tmp_path / "population")
  mmoe_jax.train_population(own_config, members, workdir)
  rows = np.load(os.path.join(own_config.data_dir, "test", "rows.npy"))
  frame = read_frame(raw[1], COLUMNS).iloc[rows]
  metrics = mmoe_jax.evaluate(mmoe_jax.Predictor(workdir, "mean"), frame)
  with open(os.path.join(workdir, "results.json")) as file:
    results = json.load(file)
  del metrics["notes"]
  assert metrics == pytest.approx(results["mean"]["test"], abs=1e-6, nan_ok=True)
  one, two = (mmoe_jax.Predictor(workdir, m)(frame.head(3)) for m in (0, 1))
  assert not np.allclose(one, two)


@pytest.mark.slow
def test_a_search_over_settings_of_an_own_model(own_config, tmp_path):
  space = (("model.gate_scale", ("uniform", 0.5, 2.0)),)
  finished = mmoe_jax.run_search(own_config, space, 2, str(tmp_path), report=lambda line: None)
  assert {0.5 <= t["settings"]["model.gate_scale"] <= 2.0 for t in finished} == {True}
  assert all(t["value"] is not None for t in finished)


def test_an_own_model_is_exported_and_served_with_the_same_scores(own_run, tmp_path, raw):
  predictor = mmoe_jax.Predictor(own_run[0])
  out = str(tmp_path / "exported")
  mmoe_jax.export_model(predictor, out, ["stablehlo"])
  rows = read_frame(raw[1], COLUMNS).head(20)
  expected = predictor(rows)
  loaded = exported.Model(out)(rows.to_dict("records"))
  for task in expected.columns:
    np.testing.assert_allclose(loaded[task], expected[task], atol=1e-6)
  for path in (own_run[0], out):
    served = Scorer(path)(rows.to_dict("records")).scores
    for task in expected.columns:
      np.testing.assert_allclose(served[task], expected[task], atol=1e-6)


def test_an_own_model_without_gates_is_refused_by_the_gate_report(own_run):
  with pytest.raises(UserError, match=f"'{OWN}' has no gates"):
    mmoe_jax.measure_gates(own_run[0], split="test")


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("nowhere.to_be:Found", "no module 'nowhere.to_be'"),
    (":Model", "no module ''"),
    (".own_model:GatedUnits", "no module '.own_model'"),
    ("mmoe_jax.models:BottomModel", "must define __call__"),
    ("examples.own_model:Gated", "must name a class in 'examples.own_model'"),
    ("examples.own_model:census", "must name a class in 'examples.own_model'"),
    ("mmoe", ""),
    ("mmeo", "did you mean 'mmoe'"),
  ],
)
def test_model_names(name, message):
  if not message:
    assert find_model("shared_bottom") is SharedBottom
    return
  with pytest.raises(UserError, match=message):
    find_model(name)


def test_an_import_that_fails_inside_an_own_module_is_shown_to_its_author(tmp_path, monkeypatch):
  (tmp_path / "broken_model.py").write_text("import a_package_that_is_not_installed\n")
  (tmp_path / "failing_model.py").write_text("raise ValueError('boom')\n")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_installed"):
    find_model("broken_model:Any")
  with pytest.raises(ValueError, match="boom"):
    find_model("failing_model:Any")


class OddSettings(SharedBottom):
  """Shared-Bottom with settings of every kind."""

  names: tuple[str, ...] = ("a", "b")
  table: dict | None = None
  least: int = -1
  flag: bool = False


class OneOutput(SharedBottom):
  """A model that forgets the second task."""

  @nn.compact
  def __call__(self, features, train=False):
    return super().__call__(features, train)[:, :1]


class Separate(SingleTask):
  """A model whose tasks have separate tables."""


def test_settings_of_other_kinds_are_accepted_like_their_defaults(own_config):
  schema, _ = mmoe_jax.load_data(own_config.data_dir, **own_config.data)
  name = f"{__name__}:OddSettings"
  known = {k: v for k, v in own_config.model.items() if k not in ("name", "gate_scale")}
  good = {"names": ("c",), "table": {"a": 1}, "least": 0, "flag": True}
  check_model({**known, "name": name, **good}, schema)
  for key, value in {"names": 3, "least": 0.5, "flag": "yes"}.items():
    with pytest.raises(UserError, match=rf"config\.model\.{key} = "):
      check_model({**known, "name": name, key: value}, schema)


def test_a_model_with_other_outputs_than_the_tasks_is_refused(own_config):
  schema, _ = mmoe_jax.load_data(own_config.data_dir, **own_config.data)
  known = {k: v for k, v in own_config.model.items() if k not in ("name", "gate_scale")}
  with pytest.raises(UserError, match=r"must return logits of the shape \(3, 2\) .* \(3, 1\)"):
    check_model({**known, "name": f"{__name__}:OneOutput"}, schema)


def test_a_model_with_separate_tables_is_refused_with_updated_rows(own_config, tmp_path):
  config = own_config.copy_and_resolve_references()
  del config.model["gate_scale"]
  config.model.name, config.optimizer.embedding.updates = f"{__name__}:Separate", "rows"
  with pytest.raises(UserError, match="each task has separate tables"):
    mmoe_jax.train(config, str(tmp_path / "run"))


@pytest.mark.parametrize(
  ("setting", "message"),
  [
    ({"gate_scale": "wide"}, "gate_scale = 'wide': must be a number"),
    ({"gate_scale": float("inf")}, "must be a number"),
    ({"gate_scael": 1.0}, "did you mean 'gate_scale'"),
  ],
)
def test_settings_of_an_own_model_are_validated(own_config, setting, message):
  schema, _ = mmoe_jax.load_data(own_config.data_dir, **own_config.data)
  check_model(own_config.model, schema)
  with pytest.raises(UserError, match=message):
    check_model({**own_config.model, **setting}, schema)
