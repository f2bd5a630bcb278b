"""Scores of raw rows by a run or an export; bad rows are set aside, others are scored.

Shape letters: N rows.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmoe_jax import data
from mmoe_jax.data.columns import from_arrow, from_rows
from mmoe_jax.errors import UserError, require
from mmoe_jax.export import golden
from mmoe_jax.export.model import Model
from mmoe_jax.prediction.predictor import Predictor, parse_member, score_names

_LEAST_BOUND = 1 << 24  # Bytes that a decoded column may take at least.
_REASON = re.compile(r"column '(.*?)': (.*)", re.DOTALL)


class Scored(NamedTuple):
  """Scores of rows.

  Attributes:
    scores: name -> (N,) float64, NaN for bad rows.
    errors: row number -> what is wrong with it: column, or "" for the whole row, and reason.
  """

  scores: Mapping[str, np.ndarray]
  errors: Mapping[int, tuple[str, str]]

  def part(self, start: int, end: int) -> "Scored":
    """Returns the result of the rows start … end − 1."""
    scores = {name: values[start:end] for name, values in self.scores.items()}
    errors = {row - start: e for row, e in self.errors.items() if start <= row < end}
    return Scored(scores, errors)


class Scorer:
  """A model that is ready to score.

  Attributes:
    path: the work directory or the export.
    columns: raw columns that a row must have.
    names: names of the scores.
  """

  def __init__(self, path: str, member: str = ""):
    """Loads a model.

    Args:
      path: work directory of a run, or folder of an export.
      member: of a population, see predictor.parse_member.

    Raises:
      UserError: if there is no model.
    """
    self.path = path
    if os.path.isfile(os.path.join(path, "model.json")):
      require(not member, f"--member={member}: {path} is an export; it has no members")
      try:
        self._model: Model | None = Model(path)
      except (ValueError, ImportError) as error:
        raise UserError(str(error)) from error
      self.schema = None
      self.names = list(self._model.info["scores"])
      self.columns = list(self._model.info["columns"])
      self._lists = self._model.encoder.list_columns
    else:
      self._model = None
      self._predictor = Predictor(path, parse_member(member))
      self.schema = self._predictor.schema
      self.names = score_names(self.schema.tasks)
      self.columns = data.needed_columns(self.schema)
      self._lists = {f.sources[0] for f in self.schema.id_features if f.kind == "list"}

  def warm_up(self, most_rows: int) -> None:
    """Scores batches of every padded size up to `most_rows`, so that no request waits for XLA."""
    rows = self.example(1)
    size = 1
    while size < 2 * most_rows:
      self(rows * min(size, most_rows))
      size *= 2

  def example(self, count: int) -> list[dict[str, Any]]:
    """Returns raw rows that can be scored."""
    if self._model is not None:
      return self._model.golden_rows(count)
    return golden.make_rows(self.schema, count)

  def __call__(self, rows: Sequence[Any]) -> Scored:
    """Scores rows, each a dict that has every column; None is a missing value."""
    errors: dict[int, tuple[str, str]] = {}
    for i, row in enumerate(rows):
      if (fault := self._find_fault(row)) is not None:
        errors[i] = fault
    good = [i for i in range(len(rows)) if i not in errors]
    found = self._score([rows[i] for i in good]) if good else Scored({}, {})
    errors |= {good[i]: error for i, error in found.errors.items()}
    scores = {name: np.full(len(rows), np.nan) for name in self.names}
    for name, values in found.scores.items():
      scores[name][good] = values
    return Scored(scores, errors)

  def score_arrow(self, table: pa.Table) -> Scored:
    """Scores an Arrow table, which has every column.

    Raises:
      UserError: naming a column that is missing, or of a type that cannot be read.
    """
    absent = [column for column in self.columns if column not in table.column_names]
    require(not absent, f"column {', '.join(map(repr, absent))} is missing")
    table = table.select(self.columns)
    _require_bounded(table)
    if self._model is not None:
      try:
        rows = table.to_pylist()
      except (OverflowError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"a value cannot be read: {error}") from error
      return self(rows)
    return self._score_table(from_arrow(table, "the rows"))

  def _find_fault(self, row: Any) -> tuple[str, str] | None:
    if not isinstance(row, Mapping):
      return "", "must be an object from column to value"
    for column in self.columns:
      if column not in row:
        return column, "is missing; null is a missing value"
      value = row[column]
      if isinstance(value, Mapping) or (isinstance(value, list) and column not in self._lists):
        return column, "must be a text, a number, a boolean or null"
      if isinstance(value, list) and any(isinstance(v, Mapping | list) for v in value):
        return column, "must be a list of texts or numbers"
    return None

  def _score(self, rows: list[Mapping[str, Any]]) -> Scored:
    if self._model is None:
      return self._score_table(from_rows(rows))
    errors, encoded = {}, []
    try:
      features = self._model.encoder(rows)
    except ValueError:  # Encoded one by one, to find the bad ones.
      for i, row in enumerate(rows):
        try:
          encoded.append(self._model.encoder([row]))
        except ValueError as error:
          errors[i] = _split_reason(str(error).split(", ", 1)[1])
      if not encoded:
        return Scored({}, errors)
      features = {name: np.concatenate([e[name] for e in encoded]) for name in encoded[0]}
    good = [i for i in range(len(rows)) if i not in errors]
    scores = {name: np.full(len(rows), np.nan) for name in self.names}
    values_NxC = self._model.score(features)
    for c, name in enumerate(self.names):
      scores[name][good] = values_NxC[:, c]
    return _without_infinite(scores, errors)

  def _score_table(self, table: Any) -> Scored:
    table.bad = {}
    features = data.to_features(self.schema, self._predictor.encoder(table))
    found = self._predictor.score(features)
    scores = {name: found[name] for name in self.names}
    errors = {row: _split_reason(reason) for row, reason in table.bad.items()}
    for values in scores.values():
      values[list(errors)] = np.nan
    return _without_infinite(scores, errors)


def _require_bounded(table: pa.Table) -> None:
  """Raises UserError for a column that takes far more memory in use than it has in the stream."""
  most = max(_LEAST_BOUND, 4 * table.nbytes)
  for name in table.column_names:
    size = 0
    for chunk in table.column(name).chunks:
      found = _bytes_in_use(chunk)
      require(
        found is not None,
        f"column '{name}': has the type {chunk.type}, must hold texts, numbers, times or lists",
      )
      size += found
    require(size <= most, f"column '{name}': takes {size:,} bytes when decoded; send fewer rows")


def _bytes_in_use(array: pa.Array) -> int | None:
  """Returns the bytes of all values, of repeated ones each time; None for an unknown type.

  Views and run-end encoding are unknown: a stream of few bytes may hold values without end.
  """
  kind = array.type
  if pa.types.is_dictionary(kind):
    values = array.dictionary
    if _is_text(values.type):
      sizes = pc.binary_length(values).take(array.indices)
      return 8 * len(array) + (pc.sum(sizes).as_py() or 0)
    return 16 * len(array) if pa.types.is_primitive(values.type) else None
  if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
    if pa.types.is_nested(kind.value_type):
      return None
    inner = _bytes_in_use(array.flatten())
    return None if inner is None else inner + 8 * len(array)
  if pa.types.is_null(kind):
    return 8 * len(array)
  is_plain = _is_text(kind) or pa.types.is_primitive(kind) or pa.types.is_decimal(kind)
  return array.nbytes + 8 * len(array) if is_plain else None


def _is_text(kind: pa.DataType) -> bool:
  checks = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_binary),
    *(pa.types.is_large_binary, pa.types.is_fixed_size_binary),
  )
  return any(check(kind) for check in checks)


def _without_infinite(scores: dict[str, np.ndarray], errors: dict[int, tuple[str, str]]) -> Scored:
  """Marks rows whose score is not finite as bad."""
  for values in scores.values():
    for row in np.flatnonzero(~np.isfinite(values)).tolist():
      errors.setdefault(row, ("", "the score is not finite; check the numbers of this row"))
  for values in scores.values():
    values[list(errors)] = np.nan
  return Scored(scores, errors)


def _split_reason(text: str) -> tuple[str, str]:
  found = _REASON.fullmatch(text)
  return (found[1], found[2]) if found else ("", text)
