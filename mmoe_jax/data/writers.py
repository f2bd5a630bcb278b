"""Writing of scores, as CSV or Parquet, in parts that are joined at the end."""

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from mmoe_jax.data.tables import is_parquet


def floats_as_csv(columns: Mapping[str, np.ndarray]) -> str:
  """Formats columns of floats as CSV with a header; parsing it returns the same floats."""
  return header_line(list(columns)) + rows_as_csv(pa.table(dict(columns))).decode()


def header_line(names: Sequence[str]) -> str:
  """Returns the header of a CSV file."""
  line = io.StringIO()
  csv.writer(line, lineterminator="\n").writerow(names)
  return line.getvalue()


def rows_as_csv(table: pa.Table) -> bytes:
  """Formats rows as CSV without a header; floats have the shortest digits that identify them."""
  body = pa.BufferOutputStream()
  numbered = table.rename_columns([str(i) for i in range(table.num_columns)])
  try:
    pa_csv.write_csv(
      numbered, body, pa_csv.WriteOptions(include_header=False, quoting_style="none")
    )
  except pa.ArrowInvalid:  # A text with a comma or quote; now all texts get quotes.
    body = pa.BufferOutputStream()
    pa_csv.write_csv(
      numbered, body, pa_csv.WriteOptions(include_header=False, quoting_style="needed")
    )
  return body.getvalue().to_pybytes()


def write_part(table: pa.Table, path: str, as_parquet: bool) -> None:
  """Writes the rows of a part, for `join_parts`."""
  if as_parquet:
    # Read once more soon: speed matters, size does not.
    pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    return
  with open(path, "wb") as file:
    file.write(rows_as_csv(table))


def join_parts(paths: Sequence[str], names: Sequence[str], path: str, output: str) -> None:
  """Joins parts into one file.

  Args:
    paths: files of `write_part`, in order.
    names: names of the columns.
    path: file to write.
    output: name of the final file, which tells its form.
  """
  if not is_parquet(output):
    with open(path, "wb") as file:
      file.write(header_line(names).encode())
      for part in paths:
        _append(part, file)
    return
  with pq.ParquetWriter(path, pq.read_schema(paths[0])) as writer:
    for part in paths:
      with pq.ParquetFile(part) as file:
        for batch in file.iter_batches(1 << 17):
          writer.write_batch(batch)


def _append(source: str, target: IO[Any]) -> None:
  with open(source, "rb") as file:
    shutil.copyfileobj(file, target, 1 << 22)
