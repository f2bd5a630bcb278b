"""Statistics of the parts that a first pass has finished, saved when a signal stops it.

`statistics.json` has the rows of the finished parts and an entry per statistic, whose counts are an
Arrow file. Without pickle: the folder may be shared.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.collecting import Collected
from data_prep.column_counts import DistinctCounts, NumberCounts, TextCounts
from data_prep.fitting import Statistics
from mmoe_jax import digests
from mmoe_jax.errors import require
from mmoe_jax.files import write_json

_INDEX = "statistics.json"
_GROUPS = ("texts", "numbers", "labels", "distinct")
Counts = TextCounts | NumberCounts | DistinctCounts


def save(folder: str, by_part: Sequence[tuple[int, ...]], collected: Collected) -> None:
  """Saves the statistics of the finished parts.

  Args:
    folder: folder to write, replaced if it exists.
    by_part: rows of each part and split; empty for a part that is not finished.
    collected: rows and statistics of the finished parts.
  """
  shutil.rmtree(folder, ignore_errors=True)
  os.makedirs(folder)
  index: dict[str, Any] = {"by_part": by_part, "lengths": dict(collected.statistics.lengths)}
  files = 0
  for group in _GROUPS:
    index[group] = {}
    for name, counts in getattr(collected.statistics, group).items():
      path = os.path.join(folder, f"{files}.arrow")
      arrays, entry = _to_arrays(counts)
      table = pa.table(arrays)
      with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
      index[group][name] = {**entry, "file": files, "sha256": digests.of_file(path)}
      files += 1
  write_json(os.path.join(folder, _INDEX), digests.seal(index))


def restore(folder: str, parts: int) -> tuple[list[tuple[int, ...]], list[Collected]]:
  """Restores what `save` saved.

  Args:
    folder: its folder.
    parts: number of parts.

  Returns:
    The rows of each part, as in `save`, and the results of the finished parts, as one; none if
    nothing was saved.

  Raises:
    UserError: if a file is damaged.
  """
  if not os.path.exists(os.path.join(folder, _INDEX)):
    return [()] * parts, []
  index = digests.read_sealed(os.path.join(folder, _INDEX))
  by_part = [tuple(rows) for rows in index["by_part"]]
  groups = {
    group: {name: _read(folder, entry) for name, entry in index[group].items()} for group in _GROUPS
  }
  rows = tuple(np.sum([rows for rows in by_part if rows], axis=0).tolist())
  return by_part, [Collected(rows, Statistics(lengths=index["lengths"], **groups))]


def _to_arrays(counts: Counts) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the arrays of a statistic by name, and the rest of it."""
  if isinstance(counts, TextCounts):
    return {"values": counts.values, "counts": counts.counts}, {"kind": "texts"}
  if isinstance(counts, DistinctCounts):
    return {"registers": counts.registers}, {"kind": "distinct"}
  ends = {"least": float(counts.least).hex(), "most": float(counts.most).hex()}  # May be infinite.
  entry = {"kind": "numbers", "missing": counts.missing, "is_exact": counts.is_exact, **ends}
  return {"values": counts.values, "counts": counts.counts}, entry


def _read(folder: str, entry: Mapping[str, Any]) -> Counts:
  path = os.path.join(folder, f"{entry['file']}.arrow")
  require(
    os.path.exists(path) and digests.of_file(path) == entry["sha256"],
    f"{path}: damaged since it was written; remove {folder}, and the first pass is repeated",
  )
  with pa.OSFile(path) as file:
    table = pa.ipc.open_file(file).read_all().combine_chunks()
  array: Callable[[str], pa.Array] = lambda name: table[name].combine_chunks()
  if entry["kind"] == "distinct":
    return DistinctCounts(np.array(array("registers")))
  if entry["kind"] == "texts":
    return TextCounts(array("values"), np.array(array("counts")))
  least, most = (float.fromhex(entry[name]) for name in ("least", "most"))
  values, numbers = np.array(array("values")), np.array(array("counts"))
  return NumberCounts(values, numbers, entry["missing"], least, most, entry["is_exact"])
