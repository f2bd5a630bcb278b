"""Exports: scores as before, in another process too; damage and wrong use are one line."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from mmoe_jax import digests, models
from mmoe_jax.errors import UserError
from mmoe_jax.export import bundle, program
from mmoe_jax.export.model import Model, verify
from mmoe_jax.prediction.predictor import Predictor, parse_member
from mmoe_jax.training import loop, population
from tests import reference
from tests.commands import run
from tests.models.test_zoo import NUMBERS, SIZES, create, schema_of


@pytest.fixture(scope="module")
def workdir(prepared, tmp_path_factory):
  from configs import smoke

  config = smoke.get_config()
  config.data_dir, config.train.devices, config.train.epochs = prepared, 1, 1
  found = str(tmp_path_factory.mktemp("export") / "run")
  loop.train_and_evaluate(config, found)
  return found


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
  out = str(tmp_path_factory.mktemp("export") / "out")
  bundle.export(Predictor(workdir), out, ["stablehlo"])
  return out


def golden_rows(folder):
  with open(os.path.join(folder, "golden.json"), encoding="utf-8") as file:
    return json.load(file)["rows"]


def test_scores_are_those_of_prediction(folder, workdir):
  assert [name for name, result, _ in verify(folder) if result == "ok"] == ["encoder", "stablehlo"]
  rows = golden_rows(folder)
  scores, expected = Model(folder)(rows), Predictor(workdir).scores(rows)
  assert scores.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_allclose(scores[name], values, atol=1e-6)
  for count in (1, 3):
    few = Model(folder)(rows[:count])
    for name, values in few.items():
      np.testing.assert_allclose(values, scores[name][:count], atol=1e-6)


def test_ids_out_of_range_count_as_unknown(folder):
  model = Model(folder)
  features = model.encoder(golden_rows(folder)[:4])
  unknown = model.score({**features, "ids": np.zeros_like(features["ids"])})
  for number in (-1, -(2**31), 10**6, 2**31 - 1):
    wrong = {**features, "ids": np.full_like(features["ids"], number)}
    np.testing.assert_array_equal(model.score(wrong), unknown)


def test_a_folder_verifies_itself_without_this_package(folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / "moved")
  done = subprocess.run(
    [sys.executable, "model.py"],
    capture_output=True,
    text=True,
    cwd=copy,
    check=False,
    env={**os.environ, "PYTHONPATH": "", "JAX_PLATFORMS": "cpu"},
  )
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert lines[0] == "encoder: ok"
  assert lines[1].startswith("stablehlo: ok (largest difference ")


def test_the_readme_shows_a_call_that_works(folder):
  with open(os.path.join(folder, "README.md"), encoding="utf-8") as file:
    code = file.read().split("```python\n")[1].split("```")[0]
  code = code.replace("from model import", "from mmoe_jax.export.model import")
  found = {}
  exec(code.replace('Model(".")', f"Model({folder!r})"), found)
  assert set(found["scores"]) == {"income_50k", "marital_stat"}


@pytest.mark.parametrize("name", ["weights.npz", "model.stablehlo", "schema.json", "golden.json"])
def test_damage_is_named(folder, tmp_path, name, capsys):
  copy = str(shutil.copytree(folder, tmp_path / "copy"))
  path = os.path.join(copy, name)
  with open(path, "r+b") as file:
    file.seek(os.path.getsize(path) // 2)
    byte = file.read(1)
    file.seek(-1, os.SEEK_CUR)
    file.write(bytes([byte[0] ^ 1]))
  for use in (verify, Model):
    with pytest.raises(ValueError, match=f"{name}: changed or damaged; export again"):
      use(copy)
  os.remove(path)
  with pytest.raises(ValueError, match=f"{name}: is missing"):
    verify(copy)


def test_a_changed_score_differs(folder, tmp_path):
  copy = str(shutil.copytree(folder, tmp_path / "copy"))
  path = os.path.join(copy, "golden.json")
  with open(path, encoding="utf-8") as file:
    content = json.load(file)
  content["scores"]["income_50k"][5] += 2e-5
  with open(path, "w", encoding="utf-8") as file:
    json.dump(content, file)
  info = os.path.join(copy, "model.json")
  with open(info, encoding="utf-8") as file:
    changed = json.load(file)
  del changed["sha256"]
  changed["files"]["golden.json"] = digests.of_file(path)
  with open(info, "w", encoding="utf-8") as file:
    json.dump(digests.seal(changed), file)
  assert verify(copy)[1][1] == "differs"


def test_wrong_use_is_named(folder, workdir, tmp_path):
  predictor = Predictor(workdir)
  with pytest.raises(UserError, match="exists already"):
    bundle.export(predictor, folder, ["stablehlo"])
  with pytest.raises(UserError, match="'stablehol', which does not exist"):
    bundle.export(predictor, str(tmp_path / "a"), ["stablehol"])
  with pytest.raises(UserError, match=r"--member=mean: the run in .* is not a population"):
    Predictor(workdir, "mean")
  with pytest.raises(UserError, match="--member=x: must be a number, or mean"):
    parse_member("x")
  with pytest.raises(ValueError, match="is no export"):
    verify(str(tmp_path))
  with pytest.raises(ValueError, match="has the formats stablehlo, not 'onnx'"):
    Model(folder, "onnx")
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
  ("name", "package", "command"),
  [
    ("onnx", "jax2onnx", "pip install --no-deps"),
    ("savedmodel", "tensorflow", "pip install -r mmoe_jax/export/requirements-savedmodel.txt"),
  ],
)
def test_a_missing_requirement_is_named(workdir, tmp_path, monkeypatch, name, package, command):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(UserError, match=rf"--formats={name}: needs {package} .*{command}"):
    bundle.export(Predictor(workdir), str(tmp_path / "a"), [name])
  assert os.listdir(tmp_path) == []


def test_the_mean_of_a_population_is_exported(config, tmp_path):
  config.train.epochs = 1
  workdir, out = str(tmp_path / "p"), str(tmp_path / "out")
  population.train_population(config, [{"seed": 0}, {"seed": 1}], workdir)
  bundle.export(Predictor(workdir, "mean"), out, ["stablehlo"])
  assert verify(out)[1][1] == "ok"
  rows = golden_rows(out)
  each = [Predictor(workdir, number).scores(rows)["income_50k"] for number in (0, 1)]
  np.testing.assert_allclose(Model(out)(rows)["income_50k"], np.mean(each, axis=0), atol=1e-6)
  assert np.abs(each[0] - each[1]).max() > 1e-3


def test_commands_export_and_verify(workdir, tmp_path):
  out = str(tmp_path / "out")
  done = run("mmoe_jax.export", "--workdir", workdir, "--out", out)
  assert done.returncode == 0, done.stderr
  assert "stablehlo: ok" in done.stdout
  assert run("mmoe_jax.verify", out).returncode == 0
  for arguments in ((), (str(tmp_path),), ("--help",)):
    assert run("mmoe_jax.verify", *arguments).returncode == 2


def model_with_norm(name, norm, **settings):
  """Returns a model of two tasks, its variables, and features of 8 rows."""
  rng = reference.fresh_rng()
  parts = ("tower_norm", "expert_norm", "bottom_norm")
  fields = models.MODELS[name].__dataclass_fields__
  model = create(name, 2, **{part: norm for part in parts if part in fields}, **settings)
  ids = np.stack([rng.integers(0, size, 8) for size in SIZES], 1).astype(np.int32)
  numeric = rng.normal(size=(8, NUMBERS)).astype(np.float32)
  features = {"ids": ids, "numeric": numeric}
  variables = jax.jit(model.init)(jax.random.key(1), features)
  variables = {k: v for k, v in variables.items() if k in ("params", "batch_stats")}
  return model, variables, features


def assert_same_scores(score, model, variables, features):
  apply = jax.jit(model.apply)
  for rows in (8, 1):
    some = {key: values[:rows] for key, values in features.items()}
    expected = 1 / (1 + np.exp(-apply(variables, some)))
    np.testing.assert_allclose(score(some), expected, atol=1e-6)


@pytest.mark.parametrize(
  "norm",
  [
    "none",
    pytest.param("layer", marks=pytest.mark.slow),
    pytest.param("batch", marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_scores_the_same_in_stablehlo(name, norm):
  schema = schema_of(SIZES, NUMBERS, 2)
  model, variables, features = model_with_norm(name, norm)
  content = program.to_stablehlo(program.make_score(model, schema), [variables], schema)
  exported = jax.export.deserialize(bytearray(content))
  weights = list(program.weights_of([variables]).values())
  score = lambda some: exported.call(weights, some["ids"], some["numeric"])
  assert_same_scores(score, model, variables, features)


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("name", [*models.MODELS, "mmoe of 3"])
def test_every_model_scores_the_same_in_onnx(name, norm):
  pytest.importorskip("jax2onnx", reason="an optional requirement")
  import onnxruntime

  schema = schema_of(SIZES, NUMBERS, 2)
  name, _, members = name.partition(" of ")
  model, variables, features = model_with_norm(name, norm, batch_ensemble=int(members or 1))
  content = program.to_onnx(program.make_score(model, schema), [variables], schema)
  session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
  assert_same_scores(lambda some: session.run(None, some)[0], model, variables, features)


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("name", [*models.MODELS, "mmoe of 3"])
def test_every_model_scores_the_same_in_tensorflow(name, norm, tmp_path):
  tf = pytest.importorskip("tensorflow", reason="an optional requirement")
  schema = schema_of(SIZES, NUMBERS, 2)
  name, _, members = name.partition(" of ")
  model, variables, features = model_with_norm(name, norm, batch_ensemble=int(members or 1))
  score = program.make_score(model, schema)
  program.to_saved_model(score, [variables], schema, str(tmp_path / "saved"))
  loaded = tf.saved_model.load(str(tmp_path / "saved"))
  run = loaded.signatures["serving_default"]
  to_tensors = lambda some: {key: tf.constant(array) for key, array in some.items()}
  assert_same_scores(lambda some: run(**to_tensors(some))["scores"], model, variables, features)
  unknown = {**features, "ids": np.zeros_like(features["ids"])}
  for number in (-1, 10**6):
    wrong = {**features, "ids": np.full_like(features["ids"], number)}
    np.testing.assert_array_equal(
      run(**to_tensors(wrong))["scores"], run(**to_tensors(unknown))["scores"]
    )


def test_the_mean_of_a_population_runs_in_tensorflow_without_jax(config, tmp_path):
  pytest.importorskip("tensorflow", reason="an optional requirement")
  config.train.epochs = 1
  workdir, out = str(tmp_path / "p"), str(tmp_path / "out")
  population.train_population(config, [{"seed": 0}, {"seed": 1}], workdir)
  bundle.export(Predictor(workdir, "mean"), out, ["stablehlo", "savedmodel"])
  assert [result for _, result, _ in verify(out)] == ["ok", "ok", "ok"]
  code = "import sys; sys.modules['jax'] = None; import model; sys.exit(model.report('.'))"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, cwd=out, check=False
  )
  assert done.returncode == 0, done.stderr
  assert "stablehlo: not run: jax is not installed" in done.stdout
  assert "savedmodel: ok" in done.stdout
  model = Model(out, "savedmodel")
  features = model.encoder(golden_rows(out)[:4])
  unknown = model.score({**features, "ids": np.zeros_like(features["ids"])})
  wrong = {**features, "ids": np.full_like(features["ids"], 2**31 - 1)}
  np.testing.assert_array_equal(model.score(wrong), unknown)
