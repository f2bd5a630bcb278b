"""Scoring of files: streamed in parts, in bounded memory, resumed after a kill.

  reader threads:  read and encode the next parts
  this thread:     scores a part on the device
  a writer thread: writes the scores of the part before

Shape letters: N rows.
"""

import contextlib
import csv
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from mmoe_jax import cache, data, digests
from mmoe_jax.data import locations, tables, writers
from mmoe_jax.data.columns import Table
from mmoe_jax.errors import UserError, require
from mmoe_jax.files import read_json_object, replacing, write_json
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.workdir import contract, preemption

_UNKNOWN_SHARE = 0.05  # Of unknown values in a column, above which there is a warning.
_AHEAD = 2  # Parts that are read ahead.


@dataclasses.dataclass
class Totals:
  """Counts over the rows that were scored.

  Attributes:
    rows: rows with scores.
    bad: rows that were set aside.
    unknown: column -> number of values outside its vocabulary, and the first of them.
    dropped: column -> values of lists beyond those that the model reads.
  """

  rows: int = 0
  bad: int = 0
  unknown: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
  dropped: dict[str, int] = dataclasses.field(default_factory=dict)

  def add(self, record: Mapping[str, Any]) -> None:
    """Adds the counts of a part."""
    self.rows += record["rows"]
    self.bad += record["bad"]
    for column, (count, value) in record["unknown"].items():
      self.unknown.setdefault(column, [0, value])[0] += count
    for column, count in record["dropped"].items():
      self.dropped[column] = self.dropped.get(column, 0) + count

  def lines(self, schema: data.Schema, where: str) -> list[str]:
    """Returns warnings about unknown and dropped values."""
    found = []
    for column, (count, value) in self.unknown.items():
      if count > _UNKNOWN_SHARE * self.rows:
        feature = next(f for f in schema.id_features if f.sources == (column,))
        found.append(
          f"warning: {where}, column '{column}': {count:,} of {self.rows:,} rows have values that "
          f"training did not contain, such as '{value:.60}' (training had '{feature.values[0]}'); "
          "their scores mean little"
        )
    for column, count in self.dropped.items():
      found.append(
        f"warning: {where}, column '{column}': {count:,} values beyond the first ones of their row "
        "were left out"
      )
    return found


def score_files(
  predictor: Predictor,
  inputs: Sequence[str],
  output: str,
  keep: Sequence[str] = (),
  bad_rows: str = "",
  show_progress: bool = False,
) -> Totals:
  """Scores the rows of files, and writes one file, which appears complete or not at all.

  Args:
    predictor: the predictor.
    inputs: CSV or Parquet files, local or remote.
    output: file to write, Parquet by its name, otherwise CSV; local or remote.
    keep: columns of the input that are copied before the scores.
    bad_rows: CSV file to write of rows that cannot be scored, with the reason of each; empty: the
      first such row is an error.
    show_progress: whether to show a progress bar.

  Raises:
    UserError: naming the error in a file.
    OSError: if a file cannot be read or written.
    Preempted: after the part in hand, if a signal asks to stop, see workdir/preemption.py.
  """
  for flag, path in (("output", output), ("bad_rows", bad_rows)):
    _require_free(predictor, inputs, path, flag)
  names = [*keep, *predictor.columns]
  require(
    len(set(names)) == len(names),
    f"--keep={','.join(keep)}: has the name of a score, or one twice; scores are "
    f"{', '.join(predictor.columns)}",
  )
  totals = Totals()
  with contextlib.ExitStack() as stack:
    scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="mmoe_jax_"))
    form = tables.Format(predictor.schema.columns, predictor.schema.separator, has_header=None)
    parts = tables.plan(inputs, form, scratch, needed=(), part_bytes=_part_bytes(inputs))
    job = _Job(predictor, tuple(keep), bool(bad_rows), tables.is_parquet(output))
    folder = stack.enter_context(_parts_folder(output, job, parts, inputs))
    paths = []
    bar = tqdm(total=len(parts), unit="part", disable=not show_progress, file=sys.stderr)
    with bar, preemption.deferred():
      for path, record in _score_parts(job, parts, folder):
        totals.add(record)
        paths.append(path)
        bar.update()
        preemption.stop_if_requested()
        bar.set_postfix_str(f"{totals.rows:,} rows, {_rate(totals.rows, bar):,.0f} rows/s")
    require(totals.rows > 0, f"{inputs[0]}: no row can be scored")
    if bad_rows:
      _write_bad_rows(paths, bad_rows)
    with _final(output) as target:
      writers.join_parts(paths, names, target, output)
  return totals


