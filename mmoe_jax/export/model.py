"""Exported model: scores raw rows, and verifies itself; it is copied into each export.

  from model import Model

  model = Model("FOLDER")
  scores = model([{"age": 39, "education": "Bachelors degree", ...}])

It needs NumPy, and jax (`model.stablehlo`), onnxruntime (`model.onnx`) or tensorflow
(`savedmodel/`). `python model.py` in the folder replays the golden rows in every format that is
installed.

Shape letters: N rows, F columns of ids, D inputs of numbers, C columns of scores.
"""

import hashlib
import importlib
import importlib.util
import json
import os
import sys

import numpy as np

# Format -> the package that runs it, and its file or folder.
FORMATS = {"stablehlo": "jax", "onnx": "onnxruntime", "savedmodel": "tensorflow"}
FILES = {"stablehlo": "model.stablehlo", "onnx": "model.onnx", "savedmodel": "savedmodel/"}
# Files of a format that must have a digest.
_FILES_OF = {
  "stablehlo": ("model.stablehlo", "weights.npz"),
  "onnx": ("model.onnx",),
  "savedmodel": ("savedmodel/saved_model.pb",),
}
SEAL = "sha256"  # Key of the digest of the other entries of `model.json`; older exports have none.
TOLERANCE = 1e-5  # Largest accepted difference of scores, relative to those above 1.


class Model:
  """Exported model.

  Attributes:
    info: content of `model.json`: names of the scores, versions, dates.
    format: the format that is used.
    encoder: encoder of raw rows.
  """

  def __init__(self, folder, format_name=""):
    """Loads an export.

    Args:
      folder: the folder.
      format_name: a key of FORMATS; empty for the first one whose package is installed.

    Raises:
      ValueError: if the folder is no export, has no such format, or a file is missing or changed.
      ImportError: if no package that runs it is installed.
    """
    self.info = read_info(folder)
    known = self.info["formats"]
    if format_name and format_name not in known:
      raise ValueError(f"{folder}: has the formats {', '.join(known)}, not '{format_name}'")
    usable = [f for f in known if importlib.util.find_spec(FORMATS[f])]
    if not usable and not format_name:
      packages = " or ".join(FORMATS[f] for f in known)
      raise ImportError(f"{folder}: needs {packages}; install one of them")
    _check_files(folder, self.info)
    self.format = format_name or usable[0]
    self.encoder = _load_encoder(folder)
    if sorted(self.info["columns"]) != sorted(self.encoder.columns):
      raise ValueError(f"{folder}: model.json has other columns than schema.json; export it again")
    self._folder = folder
    loaders = {
      "stablehlo": _load_stablehlo,
      "onnx": _load_onnx,
      "savedmodel": _load_saved_model,
    }
    self._call = loaders[self.format](folder)

  def __call__(self, rows):
    """Scores raw rows, a list of dicts; returns name -> scores (N,).

    Raises:
      ValueError: naming row and column of a value that cannot be encoded.
    """
    scores_NxC = self.score(self.encoder(rows))
    return dict(zip(self.info["scores"], scores_NxC.T, strict=True))

  def golden_rows(self, count):
    """Returns raw rows that can be scored, at most as many as the export has."""
    with open(os.path.join(self._folder, "golden.json"), encoding="utf-8") as file:
      return json.load(file)["rows"][:count]

  def score(self, features):
    """Scores encoded rows: `ids` (N, F) int32, `numeric` (N, D) float32; returns (N, C) float32.

    Batches are padded to a power of two, because each size is compiled once.
    """
    rows = len(features["ids"])
    padding = (1 << max(0, rows - 1).bit_length()) - rows
    padded = [np.pad(features[name], ((0, padding), (0, 0))) for name in ("ids", "numeric")]
    return np.asarray(self._call(*padded))[:rows]


