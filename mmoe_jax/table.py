"""Reading raw tables and writing files: no bad input passes, nothing is half-written."""

import contextlib
import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv

from mmoe_jax.errors import UserError, require, require_known


def read_table(path: str, columns: Sequence[str]) -> pd.DataFrame:
  """Reads raw rows, comma separated, every value as a stripped string; quotes are optional.

  A first line that holds column names is taken as a header; the columns may then be in any
  order and some may be absent. Without one, each line has all of `columns`, in their order.

  Args:
    path: the file, plain or, where its name ends so, .gz.
    columns: the names of the raw columns, in their order.

  Returns:
    The rows in their order, each column a categorical, as values repeat; the index is the number
    of the line that each stands on.

  Raises:
    UserError: naming the file, and the line where its number of columns is wrong.
    OSError: when the file cannot be read.
  """
  with _faults_of(path, columns):
    first = pd.read_csv(path, nrows=1, **_options(path)).iloc[0]
  first = [str(value).strip() for value in first]
  header = any(name in columns for name in first)
  names = first if header else list(columns)
  for name in names:
    require_known(name, columns, f"{path}, line 1: a column of the header")
  require(len(set(names)) == len(names), f"{path}, line 1: the header names a column twice")
  frame = _read_plain(path, names, header)
  if frame is None:
    with _faults_of(path, columns):
      frame = _read_any(path, names, header)
  require(len(frame) > 0, f"{path}: no rows")
  frame.index = pd.RangeIndex(1 + header, 1 + header + len(frame))
  return frame


def _read_plain(path: str, names: Sequence[str], header: bool) -> pd.DataFrame | None:
  """Reads a file without quotes or faults, as nearly all are, several times as fast as pandas.

  Returns None for any other: it takes the way of `_read_any`, which knows what is wrong and where.
  """
  if path.endswith(".gz"):
    return None
  # Arrow takes quotes only at the very beginning of a value, and here spaces may stand before.
  quotes, commas = _count(path, b'"', b",")
  if quotes:
    return None
  text = pa.dictionary(pa.int32(), pa.string())
  try:
    table = pa_csv.read_csv(
      path,
      pa_csv.ReadOptions(column_names=names, skip_rows=int(header), block_size=1 << 22),
      pa_csv.ParseOptions(ignore_empty_lines=False, quote_char=False),
      pa_csv.ConvertOptions(column_types=dict.fromkeys(names, text), strings_can_be_null=False),
    )
  except (pa.ArrowInvalid, pa.ArrowKeyError):
    return None
  # It reads an empty line as a row of empty values.
  if commas != (len(table) + header) * (len(names) - 1):
    return None
  return table.unify_dictionaries().to_pandas().apply(_strip)


def _strip(column: pd.Series) -> pd.Series:
  """A categorical column of strings without spaces at their ends."""
  stripped = column.cat.categories.str.lstrip(" ").str.rstrip()
  if stripped.is_unique:
    return column.cat.rename_categories(stripped)
  return pd.Series(stripped.to_numpy(object)[column.cat.codes], dtype="category")


def _read_any(path: str, names: Sequence[str], header: bool) -> pd.DataFrame:
  """Reads a file with pandas; raises what `_faults_of` knows."""
  # One name too many catches lines with a column too many; absent columns come back empty.
  extra = "\0extra"
  frame = pd.read_csv(path, names=[*names, extra], skiprows=int(header), **_options(path))
  # Short and long lines are padded by pandas without a word. Counting commas is a fraction of
  # parsing; only where the count or a padded value is suspicious is every line looked at.
  commas = (len(frame) + header) * (len(names) - 1)
  padded = bool(((frame[extra] != "") | (frame[names[-1]] == "")).any())
  if padded or _count(path, b",") != [commas]:
    _require_columns(path, names)
  return frame.drop(columns=extra).apply(lambda column: column.str.rstrip().astype("category"))


def _options(path: str) -> dict[str, Any]:
  return {
    "header": None,
    "dtype": str,
    "na_filter": False,
    "index_col": False,
    "skipinitialspace": True,
    "skip_blank_lines": False,
    "quoting": csv.QUOTE_MINIMAL,
    "compression": "gzip" if path.endswith(".gz") else None,
  }


