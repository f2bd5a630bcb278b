"""Data of the page's what-if: the model, the encoder and example rows, as JSON for what_if.js.

Shape letters: C columns.
"""

import base64
import dataclasses
import json
import re
from typing import Any

import numpy as np

from mmoe_jax import data
from mmoe_jax.data.vocabularies import Vocabulary
from mmoe_jax.export import golden
from mmoe_jax.html_report import operations, raw_rows
from mmoe_jax.html_report.facts import RunFacts
from mmoe_jax.prediction.predictor import score_names

_MOST_CHOICES = 400  # Values of a list to choose from; more become a text field.
_SHARES = (0.1, 0.5, 0.8, 0.95, 0.995)  # Quantiles of the first score that example rows have.


class TooLargeError(Exception):
  """Raised if the page would become too large; the message is a reason for people."""


@dataclasses.dataclass(frozen=True)
class WhatIf:
  """What-if of a page.

  Attributes:
    payload: JSON value for what_if.js.
    notes: sentences on what its rows do not show.
  """

  payload: dict[str, Any]
  notes: list[str]


def prepare(facts: RunFacts, budget: int, examples: bool = True) -> WhatIf:
  """Prepares the what-if of a run.

  Args:
    facts: facts about the run.
    budget: bytes that it may take.
    examples: whether to start from test rows, not from invented ones.

  Raises:
    TooLargeError: if the weights or the vocabularies need more.
    operations.UnsupportedModelError: if the page cannot compute the model.
  """
  schema, predictor = facts.predictor.schema, facts.predictor
  words = 0
  for feature in schema.id_features:
    if isinstance(feature.values, Vocabulary):
      raise TooLargeError(
        f"the vocabulary of {feature.name} has {len(feature.values):,} values, too many for a page"
      )
    words += sum(len(str(v)) + 3 for v in feature.values)
  members = len(predictor.members) if facts.is_mean else 1
  whose = f"the {members} members'" if facts.is_mean else "its"
  program = operations.trace(
    predictor.model, predictor.each_variables(), schema.id_count, schema.numeric_count
  )
  steps = len(json.dumps(program.steps, separators=(",", ":")))
  needed = program.size_bytes * 4 // 3 + steps + words
  if needed > budget:
    raise TooLargeError(
      f"{whose} weights and vocabularies would take {needed / 1e6:.1f} MB of the page, more than "
      f"the {budget / 1e6:.1f} MB that remain below 3 MB"
    )
  rows, lost = _examples(facts, examples)
  notes = []
  if facts.is_mean:
    notes.append(
      f"All {members} members are part of this page. Below a score is the range of theirs; the bar "
      "is their mean. Members have separate gates, which are not drawn here."
      if facts.gates_of_members
      else f"All {members} members are part of this page. Below a score is the range of theirs."
    )
  if lost:
    notes.append(
      f"The prepared data holds only hashes of {', '.join(lost)}; example rows have no value there."
    )
  payload = {
    "encoder": _encoder(schema),
    "columns": _columns(schema, facts),
    "tasks": [_task(task) for task in schema.tasks],
    "members": members,
    "program": program_json(program),
    "unknown": raw_rows.UNKNOWN_TEXT,
    "rows": rows,
  }
  return WhatIf(payload, notes)


def program_json(program: operations.Program) -> dict[str, Any]:
  """Returns the program with its constants as base64 of little-endian 32-bit numbers."""
  constants = [
    {"shape": list(a.shape), "type": "f" if a.dtype == np.float32 else "i", "size": a.size}
    for a in program.constants
  ]
  raw = b"".join(a.astype(a.dtype.newbyteorder("<")).tobytes() for a in program.constants)
  return {
    "steps": program.steps,
    "constants": constants,
    "numbers": base64.b64encode(raw).decode("ascii"),
    "logits": program.logits,
    "gates": program.gates,
  }