def _rate(rows: int, bar: Any) -> float:
  return rows / max(bar.format_dict["elapsed"], 1e-9)


def _part_bytes(inputs: Sequence[str]) -> int:
  total = sum(locations.stat(path)[0] for path in inputs)
  return 0 if total > tables.SMALL else tables.PART_BYTES


@dataclasses.dataclass(frozen=True)
class _Job:
  predictor: Predictor
  keep: tuple[str, ...]
  sets_aside: bool
  as_parquet: bool

  def read(self, part: tables.Part) -> list[tuple[Table, data.EncodedRows]]:
    """Reads and encodes a part."""
    schema = self.predictor.schema
    needed = data.needed_columns(schema)
    plain = [n.name for n in schema.numeric]
    found = []
    for table in tables.read(part, [*needed, *self.keep], plain, collects_bad=self.sets_aside):
      table.require(self.keep)
      found.append((table, self.predictor.encoder(table)))
    return found

  def score_part(
    self, read: Sequence[tuple[Table, data.EncodedRows]]
  ) -> tuple[pa.Table, list[list[str]], Totals]:
    """Scores a part; returns the columns to write, its bad rows and its counts."""
    results, bad, totals = [], [], Totals()
    for table, encoded in read:
      result, rows = self.score(table, encoded)
      results.append(result)
      bad += rows
      totals.add(
        {
          "rows": len(result),
          "bad": len(rows),
          "unknown": encoded.unknown,
          "dropped": encoded.dropped,
        }
      )
    return pa.concat_tables(results), bad, totals

  def score(self, table: Table, encoded: data.EncodedRows) -> tuple[pa.Table, list[list[str]]]:
    """Scores encoded rows; returns the columns to write, and bad rows as file, line, reason."""
    scores = self.predictor.score(data.to_features(self.predictor.schema, encoded))
    for name, values in scores.items():
      is_bad = ~np.isfinite(values)
      if is_bad.any():
        table.refuse(
          name,
          is_bad,
          lambda row: (
            "the score is not finite; check the numbers of this row, or train again if every row "
            "is concerned"
          ),
        )
    columns = {name: _kept(table, name) for name in self.keep} | scores
    result = pa.table(columns)
    bad = table.bad or {}
    if bad:
      result = result.filter(pa.array(~np.isin(np.arange(len(table)), list(bad))))
    rows = [[table.where, str(table.lines[row]), bad[row]] for row in sorted(bad)]
    return result, rows + [[table.where, str(line), reason] for line, reason in table.unreadable]


