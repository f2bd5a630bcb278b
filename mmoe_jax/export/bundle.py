"""Folder of an exported model.

model.py          scores raw rows; verifies the folder    encoder.py     raw rows -> arrays
model.stablehlo   the program, for CPU, CUDA and TPU      weights.npz    its weights
model.onnx        the program with its weights            model.json     names, versions, dates
savedmodel/       the same for TensorFlow                 README.md      how to call it
schema.json       columns, vocabularies, statistics       vocabularies/  large ones, as arrays
golden.json       raw rows and their scores               golden.npz     the same rows, encoded
"""

import datetime
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mmoe_jax import data, digests, models
from mmoe_jax.data.encoding import needed_columns
from mmoe_jax.data.vocabularies import Vocabulary
from mmoe_jax.errors import require, require_known
from mmoe_jax.export import encoder, golden, model, program
from mmoe_jax.files import read_json_object, to_json, write_atomically, write_json
from mmoe_jax.prediction.predictor import Predictor, score_names

FORMATS = tuple(model.FORMATS)
_GOLDEN_ROWS = 256
# Newer versions of jax read a program for this long, says its documentation.
_VALID_DAYS = 180


def export(predictor: Predictor, out: str, formats: Sequence[str]) -> None:
  """Writes an export, complete or not at all.

  Args:
    predictor: the run, the member of a population, or the mean of its members.
    out: folder to write; must not exist.
    formats: some of FORMATS.

  Raises:
    UserError: for an unknown format, a missing requirement, or a folder that exists.
    OSError: if it cannot be written.
  """
  require(bool(out), "--out is empty: must be a folder")
  require(not os.path.lexists(out), f"{out}: exists already; use another --out")
  require(bool(formats), f"--formats is empty: must be some of {', '.join(FORMATS)}")
  for name in formats:
    require_known(name, FORMATS, "a format in --formats")
  parent = os.path.dirname(os.path.abspath(out))
  os.makedirs(parent, exist_ok=True)
  folder = tempfile.mkdtemp(dir=parent, prefix=f".{os.path.basename(out)}-")
  try:
    _write_programs(predictor, folder, formats)
    _write_schema(predictor.schema, folder)
    for module in (encoder, model):
      shutil.copyfile(module.__file__, os.path.join(folder, os.path.basename(module.__file__)))
    rows = _write_golden(predictor, folder)
    info = _describe(predictor, formats)
    readme = _format_readme(os.path.basename(os.path.abspath(out)), info, _fullest(rows))
    write_atomically(os.path.join(folder, "README.md"), readme)
    info |= {"files": _digest_files(folder)}
    write_json(os.path.join(folder, "model.json"), digests.seal(info))
    os.chmod(folder, 0o755)
    os.rename(folder, out)
  except BaseException:
    shutil.rmtree(folder, ignore_errors=True)
    raise


def _write_programs(predictor: Predictor, folder: str, formats: Sequence[str]) -> None:
  members = [jax.tree.map(_to_float32, v) for v in predictor.each_variables()]
  schema = predictor.schema
  score = program.make_score(predictor.model, schema)
  if "onnx" in formats:
    with open(os.path.join(folder, "model.onnx"), "wb") as file:
      file.write(program.to_onnx(score, members, schema))
  if "savedmodel" in formats:
    program.to_saved_model(score, members, schema, os.path.join(folder, "savedmodel"))
  if "stablehlo" in formats:
    with open(os.path.join(folder, "model.stablehlo"), "wb") as file:
      file.write(program.to_stablehlo(score, members, schema))
    np.savez(os.path.join(folder, "weights.npz"), **program.weights_of(members))


def _to_float32(array: Any) -> np.ndarray:
  return np.asarray(array, np.float32) if array.dtype.name == "bfloat16" else np.asarray(array)


def _write_schema(schema: data.Schema, folder: str) -> None:
  """Writes the schema, with its large vocabularies as arrays that NumPy reads."""
  schema_path = os.path.join(folder, data.SCHEMA_FILE)
  files = data.save_schema(schema, schema_path)
  large = {
    feature.table or feature.name: feature.values
    for feature in schema.id_features
    if isinstance(feature.values, Vocabulary)
  }
  for name, vocabulary in zip(files, large.values(), strict=True):
    path = os.path.join(folder, *name.split("/"))
    np.savez(path.removesuffix(".arrow") + ".npz", **vocabulary.arrays())
    os.remove(path)
  content = read_json_object(schema_path)
  for feature in content["id_features"]:
    if "vocabulary" in feature:
      feature["vocabulary"] = feature["vocabulary"]["file"].removesuffix(".arrow") + ".npz"
  write_json(schema_path, content)


