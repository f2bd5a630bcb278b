"""Preparation of a table by its spec: two passes over the parts of its files.

  1. collect:     statistics of the train rows of each part; merged, they give the schema.
  2. encode_part: the rows of each part as arrays, a shard per split.

Parts go to a concurrent.futures.Executor: of this process, of several, or of a cluster. Memory is
bounded by a part per worker and the statistics. The result is the same for any number of workers.

Shape letters: N rows, S splits.
"""

import contextlib
import dataclasses
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from data_prep import arrays, output, parts, saved_statistics, splitting
from data_prep import spec as spec_lib
from data_prep.collecting import collect, merge
from data_prep.fitting import Statistics, fit
from data_prep.part_encoding import encode_part
from data_prep.parts import PartJob, Runner
from mmoe_jax import cache, data, digests, errors
from mmoe_jax.data import locations, tables
from mmoe_jax.files import read_json_object, to_json, write_json
from mmoe_jax.workdir import preemption

_MERGE = 8  # Statistics of parts that are merged at once.
_VERSION = 3  # Of what a partial folder holds.


def prepare(
  spec: spec_lib.Spec,
  groups: Sequence[tuple[Sequence[str], splitting.Splitter]],
  out: str,
  *,
  executor: Executor | None = None,
  workers: int = 1,
  part_bytes: int = 0,
  sources: Mapping[str, str] | None = None,
  progress: Callable[[str, int, int, int], None] | None = None,
) -> data.Schema:
  """Prepares a table.

  Args:
    spec: its spec.
    groups: files, and the splitter of their rows.
    out: output folder, local or remote; see output.resume_folder.
    executor: runs the parts; None for this process.
    workers: number of parts that it runs at a time.
    part_bytes: see tables.plan.
    sources: name -> digest of raw files, stored in the schema.
    progress: called with the pass, finished parts, all parts and rows so far.

  Returns:
    The schema, as saved in `schema.json`.

  Raises:
    UserError: for broken tables, a spec that does not suit them, or an `out` with other files.
    OSError: if a file cannot be read or written.
    Preempted: after the part in hand, if a signal asks to stop, see mmoe_jax/workdir/preemption.py.
  """
  tasks = spec_lib.to_tasks(spec)
  needed = spec_lib.needed_columns(spec, tasks)
  progress = progress or (lambda *_: None)
  with tempfile.TemporaryDirectory(prefix="mmoe_jax_") as scratch:
    jobs, names = _plan(spec, groups, needed, scratch, part_bytes)
    identity = _identity(spec, jobs, out)
    with _folder(out, identity) as folder:
      is_kept = executor is None and _is_small(jobs)  # For the second pass.
      reader = functools.lru_cache(maxsize=None)(parts.read) if is_kept else parts.read
      run = Runner(executor, workers, reader)
      rows, schema = _first_pass(spec, jobs, folder, run, progress, sources or {}, names)
      jobs = _with_folders(jobs, rows, folder, out)
      shards = _second_pass(jobs, folder, run, progress)
      _report_dropped(schema, shards)
      schema = dataclasses.replace(schema, counts=_counts(schema, rows, shards))
      _finish(schema, shards, folder, out)
  return schema


def _plan(
  spec: spec_lib.Spec,
  groups: Sequence[tuple[Sequence[str], splitting.Splitter]],
  needed: Sequence[str],
  scratch: str,
  part_bytes: int,
) -> tuple[list[PartJob], tuple[str, ...]]:
  """Returns a job for each part of all files, and the names of the columns."""
  form = tables.Format(
    () if spec.header else tuple(spec.columns), spec.separator, has_header=spec.header
  )
  jobs = []
  names: tuple[str, ...] = ()
  file = 0
  total = sum(locations.stat(path)[0] for paths, _ in groups for path in paths)
  if not part_bytes and total > tables.SMALL:
    part_bytes = tables.PART_BYTES
  for paths, splitter in groups:
    for part in tables.plan(paths, form, scratch, part_bytes, needed, first_file=file):
      jobs.append(PartJob(spec, part, splitter))
      names = names or part.pieces[0].names
    file += len(paths)
  for name in names:
    errors.require(
      name in spec.columns,
      f"{jobs[0].part.pieces[0].name}: the spec does not name the column '{name}'; "
      f"{errors.did_you_mean(name, spec.columns)} To leave it out: columns.{name} = "
      "{ role = 'ignore' }",
    )
  return jobs, tuple(spec.columns) if not spec.header else names


