"""Schema of a table: the columns, vocabularies, statistics and tasks that turn rows into arrays.

Shape letters: N rows, F columns of ids, D numeric features, T tasks, S slices.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmoe_jax.data.conditions import parse_condition

UNKNOWN = 0  # Id of values that the vocabulary does not contain, and of absent values of a list.
KINDS = ("binary", "multiclass", "regression")
TRANSFORMS = ("log1p", "identity", "quantile")
POOLINGS = ("mean", "sum")
# Part of a timestamp -> its values.
TIME_PARTS = {
  "month": range(1, 13),
  "day": range(1, 32),
  "weekday": range(7),  # From Monday.
  "hour": range(24),
  "minute": range(60),
}


@dataclasses.dataclass(frozen=True)
class IdFeature:
  """Feature that selects rows of an embedding table. Id 0 is reserved for unknown values.

  Attributes:
    name: unique name, such as `education`, `age_bins` or `education#sex`.
    kind: `category` (a nominal column), `hash` (a nominal column whose values share buckets),
      `list` (a multi-valued column, hashed if it has buckets), `bins` (quantile bins of a number),
      `log_int` (floor of log(x + 1), as in the MetaSpore demo), `cross` (a pair of id features) or
      a key of TIME_PARTS (a part of a timestamp).
    sources: the column, or the two id features, that it is made from.
    values: values of ids 1, 2, …: category strings, lower edges of bins, integers of `log_int` and
      parts of timestamps, or for a cross the pairs as `first_id * size_of_second + second_id`.
      Many strings are a vocabularies.Vocabulary.
    buckets: number of buckets, instead of values.
    has_missing: bins: whether missing numbers have an id, the last one.
    length: list: values per row that are kept, each with a column of ids; 1 for other kinds.
    pooling: list: how their vectors are combined, `mean` or `sum`.
    separator: list: separator of the values in a text.
    table: name of the embedding table, if several features share one: their ids are the same.
  """

  name: str
  kind: str
  sources: tuple[str, ...]
  values: tuple[str | int | float, ...] = ()
  buckets: int = 0
  has_missing: bool = False
  length: int = 1
  pooling: str = ""
  separator: str = ""
  table: str = ""

  @property
  def size(self) -> int:
    """Number of ids, the one for unknown values included."""
    return 1 + (self.buckets or len(self.values)) + self.has_missing


@dataclasses.dataclass(frozen=True)
class NumericFeature:
  """Continuous column, transformed and then standardised.

  Inputs of the model are the standardised value, 0 where it is missing; 1 where it is missing, if
  `has_missing`; and the piecewise-linear encoding, if there are `edges` (Gorishniy et al., On
  Embeddings for Numerical Features in Tabular Deep Learning, NeurIPS 2022, equation 1).

  Attributes:
    name: the column.
    mean: mean of the transformed values over train rows.
    std: their standard deviation.
    transform: `log1p`, for amounts of at least 0, `identity`, or `quantile`: the share of train
      rows with a smaller value, interpolated between `points`.
    has_missing: whether train rows have missing values; otherwise a missing value is an error.
    points: ascending values of the quantiles i / (len(points) - 1).
    edges: ascending ends of the pieces.
  """

  name: str
  mean: float
  std: float
  transform: str = "log1p"
  has_missing: bool = False
  points: tuple[float, ...] = ()
  edges: tuple[float, ...] = ()

  @property
  def inputs(self) -> int:
    """Number of the model's inputs."""
    return 1 + self.has_missing + max(0, len(self.edges) - 1)

  @property
  def least(self) -> float:
    """Smallest allowed value."""
    return 0.0 if self.transform == "log1p" else -math.inf


@dataclasses.dataclass(frozen=True)
class Task:
  """Task that is learned from columns.

  Attributes:
    name: name of the task.
    column: column that labels are made from; empty for a condition.
    positive: binary: values with label 1.
    negative: binary: values with label 0.
    kind: `binary`: one output, the logit of label 1; `multiclass`: one output per class, the
      logits of a softmax, labels are class numbers; `regression`: one output, an estimate of the
      label, which is (value − mean) / std.
    classes: multiclass: values in the order of their class numbers.
    mean: regression: mean of the column over train rows that have a value.
    std: regression: their standard deviation.
    condition: binary: condition under which the label is 1, see data/conditions.py.
    labelled: condition of the rows that have a label; empty for all.
    implies: names of tasks whose label is 1 wherever this one's is.
  """

  name: str
  column: str = ""
  positive: tuple[str, ...] = ()
  negative: tuple[str, ...] = ()
  kind: str = "binary"
  classes: tuple[str, ...] = ()
  mean: float = 0.0
  std: float = 1.0
  condition: str = ""
  labelled: str = ""
  implies: tuple[str, ...] = ()

  @property
  def outputs(self) -> int:
    """Number of model outputs of the task."""
    return len(self.classes) if self.kind == "multiclass" else 1

  @property
  def columns(self) -> tuple[str, ...]:
    """Columns that the label is made from; they are no features of a run with this task."""
    found = [self.column] if self.column else []
    for text in (self.condition, self.labelled):
      found += parse_condition(text).columns if text else ()
    return tuple(dict.fromkeys(found))


