"""Arrays of a split: joining, storing, counting of labels.

Shape letters: N rows, T tasks.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.column_counts import TextCounts
from data_prep.output import STORED, UNFINISHED
from mmoe_jax import data
from mmoe_jax.data import locations
from mmoe_jax.data.columns import Table
from mmoe_jax.data.conditions import evaluate, parse_condition
from mmoe_jax.errors import UserError

_FIELDS = ("ids", "numbers", "labels", "weights", "slices")


def take(rows: data.EncodedRows, chosen: np.ndarray) -> data.EncodedRows:
  """Returns some rows, given as (N,) bool."""
  return data.EncodedRows(**{field: getattr(rows, field)[chosen] for field in _FIELDS})


def join(
  pieces: Sequence[tuple[data.EncodedRows, np.ndarray]],
) -> tuple[data.EncodedRows, np.ndarray]:
  """Joins encoded rows, and the lines of each."""
  if len(pieces) == 1:
    return pieces[0]
  arrays = {f: np.concatenate([getattr(rows, f) for rows, _ in pieces]) for f in _FIELDS}
  return data.EncodedRows(**arrays), np.concatenate([lines for _, lines in pieces])


def store(
  encoded: data.EncodedRows, rows: np.ndarray, directory: str, prefix: str
) -> dict[str, dict[str, Any]]:
  """Saves rows as memory-mappable .npy files, each in the smallest sufficient type.

  Args:
    encoded: the encoded rows, with labels, weights and slices.
    rows: (N,) zero-based line numbers of the rows in their raw file.
    directory: output folder, local or remote; a local one appears complete or not at all.
    prefix: first name of the folder in the output, such as `train`.

  Returns:
    Path in the output folder, with `/` -> bytes and digest.
  """
  numbers = encoded.numbers
  is_whole = bool(np.all((numbers >= 0) & (numbers == np.floor(numbers))))
  if is_whole:
    numbers = numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))
  rows = rows.astype(np.min_scalar_type(int(rows.max(initial=0))))
  arrays = (encoded.ids, numbers, encoded.labels, encoded.weights, encoded.slices, rows)
  is_remote = locations.is_remote(directory)
  parent = None if is_remote else os.path.dirname(directory)
  if parent:
    os.makedirs(parent, exist_ok=True)
  name = directory.rstrip("/").rpartition("/")[2]
  base = prefix if name == prefix else f"{prefix}/{name}"
  tmp_path = tempfile.mkdtemp(prefix=UNFINISHED, dir=parent)
  files = {}
  try:
    for field, array in zip(STORED, arrays, strict=True):
      path = os.path.join(tmp_path, f"{field}.npy")
      np.save(path, array)
      files[f"{base}/{field}.npy"] = {"bytes": os.path.getsize(path), "sha256": _digest(path)}
      if is_remote:
        locations.upload(path, locations.join(directory, f"{field}.npy"))
    if not is_remote:
      shutil.rmtree(directory, ignore_errors=True)  # Of a part that was not recorded as done.
      os.chmod(tmp_path, 0o755)
      os.rename(tmp_path, directory)
  finally:
    shutil.rmtree(tmp_path, ignore_errors=True)
  return files


def _digest(path: str) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def count(schema: data.Schema, labels: np.ndarray) -> dict[str, Any]:
  """Counts the rows and labels of a split, or of a part of it.

  Args:
    schema: the schema.
    labels: (N, T) as encoded.

  Returns:
    `rows`; and by task `labelled` rows, `positives` (binary), rows of each class in `classes`
    (multiclass), and `sums` and `squares` of standardised labels (regression).
  """
  counts: dict[str, Any] = {"rows": len(labels), "labelled": {}}
  counts |= {kind: {} for kind in ("positives", "classes", "sums", "squares")}
  for t, task in enumerate(schema.tasks):
    known = labels[~np.isnan(labels[:, t]), t].astype(np.float64)
    counts["labelled"][task.name] = len(known)
    if task.kind == "binary":
      counts["positives"][task.name] = int(known.sum())
    elif task.kind == "multiclass":
      by_class = np.bincount(known.astype(int), minlength=len(task.classes))
      counts["classes"][task.name] = by_class.tolist()
    else:
      counts["sums"][task.name] = float(known.sum())
      counts["squares"][task.name] = float((known**2).sum())
  return counts


def merge_counts(schema: data.Schema, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Adds counts of parts, for schema.json.

  Returns:
    As of `count`, with the label's `means` and `stds` in the column's own units (regression)
    instead of sums, rounded so that they do not depend on the parts.
  """
  counts: dict[str, Any] = {"rows": sum(part["rows"] for part in parts), "labelled": {}}
  counts |= {kind: {} for kind in ("positives", "classes", "means", "stds")}
  for task in schema.tasks:
    name = task.name
    labelled = counts["labelled"][name] = sum(part["labelled"][name] for part in parts)
    if task.kind == "binary":
      counts["positives"][name] = sum(part["positives"][name] for part in parts)
    elif task.kind == "multiclass":
      by_class = np.sum([part["classes"][name] for part in parts], axis=0)
      counts["classes"][name] = by_class.tolist()
    elif labelled:
      mean = sum(part["sums"][name] for part in parts) / labelled
      square = sum(part["squares"][name] for part in parts) / labelled
      counts["means"][name] = _rounded(mean * task.std + task.mean)
      counts["stds"][name] = _rounded(max(0.0, square - mean**2) ** 0.5 * task.std)
  return counts


def _rounded(x: float) -> float:
  return float(f"{x:.9g}")


def count_labels(task: data.Task, table: Table, rows: np.ndarray) -> TextCounts:
  """Counts the labels of a condition as texts, "1" and "0"."""
  labels = evaluate(parse_condition(task.condition), table)[rows]
  counts = {"1": int((labels == 1).sum()), "0": int((labels == 0).sum())}
  found = {value: n for value, n in counts.items() if n}
  return TextCounts(pa.array(list(found), pa.string()), np.array(list(found.values()), np.int64))


def require_implied(schema: data.Schema, labels: np.ndarray, table: Table) -> None:
  """Raises UserError for a row whose label is 1 where one that it implies is 0."""
  names = [task.name for task in schema.tasks]
  for t, task in enumerate(schema.tasks):
    for other in task.implies:
      bad = (labels[:, t] == 1) & (labels[:, names.index(other)] == 0)
      if bad.any():
        line = table.lines[int(np.argmax(bad))]
        raise UserError(
          f"{table.where}, line {line}: the label of '{task.name}' is 1 and that of '{other}' 0, "
          f"but the spec says that {task.name} implies {other}"
        )