@contextlib.contextmanager
def _faults_of(path: str, columns: Sequence[str]) -> Iterator[None]:
  """Turns what pandas raises for a broken table into one line for the user."""
  try:
    yield
  except pd.errors.EmptyDataError as error:
    raise UserError(f"{path}: the file is empty") from error
  except (pd.errors.ParserError, UnicodeDecodeError, EOFError, zlib.error) as error:
    reason = str(error).replace("Error tokenizing data. C error: ", "").strip()
    raise UserError(f"{path}: not a table of {len(columns)} columns: {reason}") from error


def parse_numbers(frame: pd.DataFrame, column: str, where: str, least: float = 0.0) -> np.ndarray:
  """A column of strings as float64.

  Args:
    frame: rows whose index is the line that each stands on.
    column: the name of the column.
    where: what to call the table in errors.
    least: the smallest number that there may be.

  Raises:
    UserError: naming the line of a value that is no number, not finite, or too small.
  """
  # Values repeat, so that parsing the distinct ones is most of an order faster.
  codes, values = pd.factorize(frame[column])
  values = np.asarray(values, object)
  parsed = pd.to_numeric(pd.Series(values), errors="coerce").to_numpy(np.float64)
  bad = ~(np.isfinite(parsed) & (parsed >= least))
  if bad.any():
    row = int(np.argmax(bad[codes]))
    raise UserError(
      f"{where}, line {frame.index[row]}, column '{column}': "
      f"'{values[codes[row]]}' is not a number" + (f" >= {least:g}" if np.isfinite(least) else "")
    )
  return parsed[codes]


def floats_as_csv(columns: Mapping[str, np.ndarray]) -> str:
  """Columns of floats as comma-separated text with a header; reading gives back the very floats."""
  header = io.StringIO()
  csv.writer(header, lineterminator="\n").writerow(columns)
  # Arrow writes the shortest digits that give a float back.
  body = pa.BufferOutputStream()
  numbered = {str(i): values for i, values in enumerate(columns.values())}
  pa_csv.write_csv(pa.table(numbered), body, pa_csv.WriteOptions(include_header=False))
  return header.getvalue() + body.getvalue().to_pybytes().decode()


def write_atomically(path: str, text: str) -> None:
  """Writes text beside `path` and renames, so that no reader sees half a file."""
  with _beside(path) as beside, open(beside, "w", encoding="utf-8") as file:
    file.write(text)


def save_array(path: str, array: np.ndarray) -> None:
  """Writes an array in NumPy's format beside `path` and renames."""
  with _beside(path) as beside, open(beside, "wb") as file:
    np.save(file, array)


@contextlib.contextmanager
def _beside(path: str) -> Iterator[str]:
  """A name beside `path`; what was written there takes its place unless an error came."""
  beside = f"{path}.{os.getpid()}.part"
  try:
    yield beside
    os.replace(beside, path)
  finally:
    if os.path.exists(beside):
      os.remove(beside)


def _open(path: str, mode: str) -> IO[Any]:
  text = {"encoding": "utf-8", "newline": ""} if "t" in mode else {}
  return (gzip.open if path.endswith(".gz") else open)(path, mode, **text)


def _count(path: str, *of: bytes) -> list[int]:
  """How often each byte is in a file."""
  counts = [0] * len(of)
  with _open(path, "rb") as file:
    while block := file.read(1 << 20):
      counts = [n + block.count(byte) for n, byte in zip(counts, of, strict=True)]
  return counts


def _require_columns(path: str, names: Sequence[str]) -> None:
  """Raises UserError for the first line that has not as many columns as `names`."""
  with _open(path, "rt") as file:
    reader = csv.reader(file, skipinitialspace=True)
    for row in reader:
      found = max(1, len(row))
      if found != len(names):
        raise UserError(
          f"{path}, line {reader.line_num}: {found} columns instead of {len(names)}; "
          f"the last should be '{names[-1]}'"
        )