def _is_small(jobs: Sequence[PartJob]) -> bool:
  pieces = [piece for job in jobs for piece in job.part.pieces]
  return sum({p.path: p.size for p in pieces}.values()) <= tables.SMALL


def _identity(spec: spec_lib.Spec, jobs: Sequence[PartJob], out: str) -> str:
  pieces = [[dataclasses.astuple(p)[1:] for p in job.part.pieces] for job in jobs]
  splitters = [repr(job.splitter) for job in jobs]
  return digests.of_json([_VERSION, data.FORMAT_VERSION, repr(spec), pieces, splitters, out])


def _folder(out: str, identity: str) -> Any:
  """Returns a context of the folder to write; for a remote `out`, of records only."""
  if not locations.is_remote(out):
    return output.resume_folder(out, identity)
  errors.require(
    not locations.exists(locations.join(out, data.MANIFEST)),
    f"{out}: contains prepared data already; remove it, or use another --out",
  )
  name = digests.of_json(out)[:16]
  return output.resume_folder(cache.folder("partial", name), identity)


def _first_pass(
  spec: spec_lib.Spec,
  jobs: Sequence[PartJob],
  folder: str,
  run: Runner,
  progress: Callable[[str, int, int, int], None],
  sources: Mapping[str, str],
  names: tuple[str, ...],
) -> tuple[list[tuple[int, ...]], data.Schema]:
  """Returns the rows of each part and split, and the schema; from the folder, if it has them."""
  schema_path = os.path.join(folder, os.pardir, data.SCHEMA_FILE)
  rows_path = os.path.join(folder, os.pardir, "rows.json")
  if os.path.exists(rows_path):
    rows = [tuple(r) for r in read_json_object(rows_path)["rows"]]
    return rows, data.restore_schema(schema_path)
  saved_folder = os.path.join(folder, os.pardir, "statistics")
  by_part, waiting = saved_statistics.restore(saved_folder, len(jobs))
  todo = [i for i, part_rows in enumerate(by_part) if not part_rows]
  with _until_a_part_ends(jobs):
    for done, (at, collected) in enumerate(run(collect, [jobs[i] for i in todo]), 1):
      by_part[todo[at]] = collected.rows
      waiting.append(collected)
      if len(waiting) == _MERGE:
        waiting = [merge(waiting)]
      finished = len(jobs) - len(todo) + done
      progress("statistics", finished, len(jobs), sum(sum(rows) for rows in by_part))
      if preemption.requested():
        saved_statistics.save(saved_folder, by_part, merge(waiting))
        raise preemption.Preempted
  _require_rows(by_part)
  statistics = merge(waiting).statistics
  schema = fit(spec, statistics, columns=names, sources=dict(sources))
  _report_collisions(spec, statistics)
  data.save_schema(schema, schema_path)
  write_json(rows_path, {"rows": by_part})
  return by_part, schema


def _until_a_part_ends(jobs: Sequence[PartJob]) -> contextlib.AbstractContextManager[None]:
  """Returns a context in which a signal waits for the end of a part, unless there is only one."""
  return preemption.deferred() if len(jobs) > 1 else contextlib.nullcontext()


def _require_rows(rows: Sequence[tuple[int, ...]]) -> None:
  for split, count in zip(data.SPLITS, np.sum(rows, axis=0), strict=True):
    errors.require(
      count > 0,
      f"the {split} split is empty: the table has too few rows, or the split's settings leave none",
    )


