"""Raw rows for the page's what-if: prepared test rows turned back into values of the table.

Preparation keeps ids, not texts: values outside the vocabulary and hashed ones cannot be restored.
"""

import datetime
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmoe_jax import data
from mmoe_jax.data import remote_copy

UNKNOWN_TEXT = "(unknown value)"  # No vocabulary contains it.
_FIRST_DAY = datetime.date(2024, 1, 1)
_DAYS = 5 * 366


def restore_rows(
  directory: str, schema: data.Schema, rows: Sequence[int], split: str = "test"
) -> tuple[list[dict[str, Any]], list[str]]:
  """Restores raw rows of a split.

  Args:
    directory: folder of the prepared data.
    schema: schema of the run.
    rows: numbers of the rows.
    split: one of data.SPLITS.

  Returns:
    For each row column -> value: a text, a number, a list of texts, or None for a missing value;
    and the columns whose values cannot be restored, which are missing.
  """
  directory = remote_copy.local_folder(directory)
  full = data.restore_schema(os.path.join(directory, data.SCHEMA_FILE))
  stored = data.Shards(directory, split, full)
  ranges = [(int(row), int(row) + 1) for row in rows]
  ids, numbers = stored.read("ids", ranges), stored.read("numbers", ranges)
  names = [n.name for n in full.numeric]
  lost = []
  columns: dict[str, list[Any]] = {}
  for column in data.needed_columns(schema):
    features = [f for f in full.id_features if f.sources == (column,)]
    if column in names:
      values = numbers[:, names.index(column)].tolist()
      columns[column] = [None if v != v else v for v in values]
      continue
    of_feature = {f: ids[:, full.id_columns[f.name]] for f in features}
    if any(f.buckets for f in features) or not features:
      lost.append(column)
    columns[column] = [
      _value_of({f: found[i].tolist() for f, found in of_feature.items()}) for i in range(len(rows))
    ]
  return [{c: values[i] for c, values in columns.items()} for i in range(len(rows))], lost


def _value_of(ids: Mapping[data.IdFeature, Sequence[int]]) -> Any:
  """Returns the value of a column that has these ids in the features made from it."""
  kinds = {feature.kind for feature in ids}
  if kinds & data.TIME_PARTS.keys():
    return _time_of({f.kind: f.values[i[0] - 1] for f, i in ids.items() if i[0]})
  for feature, found in ids.items():
    if feature.buckets:
      return [] if feature.kind == "list" else None
    if feature.kind == "list":
      return [str(feature.values[i - 1]) for i in found if i]
    if feature.kind == "category":
      return str(feature.values[found[0] - 1]) if found[0] else UNKNOWN_TEXT
  return None


def _time_of(parts: Mapping[str, int]) -> str | None:
  """Returns a time with these parts; None if there is none, or no part is known."""
  if not parts:
    return None
  clock = f"{parts.get('hour', 0):02d}:{parts.get('minute', 0):02d}"
  for day in (_FIRST_DAY + datetime.timedelta(n) for n in range(_DAYS)):
    of_day = {"month": day.month, "day": day.day, "weekday": day.weekday()}
    if all(parts.get(name, value) == value for name, value in of_day.items()):
      return f"{day.isoformat()}T{clock}"
  return None


def spread_rows(scores_N: np.ndarray, shares: Sequence[float]) -> list[int]:
  """Returns the rows at these quantiles of scores, each once."""
  order_N = np.argsort(scores_N, kind="stable")
  places = [round(share * (len(order_N) - 1)) for share in shares]
  return list(dict.fromkeys(int(order_N[place]) for place in places))
