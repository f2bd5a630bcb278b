"""Reading of raw tables in parts: CSV (also .gz) and Parquet, local or in object storage.

A plan lists the parts of the files. Each is read when it is needed, by any process, in batches of
bounded size; so a table may be larger than memory.
"""

import contextlib
import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from mmoe_jax.data import csv_files, locations
from mmoe_jax.data.columns import Table, from_arrow
from mmoe_jax.errors import UserError, did_you_mean, require

BATCH = 1 << 17  # Rows that are in memory at a time.
SMALL = 1 << 28  # Bytes of input that are read as one part.
PART_BYTES = 1 << 25  # Bytes of a part of CSV files; of Parquet, BATCH times _BATCHES rows.
_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class Format:
  """Form of a table's files.

  Attributes:
    columns: names of the columns of CSV files without a header, in their order.
    separator: separator of values in CSV files.
    has_header: whether CSV files have a header; None: if their first line has one of `columns`.
  """

  columns: tuple[str, ...] = ()
  separator: str = ","
  has_header: bool | None = True


@dataclasses.dataclass(frozen=True)
class Piece:
  """Consecutive rows of a file.

  Attributes:
    path: the file, decompressed.
    name: the file as the user gave it.
    start: first byte (CSV) or row group (Parquet).
    end: end of the bytes or row groups.
    first_line: line of the first row; of Parquet, the number of the row from 1.
    names: names of the columns.
    size: bytes of the file when the plan was made.
    modified: time of its last change in nanoseconds.
    separator: separator of values (CSV).
    file: number of the file among all.
    headers: lines of the file's header.
  """

  path: str
  name: str
  start: int
  end: int
  first_line: int
  names: tuple[str, ...]
  size: int
  modified: int
  separator: str = ","
  file: int = 0
  headers: int = 0


@dataclasses.dataclass(frozen=True)
class Part:
  """Pieces that are read together."""

  pieces: tuple[Piece, ...]


def is_parquet(path: str) -> bool:
  """Returns whether a path names a Parquet file."""
  return path.endswith((".parquet", ".pq"))


def plan(
  paths: Sequence[str],
  form: Format,
  scratch: str = "",
  part_bytes: int = 0,
  needed: Sequence[str] = (),
  first_file: int = 0,
) -> list[Part]:
  """Cuts files into parts.

  Args:
    paths: the files.
    form: their form.
    scratch: local folder for decompressed files; needed for .gz files.
    part_bytes: bytes of a part; 0: one part if all files have at most SMALL bytes together,
      otherwise parts of a size that suits several processes.
    needed: columns that every file must have, with one type.
    first_file: number of the first file, see Piece.

  Raises:
    UserError: if a file is empty, not a table, or has other columns than the first one.
    OSError: if a file cannot be read.
  """
  sizes = {}
  for path in paths:
    locations.require_readable(path)
    sizes[path] = locations.stat(path)
  if not part_bytes:
    total = sum(size for size, _ in sizes.values())
    part_bytes = SMALL if total <= SMALL else PART_BYTES
  pieces: list[tuple[Piece, int]] = []
  first: pa.Schema | None = None
  names: tuple[str, ...] | None = None
  for number, path in enumerate(paths, first_file):
    if is_parquet(path):
      first = _require_same_schema(path, first, needed)
      found = list(_pieces_of_parquet(path, *sizes[path], part_bytes))
      pieces += [(dataclasses.replace(piece, file=number), weight) for piece, weight in found]
      continue
    found = [
      (dataclasses.replace(piece, file=number), weight)
      for piece, weight in _pieces_of_csv(path, form, *sizes[path], part_bytes, scratch)
    ]
    require(bool(found), f"{path}: no rows")
    _require_names(path, found[0][0].names, names or needed)
    names = names or (found[0][0].names if form.has_header else None)
    pieces += found
  return _group(pieces, part_bytes)


def read(
  part: Part,
  columns: Sequence[str] = (),
  plain: Sequence[str] = (),
  collects_bad: bool = False,
) -> Iterator[Table]:
  """Reads the rows of a part, in order, in tables of bounded size.

  Args:
    part: the part.
    columns: columns to read; empty for all.
    plain: columns of mostly different values, such as measurements.
    collects_bad: whether the tables collect bad rows, see Table.bad.

  Raises:
    UserError: if a file has changed since the plan, or is broken.
    OSError: if it cannot be read.
  """
  for piece in part.pieces:
    if locations.stat(piece.path) != (piece.size, piece.modified):
      raise UserError(f"{piece.name}: changed while it was read; start again")
    found = (
      _read_parquet(piece, columns)
      if is_parquet(piece.path)
      else _read_csv(piece, columns, plain, collects_bad)
    )
    for table in found:
      table.bad = {} if collects_bad else None
      yield table


def _read_csv(
  piece: Piece, columns: Sequence[str], plain: Sequence[str], collects_bad: bool
) -> Iterator[Table]:
  content = locations.read_range(piece.path, piece.start, piece.end)
  arguments = (content, piece.names, piece.separator, piece.name, piece.first_line)
  lines, unreadable = None, []
  try:
    table = csv_files.parse(*arguments, plain)
  except UserError:
    if not collects_bad:
      raise
    table, lines, unreadable = csv_files.parse_good_rows(*arguments)
  if columns:
    table = table.select([c for c in table.column_names if c in columns])
  found = from_arrow(table.unify_dictionaries(), piece.name, piece.first_line, piece.file)
  found.unreadable, found.headers = unreadable, piece.headers
  found.lines = found.lines if lines is None else lines
  yield found


