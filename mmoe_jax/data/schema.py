"""Schema of a table: the columns, vocabularies, statistics and tasks that turn rows into arrays.

Shape letters: N rows, F id features, D numeric features, T tasks.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

UNKNOWN = 0  # Id of every value that train rows do not contain.
KINDS = ("binary", "multiclass", "regression")
TRANSFORMS = ("log1p", "identity")


@dataclasses.dataclass(frozen=True)
class IdFeature:
  """Feature that selects a row of an embedding table. Id 0 is reserved for unknown values.

  Attributes:
    name: unique name, such as `education`, `age_bins` or `education#sex`.
    kind: `category` (a nominal column), `bins` (quantile bins of a number), `log_int`
      (floor of log(x + 1), as in the MetaSpore demo) or `cross` (a pair of id features).
    sources: the column, or the two id features, that it is made from.
    values: values of ids 1, 2, …: category strings, lower edges of bins, integers of `log_int`, or
      for a cross the pairs as `first_id * size_of_second + second_id`.
  """

  name: str
  kind: str
  sources: tuple[str, ...]
  values: tuple[str | int | float, ...]

  @property
  def size(self) -> int:
    """Number of ids, the one for unknown values included."""
    return len(self.values) + 1


@dataclasses.dataclass(frozen=True)
class NumericFeature:
  """Continuous column, transformed and then standardised.

  Attributes:
    name: the column.
    mean: mean of the transformed values over train rows.
    std: their standard deviation.
    transform: `log1p`, for amounts of at least 0, or `identity`.
  """

  name: str
  mean: float
  std: float
  transform: str = "log1p"


@dataclasses.dataclass(frozen=True)
class Task:
  """Task that is learned from a column.

  Attributes:
    name: name of the task.
    column: column that labels are made from.
    positive: binary: values with label 1.
    negative: binary: values with label 0.
    kind: `binary`: one output, the logit of label 1; `multiclass`: one output per class, the
      logits of a softmax, labels are class numbers; `regression`: one output, an estimate of the
      label, which is (value − mean) / std.
    classes: multiclass: values in the order of their class numbers.
    mean: regression: mean of the column over train rows that have a value.
    std: regression: their standard deviation.
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
    """Number of model outputs of the task."""
    return len(self.classes) if self.kind == "multiclass" else 1


@dataclasses.dataclass(frozen=True)
class Slice:
  """Rows whose numeric `column` is at least `at_least`; metrics are also reported on them."""

  name: str
  column: str
  at_least: float


@dataclasses.dataclass(frozen=True)
class EncodedRows:
  """Rows as integers and numbers, in the feature order of the schema that encoded them.

  Attributes:
    ids: (N, F) unsigned integers, the id of every id feature.
    numbers: (N, D) continuous columns with the values of the table.
    labels: (N, T) float32, see Task, NaN where missing; None if not requested.
    weights: (N,) float32 sample weights; None if not requested.
  """

  ids: np.ndarray
  numbers: np.ndarray
  labels: np.ndarray | None = None
  weights: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Split:
  """One split in the form that models and metrics take.

  Attributes:
    features: `ids` (N, F) unsigned integers and `numeric` (N, D) float32, standardised.
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

  def id_feature(self, name: str) -> IdFeature:
    """Returns the id feature of that name."""
    return next(f for f in self.id_features if f.name == name)
