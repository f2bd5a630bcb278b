"""Raw tables in memory: columns of texts, numbers or lists, with the line of each row.

A value reads the same whether it comes from CSV, Parquet, a DataFrame or a dict. Texts lose the
white space around them; whole numbers are written as digits, other numbers with the fewest digits
that identify them, booleans as True and False. An empty text, null and NaN are a missing value.

Shape letters: N rows, M values of a list column.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mmoe_jax.data.values import LARGEST, MISSING, SPACES, numbers_of_array, parse_texts, text_of
from mmoe_jax.errors import UserError, require

SINGLE = np.zeros(1, np.int64)  # Codes of every column of a single row.
SINGLE.setflags(write=False)


class Factor(NamedTuple):
  """Column as distinct values.

  Attributes:
    codes: (N,) integers, the position of each row's value among `values`.
    values: distinct texts, as a list or an Arrow array; "" is a missing value.
  """

  codes: np.ndarray
  values: list[str] | pa.StringArray

  def texts(self) -> list[str]:
    """Returns the distinct values as a list."""
    return self.values if isinstance(self.values, list) else self.values.to_pylist()


class Lists(NamedTuple):
  """Multi-valued column.

  Attributes:
    rows: (M,) ascending row numbers, one for each value.
    values: the M values.
  """

  rows: np.ndarray
  values: Factor


@dataclasses.dataclass
class Table:
  """Raw rows.

  Attributes:
    columns: name -> values (N,), an Arrow array or a list of Python values.
    rows: number of rows N.
    where: name of the table in errors, such as its file.
    lines: (N,) line of each row in its file, counted from 1, as a range or an array.
    missing: column -> texts that stand for a missing value there.
    file: number of the file among those that are read.
    headers: lines of the file's header.
    bad: row number -> what is wrong with it, if bad rows are collected; None: the first one is an
      error.
    unreadable: line and fault of rows of the file that could not even be read.
  """

  columns: Mapping[str, pa.Array | list[Any]]
  rows: int
  where: str = "the table"
  lines: Sequence[int] | np.ndarray = ()
  missing: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  file: int = 0
  headers: int = 0
  bad: dict[int, str] | None = None
  unreadable: Sequence[tuple[int, str]] = ()

  def __post_init__(self) -> None:
    """Prepares the caches of parsed columns, which several features and tasks may read."""
    self._factors: dict[str, Factor] = {}
    self._numbers: dict[str, np.ndarray] = {}
    if len(self.lines) == 0:
      self.lines = range(1, self.rows + 1)

  def __len__(self) -> int:
    """Number of rows N."""
    return self.rows

  def require(self, columns: Sequence[str]) -> None:
    """Raises UserError unless all of these columns exist."""
    absent = [c for c in dict.fromkeys(columns) if c not in self.columns]
    require(not absent, f"{self.where}: column {', '.join(map(repr, absent))} is missing")

  def place(self, row: int, column: str) -> str:
    """Returns file, line and column of a value, for errors."""
    return f"{self.where}, line {self.lines[row]}, column '{column}'"

  def take(self, rows: np.ndarray) -> "Table":
    """Returns the table of some rows, by their numbers."""
    columns = {
      name: [values[i] for i in rows] if isinstance(values, list) else values.take(pa.array(rows))
      for name, values in self.columns.items()
    }
    lines = np.asarray(self.lines)[rows]
    return Table(columns, len(rows), self.where, lines, self.missing)

  def factor(self, column: str) -> Factor:
    """Returns a column as codes and distinct texts."""
    if column not in self._factors:
      if column not in self.columns:
        self.require([column])
      values = self.columns[column]
      found = _factor_list(values) if isinstance(values, list) else self._factor(column, values)
      self._factors[column] = _replace_missing(found, self.missing.get(column, ()))
    return self._factors[column]

  def numbers(self, column: str, least: float = -math.inf) -> np.ndarray:
    """Parses a column of numbers.

    Args:
      column: the column.
      least: smallest allowed number.

    Returns:
      (N,) float64, NaN where missing.

    Raises:
      UserError: naming the line of a value that is not a number, not finite, or too small.
    """
    if column not in self._numbers:
      self.require([column])
      self._numbers[column] = self._parse(column)
    x_N = self._numbers[column]
    bad = (x_N < least) | (x_N > LARGEST) | (x_N < -LARGEST)  # False for missing numbers.
    if bad.any():
      factor = self.factor(column)
      texts = factor.texts()
      is_large = np.abs(x_N) > LARGEST
      self.refuse(
        column,
        bad,
        lambda row: (
          f"'{texts[factor.codes[row]]:.80}' is not a number"
          + (f" up to {LARGEST:g}" if is_large[row] else f" >= {least:g}")
        ),
      )
      x_N = np.where(bad, max(least, 0.0), x_N)
    return x_N

  def times(self, column: str) -> np.ndarray | None:
    """Returns a column of Arrow's times as (N,) datetime64[s], in UTC; None for other types."""
    values = self.columns[column]
    if isinstance(values, list) or not (
      pa.types.is_timestamp(values.type) or pa.types.is_date(values.type)
    ):
      return None
    return values.cast(pa.timestamp("s"), safe=False).to_numpy(zero_copy_only=False)

  def refuse(self, column: str, bad: np.ndarray, reason: Callable[[int], str]) -> None:
    """Collects bad rows, given as (N,) bool, or raises UserError for the first one.

    Args:
      column: column of the bad values.
      bad: whether each row is bad; at least one is.
      reason: returns what is wrong with a row, by its number.
    """
    for row in np.flatnonzero(bad).tolist():
      if self.bad is None:
        raise UserError(f"{self.place(row, column)}: {reason(row)}")
      self.bad.setdefault(row, f"column '{column}': {reason(row)}")

  def lists(self, column: str, separator: str) -> Lists:
    """Splits a multi-valued column; empty values are left out.

    Args:
      column: a column of lists, or of texts.
      separator: what separates the values of a text.
    """
    self.require([column])
    values = self.columns[column]
    if not isinstance(values, list) and not _is_list(values.type):
      factor = self.factor(column)
      parts = [[t.strip(SPACES) for t in text.split(separator)] for text in factor.texts()]
      distinct, flat = _index_of([t for part in parts for t in part])
      lengths = np.array([len(part) for part in parts], np.int64)
      starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
      lengths = lengths[factor.codes]
      rows = np.repeat(np.arange(self.rows), lengths)
      offsets = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
      codes = np.asarray(flat, np.int64)[np.repeat(starts[factor.codes], lengths) + offsets]
      return _without_missing(rows, Factor(codes, distinct))
    if isinstance(values, list):
      markers = self.missing.get(column, ())
      split = [_values_of(value, separator, markers) for value in values]
      rows = np.repeat(np.arange(self.rows), [len(part) for part in split])
      return _without_missing(rows, _factor_list([v for part in split for v in part]))
    rows = np.asarray(pc.list_parent_indices(values))
    return _without_missing(rows, self._factor(column, pc.list_flatten(values)))

  def _factor(self, column: str, values: pa.Array) -> Factor:
    try:
      return _factor_array(values)
    except pa.ArrowNotImplementedError as error:
      raise UserError(
        f"{self.where}, column '{column}': has the type {values.type}, must hold texts or numbers"
      ) from error
    except OverflowError as error:
      raise UserError(
        f"{self.where}, column '{column}': has a time outside of the years 1 to 9999"
      ) from error

  def _parse(self, column: str) -> np.ndarray:
    values = self.columns[column]
    if not isinstance(values, list) and not _is_text(values.type):
      try:
        return numbers_of_array(values)
      except pa.ArrowException as error:
        raise UserError(
          f"{self.where}, column '{column}': has the type {values.type}, must hold numbers"
        ) from error
    if not isinstance(values, list) and pa.types.is_string(values.type) and not self.missing:
      # Mostly different values: parsed without looking for equal ones.
      parsed, good = parse_texts(pc.utf8_trim(values, SPACES).fill_null(MISSING))
      if good.all():
        return parsed
    factor = self.factor(column)
    parsed, good = parse_texts(factor.values)
    bad = ~good[factor.codes]
    if bad.any():
      texts = factor.texts()
      self.refuse(column, bad, lambda row: f"'{texts[factor.codes[row]]:.80}' is not a number")
      return np.where(bad, 0.0, parsed[factor.codes])
    return parsed[factor.codes]