def _kept(table: Table, name: str) -> pa.Array:
  values = table.columns[name]
  array = pa.array(values) if isinstance(values, list) else values
  return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _score_parts(
  job: _Job, parts: Sequence[tables.Part], folder: str
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields the file and the record of each part, in order; finished ones are not scored again."""
  paths = [os.path.join(folder, f"{i:06d}") for i in range(len(parts))]
  todo = [i for i, path in enumerate(paths) if not os.path.exists(f"{path}.json")]
  with ThreadPoolExecutor(_AHEAD) as readers, ThreadPoolExecutor(1) as writer:
    ahead: dict[int, Future] = {i: readers.submit(job.read, parts[i]) for i in todo[:_AHEAD]}
    waiting = iter(todo[_AHEAD:])
    writing: tuple[str, Future] | None = None
    for i, path in enumerate(paths):
      if i in ahead:
        read = ahead.pop(i).result()
        if (following := next(waiting, None)) is not None:
          ahead[following] = readers.submit(job.read, parts[following])
        scored = job.score_part(read)
        del read
        record = writer.submit(_write_part, job, *scored, path)
      else:
        record = writer.submit(read_json_object, f"{path}.json")
      if writing is not None:
        yield writing[0], writing[1].result()
      writing = (path, record)
    if writing is not None:
      yield writing[0], writing[1].result()


def _write_part(
  job: _Job, result: pa.Table, bad: Sequence[Sequence[str]], part: Totals, path: str
) -> dict[str, Any]:
  """Writes the result of a part and, last, its record, which is returned."""
  writers.write_part(result, path, job.as_parquet)
  if bad:
    with open(f"{path}.bad", "w", encoding="utf-8", newline="") as file:
      csv.writer(file, lineterminator="\n").writerows(bad)
  record = dataclasses.asdict(part)
  write_json(f"{path}.json", record)
  return record


@contextlib.contextmanager
def _parts_folder(
  output: str, job: _Job, parts: Sequence[tables.Part], inputs: Sequence[str]
) -> Iterator[str]:
  """Yields a folder of scored parts, which survives a kill; it is removed at the end."""
  if locations.is_remote(output):
    folder = cache.folder("scores", digests.of_json(output)[:16])
  else:
    path = os.path.abspath(output)
    folder = os.path.join(os.path.dirname(path), f".{os.path.basename(path)[:200]}.parts")
  pieces = [[dataclasses.astuple(p)[1:] for p in part.pieces] for part in parts]
  identity = digests.of_json(
    [pieces, list(inputs), job.predictor.identity, job.keep, job.sets_aside, job.as_parquet]
  )
  label = os.path.join(folder, "identity")
  if os.path.isdir(folder) and not _has_text(label, identity):
    shutil.rmtree(folder)
  os.makedirs(folder, exist_ok=True)
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(contract.locked(folder))
    except BlockingIOError as error:
      raise UserError(f"{output}: another process writes it") from error
    with open(label, "w", encoding="utf-8") as file:
      file.write(identity)
    try:
      yield folder
    except Exception:  # An interrupt leaves the parts; after an error, start again.
      shutil.rmtree(folder, ignore_errors=True)
      raise
    shutil.rmtree(folder)


def _has_text(path: str, text: str) -> bool:
  if not os.path.isfile(path):
    return False
  with open(path, encoding="utf-8") as file:
    return file.read() == text


@contextlib.contextmanager
def _final(output: str) -> Iterator[str]:
  """Yields a local path for the output; it is put in place, or uploaded, when complete."""
  if not locations.is_remote(output):
    with replacing(output) as path:
      yield path
    return
  with tempfile.TemporaryDirectory(prefix="mmoe_jax_") as scratch:
    path = os.path.join(scratch, "scores")
    yield path
    locations.upload(path, output)


def _write_bad_rows(paths: Sequence[str], output: str) -> None:
  with _final(output) as target, open(target, "wb") as file:
    file.write(b"file,line,reason\n")
    for path in paths:
      if os.path.exists(f"{path}.bad"):
        with open(f"{path}.bad", "rb") as part:
          shutil.copyfileobj(part, file)


def _require_free(predictor: Predictor, inputs: Sequence[str], path: str, flag: str) -> None:
  """Raises UserError if a path to write is an input, or a file of the run."""
  if not path or locations.is_remote(path):
    require(path not in inputs, f"--{flag}={path}: is the input; use another file")
    return
  for source in inputs:
    is_input = (
      not locations.is_remote(source) and os.path.exists(path) and os.path.samefile(source, path)
    )
    require(not is_input, f"--{flag}={path}: is the input; use another file")
  contract.require_free(predictor.workdir, path)