@dataclasses.dataclass(frozen=True)
class Slice:
  """Rows on which a condition holds; metrics are also reported on them."""

  name: str
  condition: str


@dataclasses.dataclass(frozen=True)
class EncodedRows:
  """Rows as integers and numbers, in the feature order of the schema that encoded them.

  Attributes:
    ids: (N, F) unsigned integers, the ids of every id feature, see Schema.id_columns.
    numbers: (N, D) continuous columns with the values of the table, NaN where missing.
    labels: (N, T) float32, see Task, NaN where missing; None if not requested.
    weights: (N,) float32 sample weights; None if not requested.
    slices: (N, S) bool, whether a row is in each slice; None if not requested.
    unknown: column -> number of values that its vocabulary does not contain, and the first of them.
    dropped: column -> number of values of lists beyond the length of the feature.
  """

  ids: np.ndarray
  numbers: np.ndarray
  labels: np.ndarray | None = None
  weights: np.ndarray | None = None
  slices: np.ndarray | None = None
  unknown: Mapping[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
  dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Split:
  """One split in the form that models and metrics take.

  Attributes:
    features: `ids` (N, F) unsigned integers and `numeric` (N, inputs) float32, standardised.
    labels: (N, T) float32: 0 or 1 (binary), class number (multiclass) or standardised value
      (regression); NaN where missing.
    weights: (N,) float32 sample weights.
    slices: name -> (N,) bool, the rows of each slice.
  """

  features: dict[str, np.ndarray]
  labels: np.ndarray
  weights: np.ndarray
  slices: dict[str, np.ndarray]

  def __len__(self) -> int:
    """Number of rows N."""
    return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Schema:
  """Everything needed to turn a table into arrays.

  Data preparation fits a schema on train rows, once, and saves it as `schema.json`. A run narrows
  it to its tasks and features (selection.select) and keeps the narrower schema in its work
  directory, so that prediction encodes exactly as training did.

  Attributes:
    columns: names of the raw columns, in their order.
    id_features: features that select rows of embedding tables.
    numeric: standardised continuous features.
    tasks: tasks that can be learned.
    weight_column: column of sample weights, if any.
    slices: row slices that metrics are reported on.
    protocols: protocol -> columns that may not be features under it, for any task.
    counts: counts of rows and labels for reports.
    sources: digests of the raw files.
    crosses: crossed features `a#b` of every run, see selection.add_crosses.
    keep: columns that prediction copies to the scores.
    missing: column -> texts that stand for a missing value there.
    separator: separator of values in CSV files.
  """

  columns: tuple[str, ...]
  id_features: tuple[IdFeature, ...]
  numeric: tuple[NumericFeature, ...]
  tasks: tuple[Task, ...]
  weight_column: str | None = None
  slices: tuple[Slice, ...] = ()
  protocols: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  counts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
  crosses: tuple[str, ...] = ()
  keep: tuple[str, ...] = ()
  missing: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  separator: str = ","

  @property
  def id_columns(self) -> dict[str, slice]:
    """Columns of the ids by the name of their feature; a list has one per value."""
    ends = np.cumsum([0, *(f.length for f in self.id_features)]).tolist()
    return {
      f.name: slice(*ends)
      for f, ends in zip(self.id_features, itertools.pairwise(ends), strict=True)
    }

  @property
  def id_count(self) -> int:
    """Number F of columns of ids."""
    return sum(f.length for f in self.id_features)

  @property
  def numeric_count(self) -> int:
    """Number of the model's numeric inputs."""
    return sum(n.inputs for n in self.numeric)

  def id_feature(self, name: str) -> IdFeature:
    """Returns the id feature of that name."""
    return next(f for f in self.id_features if f.name == name)
