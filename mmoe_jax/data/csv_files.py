r"""CSV files: header, cutting into pieces at line ends, parsing of a piece.

Quotes are optional, white space around values is no part of them. Lines end with \n or \r\n.
"""

import contextlib
import csv
import difflib
import gzip
import io
import itertools
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv

from mmoe_jax.data import locations
from mmoe_jax.errors import UserError, require, require_known

_BLOCK = 1 << 22  # Bytes that are scanned at a time.
_LONGEST_HEADER = 1 << 20
_LONGEST_LINE = 1 << 24  # Parsing takes ten times as much memory; no table has such lines.
_LEAST_FREE = 1 << 29  # Bytes of the disk that decompression leaves free.
csv.field_size_limit(1 << 30)  # The library's limit is 131,072 characters.


def read_header(
  path: str, columns: Sequence[str], separator: str, has_header: bool | None
) -> tuple[tuple[str, ...], int]:
  """Returns the names of a file's columns, and the bytes of its header line, 0 if it has none.

  Args:
    path: the file.
    columns: names of the columns, for files without a header.
    separator: the separator of values.
    has_header: whether the first line is a header; None: if one of `columns` is in it.

  Raises:
    UserError: for an empty first line, a repeated name, or a name that looks like one of `columns`
      misspelt.
  """
  with locations.open_input(path) as file:
    start = file.read(_LONGEST_HEADER)
  require(bool(start), f"{path}: the file is empty")
  line, end, rest = start.partition(b"\n")
  require(
    bool(line.strip()) or not (rest or end),
    f"{path}, line 1: is empty, must have {len(columns) or 'the names of the'} columns",
  )
  with user_errors(path, columns):
    text = line.decode("utf-8-sig")
    first = next(csv.reader([text], delimiter=separator, skipinitialspace=True), [])
  first = [value.strip() for value in first]
  if has_header is None:
    has_header = any(name in columns for name in first)
  if not has_header:
    return tuple(columns), 0
  for name in first:
    require(bool(name), f"{path}, line 1: a column of the header has no name")
    absent = [column for column in columns if column not in first]
    if name not in columns and difflib.get_close_matches(name, absent, n=1):
      require_known(name, columns, f"{path}, line 1: a column of the header")
  require(len(set(first)) == len(first), f"{path}, line 1: the header repeats a column; remove one")
  return tuple(first), len(line) + len(end)


def cut(path: str, start: int, size: int, target: int) -> list[tuple[int, int, int]]:
  """Cuts a file at line ends into pieces of about `target` bytes.

  A line end with an odd number of quotes before it is inside a value and is not cut at.

  Args:
    path: the file.
    start: bytes of its header line.
    size: its bytes.
    target: bytes of a piece.

  Returns:
    Start, end and number of the first line of each piece.

  Raises:
    UserError: for a piece that finds no line end.
  """
  lines = 1 + bool(start)
  if size - start <= target:
    return [(start, size, lines)] if size > start else []
  pieces, begin, first_line, quotes = [], start, lines, 0
  with locations.open_input(path) as file:
    file.seek(start)
    at = start
    while block := file.read(_BLOCK):
      done = 0
      while at + len(block) - begin >= target:
        end = block.find(b"\n", max(done, begin + target - at)) + 1
        while end and (quotes + block.count(b'"', done, end)) % 2:
          end = block.find(b"\n", end) + 1
        if not end:
          break
        quotes += block.count(b'"', done, end)
        lines += block.count(b"\n", done, end)
        pieces.append((begin, at + end, first_line))
        begin, first_line, done = at + end, lines, end
      quotes += block.count(b'"', done)
      lines += block.count(b"\n", done)
      at += len(block)
      require(
        at - begin < target + _LONGEST_LINE,
        f"{path}: after line {first_line}, more than {_LONGEST_LINE >> 20} MiB without a line end "
        "outside of quotes; is it a table, and is a quote not closed?",
      )
  return [*pieces, (begin, size, first_line)] if begin < size else pieces


def parse(
  content: bytes,
  names: Sequence[str],
  separator: str,
  path: str,
  first_line: int,
  plain: Sequence[str] = (),
) -> pa.Table:
  """Parses lines of a CSV file.

  Args:
    content: the lines.
    names: names of the columns.
    separator: the separator of values.
    path: file, for errors.
    first_line: number of the first line, for errors.
    plain: columns of mostly different values, which are not worth a dictionary.

  Raises:
    UserError: naming a line that has another number of columns.
  """
  table = _parse_fast(content, names, separator, plain)
  if table is not None:
    return table
  _require_short_lines(content, path, first_line)
  return _parse_any(content, names, separator, path, first_line)


def _require_short_lines(content: bytes, path: str, first_line: int) -> None:
  at = 0
  for line in itertools.count(first_line):
    end = content.find(b"\n", at, at + _LONGEST_LINE)
    if end < 0:
      require(
        len(content) - at < _LONGEST_LINE,
        f"{path}, line {line}: is longer than {_LONGEST_LINE >> 20} MiB; is it a table?",
      )
      return
    at = end + 1


