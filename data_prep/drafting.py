"""Draft of a spec from sample rows: roles, tasks, splits, and what looks wrong.

Shape letters: N rows of the sample.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from data_prep.draft_text import Column, format_spec, quoted, quoted_text
from mmoe_jax.data import locations, tables
from mmoe_jax.data.columns import MISSING, Factor, Table
from mmoe_jax.data.times import times_of
from mmoe_jax.errors import UserError, require_known

_MISSING_TEXTS = ("NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "?", "-", ".", "NaT")
_LABEL_NAMES = re.compile(
  r"(label|target|y|class|outcome|click(ed|s)?|purchase[ds]?|bought|buy|conver(sion|ted)|like[ds]?"
  r"|install(ed)?|churn(ed)?|default(ed)?|rating|income|response|is_click|is_buy)(_?\d+)?",
  re.IGNORECASE,
)
_FEW_VALUES = 20  # Distinct whole numbers up to which a column is nominal.
_MANY_VALUES = 10_000  # Distinct texts above which a column is hashed.
_MAX_CLASSES = 50
_LEAK = 0.97  # AUC of a single column with a task, from which it looks like a leak.
_FEW_ROWS = 50


@dataclasses.dataclass
class Draft:
  """Draft of a spec.

  Attributes:
    text: the spec as TOML.
    warnings: what looks wrong.
  """

  text: str
  warnings: list[str]


def guess_separator(inputs: Sequence[str]) -> str:
  """Returns the character that separates most values in the first line of a CSV file."""
  path = next((p for p in inputs if not tables.is_parquet(p)), None)
  if path is None or path.endswith(".gz"):
    return ","
  with locations.open_input(path) as file:
    line = file.read(1 << 16).split(b"\n")[0].decode("utf-8", "replace")
  return max(",;\t|", key=line.count)


def draft(
  found: Sequence[Table],
  inputs: Sequence[str],
  separator: str,
  sample: int,
  tasks: Sequence[str] = (),
) -> Draft:
  """Drafts a spec; see inspect.inspect for the arguments.

  Raises:
    UserError: if a column of `tasks` does not exist.
  """
  names = list(found[0].columns)
  for name in tasks:
    require_known(name, names, "a column in --tasks")
  columns = {name: _column(name, found, sample) for name in names}
  rows = len(next(iter(columns.values())).factor.codes)
  for column in columns.values():
    _guess_role(column, rows)
  labels = list(tasks) or _guess_tasks(columns)
  for name in labels:
    columns[name].role, columns[name].settings = "label", _label_settings(columns[name])
  warnings: list[str] = []
  conditions = {name: _task(columns[name], rows, warnings) for name in labels}
  _find_duplicates(columns, warnings)
  _find_leaks(columns, conditions, warnings)
  for column in columns.values():
    warnings += [f"{column.name}: {note}" for note in column.notes]
  return Draft(format_spec(columns, conditions, inputs, separator, rows), warnings)


def _column(name: str, found: Sequence[Table], sample: int) -> Column:
  """Joins the first `sample` values of a column."""
  texts: list[str] = []
  is_list = False
  for table in found:
    values = table.columns[name]
    kind = "" if isinstance(values, list) else str(values.type)
    if kind.startswith(("list", "large_list", "fixed")):
      is_list = True
      texts += ["|".join(map(str, v or ())) for v in values.to_pylist()]
    else:
      factor = table.factor(name)
      texts += np.array(factor.texts(), object)[factor.codes].tolist()
    if len(texts) >= sample:
      break
  codes, distinct = pd.factorize(np.array(texts[:sample], object))
  counts = np.bincount(codes, minlength=len(distinct))
  return Column(name, Factor(codes, list(distinct)), list(distinct), counts, is_list)


def _guess_role(column: Column, rows: int) -> None:
  """Chooses the role of a column as a feature."""
  texts = [t for t in column.texts if t != MISSING]
  if column.is_list:
    column.role = "list"
    return
  if len(texts) == 0 or (len(texts) == 1 and MISSING not in column.texts):
    column.role = "ignore"
    column.notes.append("constant" if texts else "empty")
    return
  if _as_times(column):
    column.role = "time"
    return
  if _as_numbers(column) and _is_quantity(column, rows):
    column.role = "number"
    column.settings |= _number_settings(column)
    return
  if rows >= 100 and len(texts) > 0.9 * rows:
    column.role = "keep"
    column.notes.append(
      f"{len(texts):,} values in {rows:,} rows: an id, or free text; copied to the scores, and no "
      "feature"
    )
    return
  if separator := _list_separator(column):
    column.role = "list"
    column.settings["separator"] = separator
    return
  if len(texts) > _MANY_VALUES:
    column.role = "hash"
    column.settings["buckets"] = 1 << int(np.ceil(np.log2(4 * len(texts))))
    return
  column.role = "category"
  if len(texts) > 100:
    column.settings["min_count"] = 2


def _as_numbers(column: Column) -> bool:
  """Returns whether nearly all values are numbers; notes the texts of missing ones."""
  texts = [t for t in column.texts if t != MISSING]
  missing = [t for t in texts if t in _MISSING_TEXTS]
  rest = [t for t in texts if t not in _MISSING_TEXTS]
  parsed = pd.to_numeric(pd.Series(rest, dtype=object), errors="coerce").to_numpy(float)
  is_number = np.isfinite(parsed)
  bad = [t for t, good in zip(rest, is_number, strict=True) if not good]
  counts = dict(zip(column.texts, column.counts, strict=True))
  rows_bad = sum(counts[t] for t in bad)
  if not rest or len(bad) > 5 or rows_bad > 0.02 * sum(counts[t] for t in rest):
    return False
  if bad:
    shown = ", ".join(repr(t[:40]) for t in bad)
    column.notes.append(f"a number except for {shown}, which the draft takes for missing")
  if missing or bad:
    column.settings["missing"] = sorted([*missing, *bad])
  value_of = {t: x for t, x in zip(rest, parsed, strict=True) if np.isfinite(x)}
  of_text = np.array([value_of.get(t, np.nan) for t in column.texts])
  column.numbers = of_text[column.factor.codes]
  return True


def _is_quantity(column: Column, rows: int) -> bool:
  """Returns whether numbers measure something, rather than name a category or a row."""
  numbers = column.numbers[~np.isnan(column.numbers)]
  if not len(numbers):
    return False
  is_whole = bool((numbers == np.floor(numbers)).all())
  if re.search(r"(^|_)(id|code|zip|zipcode)$", column.name, re.IGNORECASE) and is_whole:
    return False
  if is_whole and rows >= 100 and column.known > 0.99 * rows:
    return bool(np.any(np.abs(np.diff(np.sort(numbers))) > 1)) and column.known < rows
  return not (is_whole and column.known <= _FEW_VALUES)


def _number_settings(column: Column) -> dict[str, object]:
  numbers = column.numbers[~np.isnan(column.numbers)]
  spread = np.percentile(numbers, 99) - np.median(numbers)
  typical = np.percentile(numbers, 75) - np.percentile(numbers, 25)
  is_skewed = spread > 8 * max(typical, 1e-12)
  if not is_skewed:
    return {}
  return {"transform": "log1p" if numbers.min() >= 0 else "quantile"}


def _as_times(column: Column) -> bool:
  texts = [t for t in column.texts if t != MISSING]
  sample = texts[:: max(1, len(texts) // 200)]
  if not all(re.match(r"\d{4}-\d{2}-\d{2}", t) for t in sample):
    return False
  table = Table({"t": list(sample)}, len(sample))
  try:
    times_of(table, "t")
  except UserError:
    return False
  return True


def _list_separator(column: Column) -> str:
  """Returns the separator of a multi-valued column of texts; empty if it is none."""
  texts = [t for t in column.texts if t != MISSING]
  for separator in ("|", ";", ","):
    share = np.mean([separator in t for t in texts])
    parts = {part.strip() for t in texts for part in t.split(separator)}
    if share > 0.2 and 1 < len(parts) < 0.7 * len(texts):
      return separator
  return ""


def _guess_tasks(columns: dict[str, Column]) -> list[str]:
  usable = [
    c.name
    for c in columns.values()
    if c.role not in ("ignore", "time", "list")
    and (c.numbers is not None or 2 <= c.known <= _MAX_CLASSES)
  ]
  named = [name for name in usable if _LABEL_NAMES.fullmatch(name)]
  return named or usable[-1:] or list(columns)[-1:]


def _label_settings(column: Column) -> dict[str, object]:
  return {k: v for k, v in column.settings.items() if k == "missing"}


def _task(column: Column, rows: int, warnings: list[str]) -> dict[str, object]:
  """Returns the task that a column most likely is, and notes classes of too few rows."""
  known = [(t, int(n)) for t, n in zip(column.texts, column.counts, strict=True) if t != MISSING]
  excluded = column.settings.get("missing", ())
  known = [(t, n) for t, n in known if t not in excluded]
  if column.numbers is not None and len(known) > _FEW_VALUES:
    return {"kind": "regression", "column": column.name}
  for value, count in known:
    if count < min(_FEW_ROWS, rows // 10):
      warnings.append(f"{column.name}: only {count} rows of the sample have {value!r}")
  if len(known) == 2:
    values = [t for t, _ in known]
    if set(values) <= {"0", "1", "0.0", "1.0"}:
      return {"condition": f"{quoted(column.name)} == 1"}
    positive = next((v for v in values if v.lower() in ("yes", "true", "1", "y", "t")), None)
    rare = positive or min(known, key=lambda item: item[1])[0]
    return {"condition": f"{quoted(column.name)} == {quoted_text(rare)}"}
  return {"kind": "multiclass", "column": column.name}


def _find_duplicates(columns: dict[str, Column], warnings: list[str]) -> None:
  """Notes columns whose values correspond one to one to those of an earlier column."""
  seen: dict[tuple[int, ...], list[Column]] = {}
  for column in columns.values():
    if column.role in ("ignore", "keep") or column.is_list:
      continue
    key = tuple(sorted(column.counts.tolist())[-20:])
    for other in seen.get(key, []):
      pairs = column.factor.codes.astype(np.int64) * len(other.texts) + other.factor.codes
      if len(np.unique(pairs)) == len(column.texts) == len(other.texts):
        warnings.append(f"{column.name}: says the same as {other.name} in every row of the sample")
        break
    seen.setdefault(key, []).append(column)


def _find_leaks(
  columns: dict[str, Column], tasks: dict[str, dict[str, object]], warnings: list[str]
) -> None:
  """Notes columns that alone predict a binary task almost perfectly."""
  for task, settings in tasks.items():
    if "condition" not in settings:
      continue
    label = columns[task]
    positive = str(settings["condition"]).rpartition(" == ")[2].strip("\"'")
    values = {positive, f"{positive}.0"} if positive == "1" else {positive}
    labels = np.isin(np.array(label.texts, object), list(values))[label.factor.codes]
    if not 0 < labels.sum() < len(labels):
      continue
    for column in columns.values():
      if column.role not in ("category", "hash", "number", "time"):
        continue
      auc = _auc_alone(column, labels)
      if auc >= _LEAK:
        column.notes.append(
          f"alone predicts {task} with an AUC of {auc:.3f}; is it known before {task} is?"
        )


def _auc_alone(column: Column, labels: np.ndarray) -> float:
  """Returns the AUC of a column's values with a task, on the half that they were not fitted on."""
  half = np.random.default_rng([4, len(labels)]).random(len(labels)) < 0.5
  if not (0 < labels[half].sum() < half.sum() and 0 < labels[~half].sum() < (~half).sum()):
    return 0.5
  if column.numbers is not None:
    scores = np.nan_to_num(column.numbers, nan=np.nanmedian(column.numbers))
    return max(auc := _auc(scores, labels), 1 - auc)
  count = np.bincount(column.factor.codes[half], minlength=len(column.texts))
  positives = np.bincount(column.factor.codes[half], labels[half], minlength=len(column.texts))
  rates = (positives + labels[half].mean()) / (count + 1)
  return _auc(rates[column.factor.codes[~half]], labels[~half])


def _auc(scores: np.ndarray, labels: np.ndarray) -> float:
  positives = labels.sum()
  ranks = rankdata(scores)[labels].sum()
  return float((ranks - positives * (positives + 1) / 2) / (positives * (len(labels) - positives)))
