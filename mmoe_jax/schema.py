"""The schema of a table, and the one encoder from rows to arrays. NumPy, pandas and Arrow only.

Shapes: N rows, F id features, D numeric features, T tasks.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mmoe_jax.errors import UserError, require, require_known
from mmoe_jax.table import parse_numbers, write_atomically

FORMAT_VERSION = 2
NUMERIC_FORMS = ("standardize", "bins", "both", "log_int", "none")
UNKNOWN = 0  # The id of every value that the training rows do not have.
KINDS = ("binary", "multiclass", "regression")
TRANSFORMS = ("log1p", "identity")


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
  """A continuous column, standardised once it is transformed.

  Attributes:
    name: the column.
    mean, std: of the transformed values over train rows.
    transform: `log1p`, for amounts of at least 0, or `identity`.
  """

  name: str
  mean: float
  std: float
  transform: str = "log1p"


@dataclasses.dataclass(frozen=True)
class Task:
  """What is learnt from a column. Its kind says what labels and outputs mean.

  Attributes:
    name, column: of the task, and of the table's column that labels are made from.
    positive, negative: binary: the values whose label is 1, and 0.
    kind: `binary`: one output, the logit of the label being 1; `multiclass`: an output a class,
      logits of a softmax, labels are numbers of classes; `regression`: one output, an estimate
      of the label, which is (value − mean) / std.
    classes: multiclass: the values, in the order of their numbers.
    mean, std: regression: of the column over the train rows that have a value.
  """

  name: str
  column: str
  positive: tuple[str, ...] = ()
  negative: tuple[str, ...] = ()
  kind: str = "binary"
  classes: tuple[str, ...] = ()
  mean: float = 0.0
  std: float = 1.0

  @property
  def outputs(self) -> int:
    """How many outputs a model has for it."""
    return len(self.classes) if self.kind == "multiclass" else 1


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
    labels: (N, T) float32 as Task says, NaN where missing; None when not asked for.
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
    labels: (N, T) float32: 0 or 1 (binary), the number of the class (multiclass) or a
      standardised value (regression); NaN where missing.
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
        number (or a negative one, where logarithms are taken) or no value of a task.
    """
    needed = dict.fromkeys(c for f in self.id_features if f.kind != "cross" for c in f.sources)
    needed |= dict.fromkeys(n.name for n in self.numeric)
    if labels:
      needed |= dict.fromkeys(t.column for t in self.tasks)
      needed |= dict.fromkeys([self.weight_column] if self.weight_column else [])
    missing = [c for c in needed if c not in frame.columns]
    require(not missing, f"{where}: column {', '.join(map(repr, missing))} is missing")

    numbers: dict[str, np.ndarray] = {}
    signed = {n.name for n in self.numeric if n.transform == "identity"}

    def number(column: str) -> np.ndarray:
      if column not in numbers:
        least = -math.inf if column in signed else 0.0
        numbers[column] = parse_numbers(frame, column, where, least)
      return numbers[column]

    ids: dict[str, np.ndarray] = {}
    for feature in self.id_features:
      if feature.kind == "category":
        ids[feature.name] = _lookup(frame[feature.sources[0]], feature.values)
      elif feature.kind == "cross":
        ids[feature.name] = self.cross(feature, ids)
      else:
        ids[feature.name] = _ids_of_numbers(feature, number(feature.sources[0]))
    largest = max((f.size for f in self.id_features), default=1) - 1
    dtype = np.min_scalar_type(largest)
    rows = len(frame)
    return Arrays(
      ids=stack([ids[f.name] for f in self.id_features], rows, dtype),
      numbers=stack([number(n.name) for n in self.numeric], rows, np.float64),
      labels=stack([_labels(frame, t, where) for t in self.tasks], rows, np.float32)
      if labels
      else None,
      weights=number(self.weight_column).astype(np.float32)
      if labels and self.weight_column
      else (np.ones(rows, np.float32) if labels else None),
    )

  def features(self, arrays: Arrays) -> dict[str, np.ndarray]:
    """What a model takes: `ids` as encoded, and `numeric` float32 (N, D), standardised."""
    mean = np.array([n.mean for n in self.numeric])
    std = np.array([n.std for n in self.numeric])
    logs = np.array([n.transform == "log1p" for n in self.numeric], bool)
    x = np.array(arrays.numbers, np.float64)
    np.log1p(x, out=x, where=logs)
    return {"ids": np.asarray(arrays.ids), "numeric": ((x - mean) / std).astype(np.float32)}

  def cross(self, feature: IdFeature, ids: Mapping[str, np.ndarray]) -> np.ndarray:
    """Ids (N,) of a crossed feature, from the ids of the two that it is made of."""
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

    A column that is the source of a chosen task is never a feature in any form, nor is one that
    the protocol or the user excludes; the sample weight never is.

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
        "prepare the data again (of a work directory: train again)",
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


# ---- Parts -----------------------------------------------------------------------------


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
  if task.kind == "regression":
    labels = np.full(len(frame), np.nan)
    known = (frame[task.column] != "").to_numpy()
    rows = frame.loc[known, [task.column]]
    labels[known] = (parse_numbers(rows, task.column, where, -math.inf) - task.mean) / task.std
    return labels
  codes, values = pd.factorize(frame[task.column])
  known = {"": math.nan}
  if task.kind == "binary":
    known |= dict.fromkeys(task.negative, 0) | dict.fromkeys(task.positive, 1)
  else:
    known |= {value: number for number, value in enumerate(task.classes)}
  for code, value in enumerate(values):
    if value not in known:
      line = frame.index[int(np.argmax(codes == code))]
      raise UserError(
        f"{where}, line {line}, column '{task.column}': '{value}' is no value of the task "
        f"'{task.name}'; leave it empty where the label is not known"
      )
  return np.array([known[v] for v in values], np.float32)[codes]


def stack(columns: Sequence[np.ndarray], rows: int, dtype: Any) -> np.ndarray:
  """(N, number of columns) from columns (N,), also when there are none."""
  out = np.empty((rows, len(columns)), dtype)
  for i, column in enumerate(columns):
    out[:, i] = column
  return out


def _tuples(item: Mapping[str, Any]) -> dict[str, Any]:
  return {k: tuple(v) if isinstance(v, list) else v for k, v in item.items()}