def _encoder(schema: data.Schema) -> dict[str, Any]:
  """Returns the parts of a schema that encoding needs."""
  features = []
  for feature in schema.id_features:
    entry = {"name": feature.name, "kind": feature.kind, "sources": list(feature.sources)}
    entry |= {"values": list(feature.values), "size": feature.size, "length": feature.length}
    entry |= {"buckets": feature.buckets, "missing": feature.has_missing}
    entry |= {"separator": feature.separator}
    features.append(entry)
  numeric = [
    {"name": n.name, "mean": n.mean, "std": n.std, "transform": n.transform}
    | {"missing": n.has_missing, "points": list(n.points), "edges": list(n.edges)}
    for n in schema.numeric
  ]
  missing = {column: list(texts) for column, texts in schema.missing.items()}
  return {"features": features, "numeric": numeric, "missing": missing}


def _columns(schema: data.Schema, facts: RunFacts) -> list[dict[str, Any]]:
  """Returns the form's columns, the most important ones first."""
  names = data.needed_columns(schema)
  if facts.effects is not None:
    # Undefined where the rows have one class only.
    largest_C = np.nan_to_num(facts.effects.permuted, nan=-np.inf).max(1)
    importance = dict(zip(facts.effects.names, largest_C, strict=True))
    names = sorted(names, key=lambda name: -importance[name])
  return [{"name": name} | _control(schema, name) for name in names]


def _control(schema: data.Schema, column: str) -> dict[str, Any]:
  """Returns the kind of a column's control and its limits."""
  features = [f for f in schema.id_features if f.sources == (column,)]
  numbers = [n for n in schema.numeric if n.name == column]
  kinds = {f.kind for f in features}
  if numbers or kinds & {"bins", "log_int"}:
    is_log = any(n.transform == "log1p" for n in numbers) or "log_int" in kinds
    allows = any(n.has_missing for n in numbers) or any(f.has_missing for f in features)
    return {"control": "number", "log": is_log, "allowsMissing": allows}
  if kinds & data.TIME_PARTS.keys():
    return {"control": "time", "allowsMissing": True}
  feature = features[0]
  if feature.kind == "list":
    return {"control": "list", "separator": feature.separator, "allowsMissing": True}
  if feature.buckets or len(feature.values) > _MOST_CHOICES:
    return {"control": "text", "allowsMissing": True}
  return {"control": "choice", "feature": feature.name, "allowsMissing": True}


def _task(task: data.Task) -> dict[str, Any]:
  entry = {"name": task.name, "kind": task.kind, "outputs": task.outputs}
  return entry | {"mean": task.mean, "std": task.std, "scores": score_names([task])}


def _examples(facts: RunFacts, from_test: bool) -> tuple[list[dict[str, Any]], list[str]]:
  """Returns example rows with their names and labels, and the columns that are lost."""
  schema = facts.predictor.schema
  if facts.held_out is None or not from_test:
    rows = golden.make_rows(schema, len(_SHARES))
    rows = [{c: _page_value(v, schema, c) for c, v in row.items()} for row in rows]
    return [
      {"name": f"Invented row {i}", "values": row, "labels": []} for i, row in enumerate(rows, 1)
    ], []
  first = facts.held_out.scores[0]
  places = raw_rows.spread_rows(first if first.ndim == 1 else first[:, 0], _SHARES)
  rows, lost = raw_rows.restore_rows(
    facts.directory, schema, [facts.held_out.rows[place] for place in places]
  )
  found = []
  for place, row in zip(places, rows, strict=True):
    labels = facts.held_out.split.labels[place]
    texts = [_label_text(t, y) for t, y in zip(schema.tasks, labels, strict=True)]
    number = int(facts.held_out.rows[place]) + 1
    found.append({"name": f"Test row {number:,}", "values": row, "labels": texts})
  return found, lost


def _page_value(value: Any, schema: data.Schema, column: str) -> Any:
  """Returns a value as the form holds it: a list is not a joined text, times have no seconds."""
  feature = next((f for f in schema.id_features if f.sources == (column,)), None)
  if feature is not None and feature.kind == "list" and isinstance(value, str):
    return [text for text in value.split(feature.separator) if text]
  if isinstance(value, str) and feature is not None and feature.kind in data.TIME_PARTS:
    return re.sub(r"^(\S+) (\d\d:\d\d).*$", r"\1T\2", value)
  return value


def _label_text(task: data.Task, label: float) -> str:
  if np.isnan(label):
    return "not labelled"
  if task.kind == "binary":
    return "yes" if label == 1 else "no"
  if task.kind == "multiclass":
    return str(task.classes[int(label)])
  return f"{label * task.std + task.mean:,.4g}"