def verify(folder):
  """Replays the golden rows of an export.

  Returns:
    (name, result, largest difference) of the encoder and of each format; the result is `ok`,
    `differs`, or `not run` where the package of the format is not installed.

  Raises:
    ValueError: if the folder is no export, or a file is missing or changed.
  """
  info = read_info(folder)
  _check_files(folder, info)
  with open(os.path.join(folder, "golden.json"), encoding="utf-8") as file:
    golden = json.load(file)
  features = _load_encoder(folder)(golden["rows"])
  with np.load(os.path.join(folder, "golden.npz")) as arrays:
    is_equal = all(np.array_equal(features[name], arrays[name]) for name in features)
  found = [("encoder", "ok" if is_equal else "differs", None)]
  expected = np.array([golden["scores"][name] for name in info["scores"]], np.float64).T
  scale = np.maximum(1.0, np.abs(expected).max(0))
  for name in info["formats"]:
    if importlib.util.find_spec(FORMATS[name]) is None:
      found.append((name, f"not run: {FORMATS[name]} is not installed", None))
      continue
    difference = float((np.abs(Model(folder, name).score(features) - expected) / scale).max())
    found.append((name, "ok" if difference <= TOLERANCE else "differs", difference))
  return found


def report(folder):
  """Prints the result of `verify`; returns the exit status: 0 if nothing differs."""
  try:
    found = verify(folder)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  for name, result, difference in found:
    end = "" if difference is None else f" (largest difference {difference:.1e})"
    print(f"{name}: {result}{end}")
  return 1 if any(result == "differs" for _, result, _ in found) else 0


def read_info(folder):
  """Returns the content of `model.json`; raises ValueError if the folder is no export."""
  path = os.path.join(folder, "model.json")
  try:
    with open(path, encoding="utf-8") as file:
      info = json.load(file)
    fault = _find_fault(info)
    if fault:
      raise ValueError(fault)
  except (OSError, ValueError, RecursionError) as error:
    raise ValueError(f"{folder}: is no export: {path}: {error}") from error
  return info


def _find_fault(info):
  """Returns why a content of `model.json` cannot be that of an export; empty if it can."""
  if not isinstance(info, dict) or not {"formats", "scores", "columns", "files"} <= info.keys():
    return "keys are missing"
  entries = {key: value for key, value in info.items() if key != SEAL}
  text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
  if info.get(SEAL, "") not in ("", hashlib.sha256(text.encode()).hexdigest()):
    return "changed since it was exported"
  for key in ("formats", "scores", "columns"):
    values = info[key]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
      return f"{key} must be a list of texts"
  formats, files = info["formats"], info["files"]
  if not formats or not info["scores"] or not set(formats) <= FORMATS.keys():
    return f"must have scores, and formats of {', '.join(FORMATS)}"
  if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
    return "files must have the digest of each file"
  # A file that has no digest could be any other program.
  needed = {"encoder.py", "schema.json", "golden.json", "golden.npz"}
  needed |= {name for each in formats for name in _FILES_OF[each]}
  if not needed <= files.keys():
    return f"has no digest of {', '.join(sorted(needed - files.keys()))}"
  if any(os.path.isabs(name) or ".." in name.split("/") for name in files):
    return "names a file outside of the folder"
  return ""


def _check_files(folder, info):
  """Raises ValueError for a file that is missing, or not the one that was exported."""
  for name, expected in info["files"].items():
    path = os.path.join(folder, *name.split("/"))
    if not os.path.isfile(path):
      raise ValueError(f"{path}: is missing; export again")
    with open(path, "rb") as file:
      if hashlib.file_digest(file, "sha256").hexdigest() != expected:
        raise ValueError(f"{path}: changed or damaged; export again")


def _load_encoder(folder):
  path = os.path.join(folder, "encoder.py")
  spec = importlib.util.spec_from_file_location("mmoe_jax_encoder", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.Encoder(folder)


def _load_stablehlo(folder):
  jax = importlib.import_module("jax")
  export = importlib.import_module("jax.export")
  with open(os.path.join(folder, "model.stablehlo"), "rb") as file:
    exported = export.deserialize(bytearray(file.read()))
  with np.load(os.path.join(folder, "weights.npz")) as arrays:
    weights = [jax.device_put(arrays[name]) for name in sorted(arrays)]
  call = jax.jit(exported.call)
  return lambda ids, numeric: call(weights, ids, numeric)


def _load_onnx(folder):
  onnxruntime = importlib.import_module("onnxruntime")
  path = os.path.join(folder, "model.onnx")
  session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
  names = [each.name for each in session.get_inputs()]
  return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]


def _load_saved_model(folder):
  tf = importlib.import_module("tensorflow")
  loaded = tf.saved_model.load(os.path.join(folder, "savedmodel"))
  return lambda ids, numeric: loaded.score(ids, numeric)["scores"].numpy()


if __name__ == "__main__":
  sys.exit(report(os.path.dirname(os.path.abspath(__file__))))
