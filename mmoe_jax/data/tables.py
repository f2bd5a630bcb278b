"""Reading of raw tables from CSV files, and writing of scores."""

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

_LARGEST = 1e30


def read_table(path: str, columns: Sequence[str]) -> pd.DataFrame:
  """Reads comma-separated rows, every value as a stripped string; quotes are optional.

  A first line with column names is a header; columns may then be in any order, and some may be
  absent. Without a header, each line has all of `columns`, in their order.

  Args:
    path: the file, plain, or compressed if its name ends with .gz.
    columns: names of the raw columns, in their order.

  Returns:
    The rows in their order; columns are categorical, the index is the line number of each row.

  Raises:
    UserError: naming the file, and the line that has the wrong number of columns.
    OSError: if the file cannot be read.
  """
  _require_readable(path, len(columns))
  with _user_errors(path, columns):
    first = pd.read_csv(path, nrows=1, **_options(path)).iloc[0]
  first = [str(value).strip() for value in first]
  has_header = any(name in columns for name in first)
  names = first if has_header else list(columns)
  for name in names:
    require_known(name, columns, f"{path}, line 1: a column of the header")
  require(len(set(names)) == len(names), f"{path}, line 1: the header repeats a column; remove one")
  frame = _read_plain(path, names, has_header)
  if frame is None:
    with _user_errors(path, columns):
      frame = _read_any(path, names, has_header)
  require(len(frame) > 0, f"{path}: no rows")
  frame.index = pd.RangeIndex(1 + has_header, 1 + has_header + len(frame))
  return frame


def _require_readable(path: str, columns: int) -> None:
  """Validates that a path is a file whose first line is not empty; it is read several times."""
  require(
    "\0" not in path and path.encode("utf-8", "ignore").decode() == path,
    f"{path!r}: contains characters that no file name has, or that the locale cannot express",
  )
  require(
    os.path.isfile(path) or not os.path.exists(path),
    f"{path}: must be a file, not a folder, pipe or device",
  )
  with _user_errors(path, ()), _open(path, "rb") as file:
    first, more = file.readline(1 << 20), file.read(1)
    is_blank = not first.strip() and bool(more)
    require(not is_blank, f"{path}, line 1: is empty, must have {columns} columns")


def _read_plain(path: str, names: Sequence[str], has_header: bool) -> pd.DataFrame | None:
  """Reads a file without quotes or errors, several times as fast as pandas.

  Returns None for any other file, which `_read_any` reads, or finds the error in.
  """
  if path.endswith(".gz"):
    return None
  # Arrow allows quotes only at the start of a value; here spaces may come before them.
  quotes, commas = _count(path, b'"', b",")
  if quotes:
    return None
  text = pa.dictionary(pa.int32(), pa.string())
  try:
    table = pa_csv.read_csv(
      path,
      pa_csv.ReadOptions(column_names=names, skip_rows=int(has_header), block_size=1 << 22),
      pa_csv.ParseOptions(ignore_empty_lines=False, quote_char=False),
      pa_csv.ConvertOptions(column_types=dict.fromkeys(names, text), strings_can_be_null=False),
    )
  except (pa.ArrowInvalid, pa.ArrowKeyError):
    return None
  # Arrow reads an empty line as a row of empty values.
  if commas != (len(table) + has_header) * (len(names) - 1):
    return None
  return table.unify_dictionaries().to_pandas().apply(_strip)


def _strip(column: pd.Series) -> pd.Series:
  """Returns a categorical column with its strings stripped of white space."""
  stripped = column.cat.categories.str.strip()
  if stripped.is_unique:
    return column.cat.rename_categories(stripped)
  return pd.Series(stripped.to_numpy(object)[column.cat.codes], dtype="category")


