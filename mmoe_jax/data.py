"""From tables to arrays: the schema, the one encoder, and loading. NumPy and pandas only.

Shapes: N rows, F id features, D numeric features, T tasks.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mmoe_jax.errors import UserError, require, require_known
from mmoe_jax.table import parse_numbers, write_atomically

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")
NUMERIC_FORMS = ("standardize", "bins", "both", "log_int", "none")
UNKNOWN = 0  # The id of every value that the training rows do not have.
MISSING_LABEL = -1


@dataclasses.dataclass(frozen=True)
class IdFeature:
  """A feature that selects a row of an embedding table. Id 0 is reserved for unknown values.

  Attributes:
    name: unique name, such as `education`, `age_bins` or `education#sex`.
    kind: `category` (a nominal column), `bins` (quantile bins of a number), `log_int`
      (floor of log(x + 1), as in the MetaSpore demo) or `cross` (a pair of id features).
    sources: the column, or the two id features, that it is made from.
    values: what ids 1, 2, … stand for: category strings, the lower edges of bins, the integers
      of `log_int`, or for a cross the pairs as `first_id * size_of_second + second_id`.
  """

  name: str
  kind: str
  sources: tuple[str, ...]
  values: tuple[str | float, ...]

  @property
  def size(self) -> int:
    """Number of ids, the one for unknown values included."""
    return len(self.values) + 1


@dataclasses.dataclass(frozen=True)
class NumericFeature:
  """A continuous column, with the mean and standard deviation of its log1p over train rows."""

  name: str
  mean: float
  std: float


@dataclasses.dataclass(frozen=True)
class Task:
  """A binary task: the label is 1 where `column` holds one of `positive`, 0 for `negative`."""

  name: str
  column: str
  positive: tuple[str, ...]
  negative: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Slice:
  """The rows whose numeric `column` is at least `at_least`; metrics are reported on it too."""

  name: str
  column: str
  at_least: float


@dataclasses.dataclass(frozen=True)
class Arrays:
  """Encoded rows, in the order of the schema that encoded them.

  Attributes:
    ids: (N, F) unsigned integers, the id of every id feature.
    numbers: (N, D) the continuous columns as they stand in the table.
    labels: (N, T) int8 in {0, 1}, or MISSING_LABEL; None when not asked for.
    weights: (N,) float32 sample weights; None when not asked for.
  """

  ids: np.ndarray
  numbers: np.ndarray
  labels: np.ndarray | None = None
  weights: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Split:
  """One split as a model and its metrics want it.

  Attributes:
    features: `ids` (N, F) unsigned integers and `numeric` (N, D) float32, standardised.
    labels: (N, T) int8 in {0, 1}, or MISSING_LABEL.
    weights: (N,) float32 sample weights.
    slices: name -> (N,) bool, the rows of each slice.
  """

  features: dict[str, np.ndarray]
  labels: np.ndarray
  weights: np.ndarray
  slices: dict[str, np.ndarray]

  def __len__(self) -> int:
    return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Schema:
  """Everything needed to turn a table into arrays: columns, vocabularies, statistics, tasks.

  A schema is fitted on train rows once, by data preparation, and saved as `schema.json`.
  `select` narrows it to the tasks and features of one run; a work directory keeps that
  narrower schema, so that prediction encodes with the very object that training used.
  """

  columns: tuple[str, ...]
  id_features: tuple[IdFeature, ...]
  numeric: tuple[NumericFeature, ...]
  tasks: tuple[Task, ...]
  weight_column: str | None = None
  slices: tuple[Slice, ...] = ()
  # protocol -> columns that may not be features under it, whatever the tasks are.
  protocols: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  counts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

  # ---- Encoding ------------------------------------------------------------------------

  def encode(
    self, frame: pd.DataFrame, *, labels: bool = False, where: str = "the table"
  ) -> Arrays:
    """Encodes raw rows: the one path from a table to arrays, for preparation and prediction.

    Args:
      frame: raw rows as strings, as `read_table` gives them. Columns may be in any order, and
        columns that the schema does not use are ignored.
      labels: whether to encode the tasks' columns and the sample weights too.
      where: what to call the table in errors, such as its file name.

    Returns:
      Arrays of len(frame) rows.

    Raises:
      UserError: naming the column that is missing, or the line and column of a value that is no
        number, or is negative, in a continuous column.
    """
    needed = dict.fromkeys(c for f in self.id_features if f.kind != "cross" for c in f.sources)
    needed |= dict.fromkeys(n.name for n in self.numeric)
    if labels:
      needed |= dict.fromkeys(t.column for t in self.tasks)
      needed |= dict.fromkeys([self.weight_column] if self.weight_column else [])
    missing = [c for c in needed if c not in frame.columns]
    require(not missing, f"{where}: column {', '.join(map(repr, missing))} is missing")

    numbers: dict[str, np.ndarray] = {}

    def number(column: str) -> np.ndarray:
      if column not in numbers:
        numbers[column] = parse_numbers(frame, column, where)
      return numbers[column]

    ids: dict[str, np.ndarray] = {}
    for feature in self.id_features:
      if feature.kind == "category":
        ids[feature.name] = _lookup(frame[feature.sources[0]], feature.values)
      elif feature.kind == "cross":
        ids[feature.name] = self._cross(feature, ids)
      else:
        ids[feature.name] = _ids_of_numbers(feature, number(feature.sources[0]))
    largest = max((f.size for f in self.id_features), default=1) - 1
    dtype = np.min_scalar_type(largest)
    rows = len(frame)
    return Arrays(
      ids=_stack([ids[f.name] for f in self.id_features], rows, dtype),
      numbers=_stack([number(n.name) for n in self.numeric], rows, np.float64),
      labels=_stack([_labels(frame, t, where) for t in self.tasks], rows, np.int8)
      if labels
      else None,
      weights=number(self.weight_column).astype(np.float32)
      if labels and self.weight_column
      else (np.ones(rows, np.float32) if labels else None),
    )

  def features(self, arrays: Arrays) -> dict[str, np.ndarray]:
    """What a model takes: `ids` as encoded, `numeric` standardised log1p, float32 (N, D)."""
    mean = np.array([n.mean for n in self.numeric])
    std = np.array([n.std for n in self.numeric])
    numeric = (np.log1p(np.asarray(arrays.numbers, np.float64)) - mean) / std
    return {"ids": np.asarray(arrays.ids), "numeric": numeric.astype(np.float32)}

  def _cross(self, feature: IdFeature, ids: Mapping[str, np.ndarray]) -> np.ndarray:
    return _find(np.asarray(feature.values, np.int64), self.pairs(feature.sources, ids))

  def pairs(self, sources: Sequence[str], ids: Mapping[str, np.ndarray]) -> np.ndarray:
    """One integer a row for a pair of id features: `first_id * size_of_second + second_id`."""
    first, second = sources
    return ids[first].astype(np.int64) * self.id_feature(second).size + ids[second]

  # ---- Narrowing to one run ------------------------------------------------------------

  def select(
    self,
    tasks: Sequence[str],
    protocol: str,
    numeric: str = "standardize",
    exclude: Sequence[str] = (),
  ) -> "Schema":
    """The schema of one run: its tasks, and the features that it may look at.

    A column that is the source of a chosen task is never a feature, nor is one that the
    protocol or the user excludes; the sample weight never is.

    Args:
      tasks: names of tasks, in the order of the model's outputs.
      protocol: which columns are off limits; a key of `protocols`.
      numeric: how continuous columns enter: `standardize`, `bins`, `both`, `log_int` or `none`.
      exclude: further columns to leave out.

    Raises:
      UserError: for unknown names, no task, or a task named twice.
    """
    names = [t.name for t in self.tasks]
    require(len(tasks) > 0, f"config.data.tasks is empty; known: {', '.join(names)}")
    for task in tasks:
      hint = " (write several as \"('A','B')\")" if "," in str(task) else ""
      require_known(str(task), names, f"a task in config.data.tasks{hint}")
    require(len(set(tasks)) == len(tasks), f"config.data.tasks names a task twice: {list(tasks)}")
    require_known(protocol, self.protocols, "config.data.protocol")
    require_known(numeric, NUMERIC_FORMS, "config.data.numeric")
    usable = {c for f in self.id_features for c in f.sources} | {n.name for n in self.numeric}
    for column in exclude:
      require_known(column, sorted(usable), "a column in config.data.exclude")
    chosen = [next(t for t in self.tasks if t.name == name) for name in tasks]
    forbidden = {t.column for t in chosen} | set(self.protocols[protocol]) | set(exclude)
    kinds = {"category"} | {"bins": {"bins"}, "both": {"bins"}, "log_int": {"log_int"}}.get(
      numeric, set()
    )
    kept = [f for f in self.id_features if f.kind in kinds and not forbidden & set(f.sources)]
    numbers = [n for n in self.numeric if n.name not in forbidden]
    return dataclasses.replace(
      self,
      tasks=tuple(chosen),
      id_features=tuple(kept),
      numeric=tuple(numbers) if numeric in ("standardize", "both") else (),
    )

  def with_crosses(self, crosses: Sequence[str], train_ids: np.ndarray) -> "Schema":
    """Adds crossed features `a#b`, with the pairs that the train rows hold as vocabulary.

    Args:
      crosses: each `a#b`, where a and b are id features of this schema.
      train_ids: (N, F) ids of the train rows, in this schema's order.

    Raises:
      UserError: when a cross is not of the form `a#b` or names an unknown feature.
    """
    by_name = {f.name: train_ids[:, i] for i, f in enumerate(self.id_features)}
    added = []
    for cross in crosses:
      parts = tuple(str(cross).split("#"))
      require(len(parts) == 2, f"config.data.crosses holds '{cross}'; a cross is written a#b")
      for part in parts:
        require_known(part, by_name, f"a feature of '{cross}' in config.data.crosses")
      pairs = np.unique(self.pairs(parts, by_name))
      added.append(IdFeature(cross, "cross", parts, tuple(pairs.tolist())))
    return dataclasses.replace(self, id_features=self.id_features + tuple(added))

  def id_feature(self, name: str) -> IdFeature:
    """The id feature of that name."""
    return next(f for f in self.id_features if f.name == name)

  # ---- On disk -------------------------------------------------------------------------

  def save(self, path: str) -> None:
    """Writes the schema as JSON, beside and renamed."""
    content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
    write_atomically(path, json.dumps(content, indent=1))

  @classmethod
  def restore(cls, path: str) -> "Schema":
    """Reads a schema that `save` wrote. Raises UserError when the file is not one."""
    try:
      with open(path, encoding="utf-8") as file:
        content = json.load(file)
      version = content.pop("format_version")
      require(
        version == FORMAT_VERSION,
        f"{path}: format version {version}, but this code reads {FORMAT_VERSION}; "
        "prepare the data again",
      )
      return cls._from_json(content)
    except UserError:
      raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise UserError(f"{path}: not a schema ({error}); prepare the data again") from error

  @classmethod
  def _from_json(cls, content: dict[str, Any]) -> "Schema":
    for key, kind in (
      ("id_features", IdFeature),
      ("numeric", NumericFeature),
      ("tasks", Task),
      ("slices", Slice),
    ):
      content[key] = tuple(kind(**_tuples(item)) for item in content[key])
    content["columns"] = tuple(content["columns"])
    content["protocols"] = _tuples(content["protocols"])
    return cls(**content)


def load(
  directory: str,
  tasks: Sequence[str],
  protocol: str,
  numeric: str = "standardize",
  exclude: Sequence[str] = (),
  crosses: Sequence[str] = (),
) -> tuple[Schema, dict[str, Split]]:
  """Loads prepared data for one run.

  Args:
    directory: where data preparation wrote.
    tasks, protocol, numeric, exclude: see `Schema.select`.
    crosses: crossed features to add, see `Schema.with_crosses`.

  Returns:
    The schema of the run and its splits, by the names in SPLITS.

  Raises:
    UserError: when there is no prepared data, a file is broken, or a split is empty.
  """
  path = os.path.join(directory, "schema.json")
  require(
    os.path.exists(path),
    f"{directory}: no prepared data here; run: python -m data_prep.census_income --out {directory}",
  )
  full = Schema.restore(path)
  stored = {name: _load_arrays(directory, name, full) for name in SPLITS}
  schema = full.select(tasks, protocol, numeric, exclude)
  stored = {name: _take(arrays, full, schema) for name, arrays in stored.items()}
  if crosses:
    plain = schema
    schema = plain.with_crosses(crosses, stored["train"].ids)
    stored = {name: _append_crosses(arrays, plain, schema) for name, arrays in stored.items()}
  require(
    bool(schema.id_features) or bool(schema.numeric), "config.data leaves no feature to learn from"
  )
  splits = {}
  for name, arrays in stored.items():
    source = _load_numbers(directory, name, full, [s.column for s in schema.slices])
    slices = {s.name: column >= s.at_least for s, column in zip(schema.slices, source, strict=True)}
    splits[name] = Split(schema.features(arrays), arrays.labels, arrays.weights, slices)
  return schema, splits


# ---- Parts -----------------------------------------------------------------------------


def _load_arrays(directory: str, split: str, schema: Schema) -> Arrays:
  loaded = {}
  for field in ("ids", "numbers", "labels", "weights"):
    path = os.path.join(directory, split, f"{field}.npy")
    try:
      loaded[field] = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
      raise UserError(f"{path}: broken array ({error}); prepare the data again") from error
  kinds = {"ids": ("u", 2), "numbers": ("uif", 2), "labels": ("i", 2), "weights": ("f", 1)}
  for field, (kind, ndim) in kinds.items():
    require(
      loaded[field].dtype.kind in kind and loaded[field].ndim == ndim,
      f"{directory}/{split}/{field}.npy: not an array of that kind; prepare the data again",
    )
  rows = {len(array) for array in loaded.values()}
  require(
    len(rows) == 1, f"{directory}/{split}: arrays of different lengths; prepare the data again"
  )
  require(rows != {0}, f"{directory}/{split}: the split is empty; prepare the data again")
  sizes = np.array([f.size for f in schema.id_features])
  widths = {"ids": len(sizes), "numbers": len(schema.numeric), "labels": len(schema.tasks)}
  fits = all(loaded[k].shape[1] == n for k, n in widths.items())
  fits = fits and set(np.unique(loaded["labels"])) <= {MISSING_LABEL, 0, 1}
  fits = fits and bool(np.isfinite(loaded["weights"]).all())
  # Models do not check ids again, so an id that its table lacks must not get past here.
  require(
    fits and bool((loaded["ids"].max(0) < sizes).all()),
    f"{directory}/{split}: arrays that do not fit schema.json; prepare the data again",
  )
  return Arrays(**loaded)


def _load_numbers(
  directory: str, split: str, schema: Schema, columns: Sequence[str]
) -> list[np.ndarray]:
  numbers = np.load(os.path.join(directory, split, "numbers.npy"), mmap_mode="r")
  names = [n.name for n in schema.numeric]
  return [numbers[:, names.index(column)] for column in columns]


def _take(arrays: Arrays, full: Schema, schema: Schema) -> Arrays:
  def columns(array: np.ndarray, have: Sequence[Any], want: Sequence[Any]) -> np.ndarray:
    names = [item.name for item in have]
    return np.ascontiguousarray(array[:, [names.index(item.name) for item in want]])

  return Arrays(
    ids=columns(arrays.ids, full.id_features, schema.id_features),
    numbers=columns(arrays.numbers, full.numeric, schema.numeric),
    labels=columns(arrays.labels, full.tasks, schema.tasks),
    weights=np.asarray(arrays.weights),
  )


def _append_crosses(arrays: Arrays, plain: Schema, schema: Schema) -> Arrays:
  by_name = {f.name: arrays.ids[:, i] for i, f in enumerate(plain.id_features)}
  columns = list(by_name.values())
  columns += [schema._cross(f, by_name) for f in schema.id_features[len(columns) :]]
  dtype = np.min_scalar_type(max(f.size for f in schema.id_features) - 1)
  return dataclasses.replace(arrays, ids=_stack(columns, len(arrays.ids), dtype))


def _lookup(column: pd.Series, values: Sequence[str]) -> np.ndarray:
  codes, present = pd.factorize(column)
  return (pd.Index(list(values), dtype=object).get_indexer(present.astype(object)) + 1)[codes]


def _ids_of_numbers(feature: IdFeature, x: np.ndarray) -> np.ndarray:
  values = np.asarray(feature.values)
  if feature.kind == "bins":
    # Below the first edge, that is under everything seen in training, is id 0: unknown.
    return np.searchsorted(values, x, side="right")
  return _find(values, np.floor(np.log1p(x)))


def _find(values: np.ndarray, x: np.ndarray) -> np.ndarray:
  at = np.minimum(np.searchsorted(values, x), len(values) - 1)
  return np.where(values[at] == x, at + 1, UNKNOWN)


def _labels(frame: pd.DataFrame, task: Task, where: str) -> np.ndarray:
  codes, values = pd.factorize(frame[task.column])
  known = {"": MISSING_LABEL} | dict.fromkeys(task.negative, 0) | dict.fromkeys(task.positive, 1)
  for code, value in enumerate(values):
    if value not in known:
      line = frame.index[int(np.argmax(codes == code))]
      raise UserError(
        f"{where}, line {line}, column '{task.column}': '{value}' is no value of the task "
        f"'{task.name}'; leave it empty where the label is not known"
      )
  return np.array([known[v] for v in values], np.int8)[codes]


def _stack(columns: Sequence[np.ndarray], rows: int, dtype: Any) -> np.ndarray:
  out = np.empty((rows, len(columns)), dtype)
  for i, column in enumerate(columns):
    out[:, i] = column
  return out


def _tuples(item: Mapping[str, Any]) -> dict[str, Any]:
  return {k: tuple(v) if isinstance(v, list) else v for k, v in item.items()}