def read_table(path: str, columns: Sequence[str] = (), form: Format | None = None) -> Table:
  """Reads a whole file.

  Args:
    path: the file.
    columns: names of the columns of a CSV file, in their order. A first line with names is a
      header; columns may then be in any order, and some may be absent.
    form: another form of the file.

  Raises:
    UserError: naming the file, and the line that has the wrong number of columns.
    OSError: if the file cannot be read.
  """
  form = form or Format(tuple(columns), has_header=None if columns else True)
  with tempfile.TemporaryDirectory() as scratch:
    parts = plan([path], form, scratch, part_bytes=1 << 62)
    tables = [table for part in parts for table in read(part)]
  require(sum(map(len, tables)) > 0, f"{path}: no rows")
  if len(tables) == 1:
    return tables[0]
  merged = {name: pa.chunked_array([t.columns[name] for t in tables]) for name in tables[0].columns}
  return from_arrow(pa.table(merged), path, tables[0].lines[0])


def _pieces_of_csv(
  path: str, form: Format, size: int, modified: int, part_bytes: int, scratch: str
) -> Iterator[tuple[Piece, int]]:
  plain = path
  if path.endswith(".gz"):
    require(bool(scratch), f"{path}: must be decompressed first")
    plain = os.path.join(scratch, f"{hashlib.sha256(path.encode()).hexdigest()[:16]}.csv")
    csv_files.decompress(path, plain)
    size, modified = locations.stat(plain)
  with csv_files.user_errors(path, form.columns):
    names, start = _header(plain, path, form)
  for begin, end, line in csv_files.cut(plain, start, size, part_bytes):
    piece = Piece(
      plain, path, begin, end, line, names, size, modified, form.separator, headers=int(start > 0)
    )
    yield piece, end - begin


def _header(plain: str, path: str, form: Format) -> tuple[tuple[str, ...], int]:
  try:
    return csv_files.read_header(plain, form.columns, form.separator, form.has_header)
  except UserError as error:
    raise UserError(str(error).replace(plain, path)) from error


def _pieces_of_parquet(
  path: str, size: int, modified: int, part_bytes: int
) -> Iterator[tuple[Piece, int]]:
  """Yields a piece for every row group, with its weight in bytes."""
  with _open_parquet(path) as file:
    metadata = file.metadata
    names = tuple(file.schema_arrow.names)
    row = 1
    for group in range(metadata.num_row_groups):
      rows = metadata.row_group(group).num_rows
      # A part of Parquet is counted in rows, since compression hides the size in memory.
      weight = rows * part_bytes // (BATCH * _BATCHES)
      yield Piece(path, path, group, group + 1, row, names, size, modified), weight
      row += rows
  require(row > 1, f"{path}: no rows")


def _group(pieces: Sequence[tuple[Piece, int]], part_bytes: int) -> list[Part]:
  """Groups consecutive pieces into parts of about `part_bytes`; neighbours of a file are joined."""
  parts: list[list[Piece]] = []
  filled = part_bytes
  for piece, weight in pieces:
    if filled + weight > part_bytes and filled:
      parts.append([])
      filled = 0
    filled += weight
    last = parts[-1][-1] if parts[-1] else None
    if last and last.path == piece.path and last.end == piece.start:
      parts[-1][-1] = dataclasses.replace(last, end=piece.end)
    else:
      parts[-1].append(piece)
  return [Part(tuple(part)) for part in parts]


def _read_parquet(piece: Piece, columns: Sequence[str]) -> Iterator[Table]:
  with _open_parquet(piece.path) as file:
    schema = file.schema_arrow
    texts = [
      f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)
    ]
  wanted = [name for name in schema.names if name in columns] if columns else None
  with _open_parquet(piece.path, texts) as file:
    groups = list(range(piece.start, piece.end))
    expected = sum(file.metadata.row_group(group).num_rows for group in groups)
    line = piece.first_line
    for batch in file.iter_batches(BATCH, groups, wanted, use_threads=True):
      batch.validate(full=True)  # A damaged file may have codes beyond a dictionary.
      yield from_arrow(batch, piece.name, line, piece.file)
      line += batch.num_rows
    found = line - piece.first_line
    require(
      found == expected > 0, f"{piece.name}: damaged: has {found:,} rows where it says {expected:,}"
    )


@contextlib.contextmanager
def _open_parquet(path: str, texts: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
  """Opens a Parquet file, and turns Arrow's errors into UserError."""
  with locations.open_input(path) as source:
    try:
      yield pq.ParquetFile(source, read_dictionary=list(texts) or None)
    except pa.ArrowException as error:
      raise UserError(f"{path}: not a Parquet file, or damaged: {error}") from error
    except OSError as error:
      if error.errno is not None:
        raise
      raise UserError(f"{path}: damaged: {error}") from error


def _require_same_schema(path: str, first: pa.Schema | None, needed: Sequence[str]) -> pa.Schema:
  """Validates a Parquet file's columns against those of the first file; returns the first's."""
  with _open_parquet(path) as file:
    schema = file.schema_arrow
  _require_names(path, schema.names, needed)
  if first is None:
    return schema
  for name in needed or first.names:
    if name not in schema.names:
      raise UserError(f"{path}: column '{name}' is missing, which the first file has")
    here, there = schema.field(name).type, first.field(name).type
    require(
      here == there, f"{path}: column '{name}' has the type {here}, in the first file {there}"
    )
  return first


def _require_names(path: str, names: Sequence[str], needed: Sequence[str]) -> None:
  absent = [name for name in needed if name not in names]
  if absent:
    raise UserError(
      f"{path}: column {', '.join(map(repr, absent))} is missing; {did_you_mean(absent[0], names)}"
    )