def _write_golden(predictor: Predictor, folder: str) -> list[dict[str, Any]]:
  """Writes the golden rows, their arrays and their scores; returns the rows."""
  schema = predictor.schema
  rows = json.loads(to_json(golden.make_rows(schema, _GOLDEN_ROWS)))
  features = data.to_features(schema, predictor.encoder(rows, where="golden rows"))
  scores = predictor.score(features)
  expected = {name: scores[name].tolist() for name in score_names(schema.tasks)}
  write_json(os.path.join(folder, "golden.json"), {"rows": rows, "scores": expected})
  ids = features["ids"].astype(np.int32)
  np.savez(os.path.join(folder, "golden.npz"), ids=ids, numeric=features["numeric"])
  return rows


def _describe(predictor: Predictor, formats: Sequence[str]) -> dict[str, Any]:
  """Returns the content of model.json, without the digests of the files."""
  today = datetime.datetime.now(datetime.UTC).date()
  return {
    "scores": score_names(predictor.schema.tasks),
    "formats": list(formats),
    "columns": needed_columns(predictor.schema),
    "model": models.describe(predictor.model),
    "members": predictor.members,
    "epoch": predictor.epoch,
    "platforms": list(program.PLATFORMS),
    "versions": {"jax": jax.__version__, "numpy": np.__version__},
    "exported": str(today),
    "stablehlo_read_until": str(today + datetime.timedelta(_VALID_DAYS)),
  }


def _digest_files(folder: str) -> dict[str, str]:
  """Returns the digest of every file, by its path in the folder."""
  found = {}
  for base, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(base, name)
      found[os.path.relpath(path, folder).replace(os.sep, "/")] = digests.of_file(path)
  return dict(sorted(found.items()))


def _fullest(rows: list[dict[str, Any]]) -> dict[str, Any]:
  """Returns the row with the fewest missing values."""
  return min(rows, key=lambda row: sum(value in (None, [], "") for value in row.values()))


def _format_readme(name: str, info: dict[str, Any], row: dict[str, Any]) -> str:
  """Returns README.md of an export: how to call it, and until when."""
  shown = json.dumps(row, ensure_ascii=False)
  lines = [
    f"# {name}",
    "",
    f"A trained {info['model']}, exported by mmoe_jax on {info['exported']}. It scores raw rows as "
    f"{', '.join(f'`{score}`' for score in info['scores'])}.",
    "",
    f"Python, with NumPy and {_packages(info['formats'])}:",
    "",
    "```python",
    "from model import Model",
    "",
    'model = Model(".")',
    f"scores = model([{shown}])",
    "```",
    "",
    "`python model.py` replays the golden rows in every format that is installed, and verifies the "
    "files.",
    "",
    "Inputs of the programs: `ids` (rows, columns) int32 and `numeric` (rows, columns) float32, of "
    "`encoder.py`; any number of rows of at least one. Ids out of range count as unknown. Each new "
    "number of rows is compiled, so pad batches to powers of two, as `model.py` does.",
    "",
  ]
  if "stablehlo" in info["formats"]:
    lines += [
      "`model.stablehlo` is a serialised `jax.export.Exported` for "
      f"{', '.join(info['platforms'])}. Its first argument is the list of the arrays in "
      f"`weights.npz`, sorted by name. It was written by jax {info['versions']['jax']}; newer "
      f"versions read it until {info['stablehlo_read_until']} at least.",
      "",
    ]
  if "savedmodel" in info["formats"]:
    lines += [
      "`savedmodel/` is a SavedModel of TensorFlow with the signature `serving_default`:",
      "",
      "```python",
      "import tensorflow as tf",
      "from encoder import Encoder",
      "",
      'run = tf.saved_model.load("savedmodel").signatures["serving_default"]',
      f'features = Encoder(".")([{shown}])',
      'scores = run(**{name: tf.constant(array) for name, array in features.items()})["scores"]',
      "```",
      "",
      f"The columns of `scores` are {', '.join(f'`{score}`' for score in info['scores'])}.",
      "",
    ]
  return "\n".join(lines)


def _packages(formats: Sequence[str]) -> str:
  """Returns the packages that run an export, with the files that they read."""
  found = [f"{model.FORMATS[name]} (`{model.FILES[name]}`)" for name in formats]
  return " or ".join(found)