def from_pandas(frame: pd.DataFrame, where: str = "the table") -> Table:
  """Converts a DataFrame; its index gives the lines of the rows."""
  _require_distinct(list(map(str, frame.columns)), where)
  columns: dict[str, Any] = {}
  for name in frame.columns:
    try:
      columns[str(name)] = _combined(pa.array(frame[name], from_pandas=True))
    except (pa.ArrowException, OverflowError, UnicodeError):  # Mixed types, or no Arrow values.
      columns[str(name)] = list(frame[name])
  return Table(columns, len(frame), where, np.asarray(frame.index))


def from_arrow(
  table: pa.Table | pa.RecordBatch, where: str = "the table", first_line: int = 1, file: int = 0
) -> Table:
  """Converts an Arrow table; its first row has the line `first_line`."""
  _require_distinct(table.schema.names, where)
  columns = {name: _combined(table.column(name)) for name in table.schema.names}
  lines = range(first_line, first_line + table.num_rows)
  return Table(columns, table.num_rows, where, lines, file=file)


def _require_distinct(names: Sequence[str], where: str) -> None:
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise UserError(f"{where}: has the column '{twice}' twice; remove or rename one")


def from_rows(rows: Sequence[Mapping[str, Any]], where: str = "the rows") -> Table:
  """Converts rows, each a dict from column to value; an absent key is a missing value."""
  require(len(rows) > 0, f"{where}: no rows")
  names = dict.fromkeys(name for row in rows for name in row)
  return Table({name: [row.get(name) for row in rows] for name in names}, len(rows), where)