def _read_any(path: str, names: Sequence[str], has_header: bool) -> pd.DataFrame:
  """Reads a file with pandas; raises the errors that `_user_errors` translates."""
  # An extra name catches lines with one column too many; missing columns come back empty.
  extra = "\0extra"
  frame = pd.read_csv(path, names=[*names, extra], skiprows=int(has_header), **_options(path))
  # pandas pads short lines silently, so lines are checked if commas or last values are suspicious.
  commas = (len(frame) + has_header) * (len(names) - 1)
  is_padded = bool(((frame[extra] != "") | (frame[names[-1]] == "")).any())
  if is_padded or _count(path, b",") != [commas]:
    _require_columns(path, names)
  return frame.drop(columns=extra).apply(lambda column: column.str.strip().astype("category"))


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
def _user_errors(path: str, columns: Sequence[str]) -> Iterator[None]:
  """Turns pandas' errors for a broken table into UserError."""
  try:
    yield
  except pd.errors.EmptyDataError as error:
    raise UserError(f"{path}: the file is empty") from error
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise UserError(f"{path}: not a gzip file, or damaged: {error}") from error
  except (pd.errors.ParserError, UnicodeDecodeError, csv.Error) as error:
    reason = str(error).replace("Error tokenizing data. C error: ", "").strip()
    raise UserError(f"{path}: not a table of {len(columns)} columns: {reason}") from error


def parse_numbers(frame: pd.DataFrame, column: str, where: str, least: float = 0.0) -> np.ndarray:
  """Parses a column of strings as float64.

  Args:
    frame: rows, indexed by line number.
    column: name of the column.
    where: name of the table in errors.
    least: smallest allowed number.

  Raises:
    UserError: naming the line of a value that is not a number, not finite, or too small.
  """
  # Values repeat, so parsing only the distinct ones is several times faster.
  codes, values = pd.factorize(frame[column])
  values = np.asarray(values, object)
  parsed = pd.to_numeric(pd.Series(values), errors="coerce").to_numpy(np.float64)
  # Models compute in float32, where larger numbers are infinite.
  bad = ~((np.abs(parsed) <= _LARGEST) & (parsed >= least))
  if bad.any():
    row = int(np.argmax(bad[codes]))
    raise UserError(
      f"{where}, line {frame.index[row]}, column '{column}': "
      f"'{values[codes[row]]}' is not a number"
      + (f" >= {least:g}" if np.isfinite(least) else "")
      + (f" up to {_LARGEST:g}" if abs(parsed[codes[row]]) > _LARGEST else "")
    )
  return parsed[codes]


def floats_as_csv(columns: Mapping[str, np.ndarray]) -> str:
  """Formats columns of floats as CSV with a header; parsing it returns the same floats."""
  header = io.StringIO()
  csv.writer(header, lineterminator="\n").writerow(columns)
  # Arrow writes the shortest digits that identify a float.
  body = pa.BufferOutputStream()
  numbered = {str(i): values for i, values in enumerate(columns.values())}
  pa_csv.write_csv(pa.table(numbered), body, pa_csv.WriteOptions(include_header=False))
  return header.getvalue() + body.getvalue().to_pybytes().decode()


def _open(path: str, mode: str) -> IO[Any]:
  text = {"encoding": "utf-8", "newline": ""} if "t" in mode else {}
  return (gzip.open if path.endswith(".gz") else open)(path, mode, **text)


def _count(path: str, *of: bytes) -> list[int]:
  """Counts the occurrences of each byte in a file."""
  counts = [0] * len(of)
  with _open(path, "rb") as file:
    while block := file.read(1 << 20):
      counts = [n + block.count(byte) for n, byte in zip(counts, of, strict=True)]
  return counts


def _require_columns(path: str, names: Sequence[str]) -> None:
  """Raises UserError for the first line with another number of columns than `names`."""
  with _open(path, "rt") as file:
    reader = csv.reader(file, skipinitialspace=True)
    for row in reader:
      found = max(1, len(row))
      if found != len(names):
        raise UserError(
          f"{path}, line {reader.line_num}: has {found} columns, must have {len(names)}; "
          f"the last one is '{names[-1]}'"
        )