def _with_folders(
  jobs: Sequence[PartJob], rows: Sequence[tuple[int, ...]], folder: str, out: str
) -> list[PartJob]:
  """Returns the jobs of the second pass: where each part's shards go."""
  base = out if locations.is_remote(out) else folder
  schema_path = os.path.join(folder, os.pardir, data.SCHEMA_FILE)
  if locations.is_remote(out):
    target = locations.join(out, data.SCHEMA_FILE)
    for name in (*data.vocabulary_files(schema_path), data.SCHEMA_FILE):
      source = os.path.join(os.path.dirname(schema_path), *name.split("/"))
      locations.upload(source, locations.join(out, name))
    schema_path = target
  counts = np.sum(np.array(rows) > 0, axis=0)
  numbers = np.cumsum(np.array(rows) > 0, axis=0) - 1
  found = []
  for job, part_rows, part_numbers in zip(jobs, rows, numbers, strict=True):
    folders = {
      split: locations.join(base, split, f"{part_numbers[s]:05d}")
      if counts[s] > 1
      else locations.join(base, split)
      for s, split in enumerate(data.SPLITS)
      if part_rows[s]
    }
    found.append(dataclasses.replace(job, schema_path=schema_path, folders=folders, rows=part_rows))
  return found


def _second_pass(
  jobs: Sequence[PartJob],
  folder: str,
  run: Runner,
  progress: Callable[[str, int, int, int], None],
) -> list[dict[str, Any]]:
  """Encodes every part that is not done yet; returns the records of all shards, by part."""
  records_folder = os.path.join(folder, os.pardir, "done")
  os.makedirs(records_folder, exist_ok=True)
  records: list[dict[str, Any]] = [{}] * len(jobs)
  todo = []
  for i in range(len(jobs)):
    path = os.path.join(records_folder, f"{i}.json")
    if os.path.exists(path):
      records[i] = digests.read_sealed(path)
    else:
      todo.append(i)
  done, rows = len(jobs) - len(todo), 0
  with _until_a_part_ends(jobs):
    for at, record in run(encode_part, [jobs[i] for i in todo]):
      i = todo[at]
      write_json(os.path.join(records_folder, f"{i}.json"), digests.seal(record))
      records[i] = json.loads(to_json(record))
      done, rows = done + 1, rows + sum(jobs[i].rows)
      progress("arrays", done, len(jobs), rows)
      preemption.stop_if_requested()
  return records


def _report_collisions(spec: spec_lib.Spec, statistics: Statistics) -> None:
  """Prints how many values of hashed columns share their bucket."""
  for name, distinct in statistics.distinct.items():
    buckets = spec.columns[name].buckets
    print(
      f"note: column '{name}': about {distinct.estimate():,.0f} values in {buckets:,} buckets; "
      f"{distinct.shared(buckets):.1%} of the values share theirs with another",
      file=sys.stderr,
    )


def _report_dropped(schema: data.Schema, records: Sequence[Mapping[str, Any]]) -> None:
  """Prints how many values of lists were left out."""
  for feature in schema.id_features:
    column = feature.sources[0]
    count = sum(record["dropped"].get(column, 0) for record in records)
    if count and feature.kind == "list":
      print(
        f"note: column '{column}': {count:,} values beyond the first {feature.length} of their row "
        "are left out; a larger `length` in the spec keeps more",
        file=sys.stderr,
      )


def _counts(
  schema: data.Schema, rows: Sequence[tuple[int, ...]], records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """Returns the counts of each split, for schema.json."""
  counts = {}
  for s, split in enumerate(data.SPLITS):
    parts = [record["counts"][split] for record in records if split in record["counts"]]
    size = sum(
      entry["bytes"]
      for record in records
      for path, entry in record["files"].items()
      if path.split("/")[0] == split
    )
    counts[split] = arrays.merge_counts(schema, parts) | {"bytes": size}
    shards = [part[s] for part in rows if part[s]]
    if len(shards) > 1:
      counts[split]["shards"] = shards
  return counts


def _finish(
  schema: data.Schema, records: Sequence[Mapping[str, Any]], folder: str, out: str
) -> None:
  """Writes schema.json and, last, the manifest."""
  own = (*data.save_schema(schema, os.path.join(folder, data.SCHEMA_FILE)), data.SCHEMA_FILE)
  files = {name: entry for record in records for name, entry in record["files"].items()}
  for name in own:
    path = os.path.join(folder, *name.split("/"))
    files[name] = {"bytes": os.path.getsize(path), "sha256": digests.of_file(path)}
  manifest = os.path.join(folder, data.MANIFEST)
  write_json(manifest, digests.seal({"files": dict(sorted(files.items()))}))
  if locations.is_remote(out):
    for name in (*own, data.MANIFEST):
      source = os.path.join(folder, *name.split("/"))
      locations.upload(source, locations.join(out, name))