def to_table(rows: Any, where: str = "the table") -> Table:
  """Converts rows of any kind that a user has: see from_pandas, from_arrow, from_rows."""
  if isinstance(rows, Table):
    return rows
  if isinstance(rows, pd.DataFrame):
    return from_pandas(rows, where)
  if isinstance(rows, pa.Table | pa.RecordBatch):
    return from_arrow(rows, where)
  if isinstance(rows, Mapping):
    rows = [rows]
  is_rows = isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows)
  require(is_rows, f"{where}: must be a DataFrame, an Arrow table, a dict or a list of dicts")
  return from_rows(rows, where)


def _combined(column: pa.Array | pa.ChunkedArray) -> pa.Array:
  if isinstance(column, pa.ChunkedArray):
    column = column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column
    column = column.combine_chunks()
    # Old versions of Arrow return a chunked array of one chunk.
    if isinstance(column, pa.ChunkedArray):
      column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
  return column


def _is_text(kind: pa.DataType) -> bool:
  if pa.types.is_dictionary(kind):
    return _is_text(kind.value_type)
  checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null, pa.types.is_string_view)
  return any(check(kind) for check in checks)


def _is_list(kind: pa.DataType) -> bool:
  return any(
    check(kind) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
  )


def _values_of(value: Any, separator: str, markers: Sequence[str]) -> list[Any]:
  """Returns the values of a cell of a multi-valued column: those of a list, or parts of a text."""
  if isinstance(value, list | tuple | set | np.ndarray):
    return list(value)
  text = text_of(value)
  return [] if text == MISSING or text in markers else text.split(separator)


def _factor_list(values: Sequence[Any]) -> Factor:
  if len(values) == 1:
    return Factor(SINGLE, [text_of(values[0])])
  distinct, codes = _index_of([text_of(value) for value in values])
  return Factor(np.asarray(codes, np.int64), distinct)


def _index_of(texts: Sequence[str]) -> tuple[list[str], list[int]]:
  """Returns the distinct texts in order of appearance, and the position of each text there."""
  index: dict[str, int] = {}
  codes = [index.setdefault(text, len(index)) for text in texts]
  return list(index), codes


def _factor_array(array: pa.Array) -> Factor:
  encoded = array if pa.types.is_dictionary(array.type) else pc.dictionary_encode(array)
  if isinstance(encoded, pa.ChunkedArray):
    encoded = _combined(encoded)
  values = encoded.dictionary
  codes = encoded.indices
  codes_N = np.asarray(codes.fill_null(-1) if codes.null_count else codes).astype(np.int64)
  if _is_text(values.type) and not pa.types.is_null(values.type):
    texts = pc.utf8_trim(values.cast(pa.string()), SPACES)
    if texts.null_count:
      texts = texts.fill_null(MISSING)
  elif pa.types.is_integer(values.type):
    texts = values.cast(pa.string())
  else:
    if pa.types.is_float32(values.type):
      scalars: Sequence[Any] = list(values.to_numpy(zero_copy_only=False))
    else:
      scalars = values.to_pylist()
    texts = pa.array([text_of(value) for value in scalars], pa.string())
  if codes.null_count:
    texts = pa.concat_arrays([texts, pa.array([MISSING])])
    codes_N[codes_N < 0] = len(texts) - 1
  distinct = pc.dictionary_encode(texts)
  if len(distinct.dictionary) == len(texts):
    return Factor(codes_N, texts)
  return Factor(np.asarray(distinct.indices)[codes_N], distinct.dictionary)


def _replace_missing(factor: Factor, markers: Sequence[str]) -> Factor:
  """Returns a column in which the texts that stand for a missing value are missing."""
  if not markers:
    return factor
  distinct, codes = _index_of([MISSING if t in markers else t for t in factor.texts()])
  return Factor(np.asarray(codes, np.int64)[factor.codes], distinct)


def _without_missing(rows: np.ndarray, values: Factor) -> Lists:
  is_value = np.array([text != MISSING for text in values.texts()], bool)
  if is_value.all() or not len(rows):
    return Lists(rows, values)
  keep = is_value[values.codes]
  return Lists(rows[keep], Factor(values.codes[keep], values.values))