def _parse_fast(
  content: bytes, names: Sequence[str], separator: str, plain: Sequence[str]
) -> pa.Table | None:
  """Parses lines without errors, several times as fast as pandas; returns None for others."""
  quotes = content.count(b'"')
  if quotes:
    # Arrow allows quotes only at the start of a value; it reads an empty line as empty values.
    mark = separator.encode()
    doubtful = (mark + b' "', mark + b'\t"', b"\n\n", b"\n\r\n", b'\n "')
    if quotes % 2 or content[:1] in (b"\n", b" ", b"\r") or any(d in content for d in doubtful):
      return None
  text = pa.dictionary(pa.int32(), pa.string())
  try:
    table = pa_csv.read_csv(
      pa.BufferReader(content),
      pa_csv.ReadOptions(column_names=names, block_size=1 << 22),
      pa_csv.ParseOptions(
        delimiter=separator,
        ignore_empty_lines=False,
        quote_char='"' if quotes else False,
        newlines_in_values=bool(quotes),
      ),
      pa_csv.ConvertOptions(
        column_types={name: pa.string() if name in plain else text for name in names},
        strings_can_be_null=False,
      ),
    )
  except (pa.ArrowInvalid, pa.ArrowKeyError):
    return None
  if not quotes and content.count(separator.encode()) != len(table) * (len(names) - 1):
    return None
  return table


def _parse_any(
  content: bytes, names: Sequence[str], separator: str, path: str, first_line: int
) -> pa.Table:
  """Parses lines with pandas; raises the errors that `user_errors` translates."""
  # An extra name catches lines with one column too many; missing columns come back empty.
  extra = "\0extra"
  with user_errors(path, names, first_line):
    head = io.StringIO(content[:_LONGEST_HEADER].decode("utf-8", "replace"), newline="")
    if len(next(csv.reader(head, delimiter=separator, skipinitialspace=True), [])) > len(names):
      _require_columns(content, names, separator, path, first_line)  # pandas would print a warning.
    frame = pd.read_csv(
      io.BytesIO(content),
      names=[*names, extra],
      header=None,
      sep=separator,
      dtype=str,
      na_filter=False,
      index_col=False,
      skipinitialspace=True,
      skip_blank_lines=False,
      quoting=csv.QUOTE_MINIMAL,
    )
    # pandas pads short lines silently, so lines are checked if separators or last values are
    # suspicious.
    separators = len(frame) * (len(names) - 1)
    is_padded = bool(((frame[extra] != "") | (frame[names[-1]] == "")).any())
    if is_padded or content.count(separator.encode()) != separators:
      _require_columns(content, names, separator, path, first_line)
  return pa.table({name: pa.array(frame[name], pa.string()) for name in names})


def parse_good_rows(
  content: bytes, names: Sequence[str], separator: str, path: str, first_line: int
) -> tuple[pa.Table, np.ndarray, list[tuple[int, str]]]:
  """Parses the lines that have the right number of columns.

  Returns:
    Their rows, the line of each, and line and fault of the others.
  """
  _require_short_lines(content, path, first_line)
  text = content.decode("utf-8", "replace")
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
  good: list[list[str]] = []
  lines, bad = [], []
  line = first_line
  while True:
    try:
      row = next(reader, None)
    except csv.Error as error:
      row = [f"\ufffd{error}"]
    if row is None:
      break
    is_text = not any("\ufffd" in value for value in row)
    if len(row) == len(names) and is_text:
      good.append(row)
      lines.append(line)
    else:
      fault = f"has {max(1, len(row))} columns, must have {len(names)}" if is_text else "not UTF-8"
      bad.append((line, fault))
    line = first_line + reader.line_num
  columns = zip(*good, strict=True) if good else [()] * len(names)
  table = pa.table({n: pa.array(c, pa.string()) for n, c in zip(names, columns, strict=True)})
  return table, np.array(lines, np.int64), bad


def _require_columns(
  content: bytes, names: Sequence[str], separator: str, path: str, first_line: int
) -> None:
  """Raises UserError for the first line with another number of columns than `names`."""
  lines = io.StringIO(content.decode("utf-8"), newline="")
  reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
  for row in reader:
    found = max(1, len(row))
    if found != len(names):
      raise UserError(
        f"{path}, line {first_line + reader.line_num - 1}: has {found} columns, must have "
        f"{len(names)}; the last one is '{names[-1]}'"
      )


@contextlib.contextmanager
def user_errors(path: str, columns: Sequence[str], first_line: int = 1) -> Iterator[None]:
  """Turns the libraries' errors for a broken table into UserError."""
  try:
    yield
  except pd.errors.EmptyDataError as error:
    raise UserError(f"{path}: the file is empty") from error
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise UserError(f"{path}: not a gzip file, or damaged: {error}") from error
  except (pd.errors.ParserError, UnicodeDecodeError, csv.Error) as error:
    reason = str(error).replace("Error tokenizing data. C error: ", "").strip()
    after = f" (lines counted from line {first_line})" if first_line > 2 else ""
    raise UserError(f"{path}: not a table of {len(columns)} columns: {reason}{after}") from error


def decompress(path: str, target: str) -> None:
  """Decompresses a .gz file, local or remote, into a local file.

  Raises:
    UserError: if it is damaged, or would fill the disk.
  """
  with (
    user_errors(path, ()),
    locations.open_input(path) as source,
    gzip.open(source) as file,
    open(target, "wb") as output,
  ):
    folder = os.path.dirname(os.path.abspath(target))
    while block := file.read(_BLOCK):
      output.write(block)
      require(
        shutil.disk_usage(folder).free >= _LEAST_FREE,
        f"{path}: decompressed, it does not fit on the disk of {folder}; free some space, or set "
        "TMPDIR",
      )
