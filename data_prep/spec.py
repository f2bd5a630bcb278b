"""Spec of a table in TOML: the role of each column, the tasks, the splits. See docs/spec.md."""

import tomllib
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from mmoe_jax import data, errors
from mmoe_jax.data import conditions, locations
from mmoe_jax.errors import UserError, require, require_known

ROLES = ("category", "hash", "number", "list", "time", "weight", "label", "keep", "ignore")
_LARGEST_TABLE = 1 << 31  # Rows of an embedding table.
_LONGEST = 1 << 24  # Bytes of a spec.


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
  """Role of a column, and its settings.

  Attributes:
    role: one of ROLES.
    min_count: category, list: values that fewer train rows have are unknown values.
    vocabulary: category, list: file with one value per line, instead of those of train rows.
    buckets: hash, list: number of buckets that values share by a hash.
    transform: number: `identity`, `log1p` or `quantile`, before it is standardised.
    bins: number: maximum number of quantile bins.
    log_int: number: whether floor(log(x + 1)) is a further form, of `numeric=log_int`.
    missing: texts that stand for a missing value; numbers with missing values get an indicator.
    separator: list: separator of values in a text.
    length: list: values per row that are kept; 0 for as many as train rows have, up to 32.
    pooling: list: `mean` or `sum`.
    parts: time: parts that are features.
    table: category, hash, list: columns with the same name of a table share ids and embeddings.
  """

  role: Literal["category", "hash", "number", "list", "time", "weight", "label", "keep", "ignore"]
  min_count: int = 1
  vocabulary: str = ""
  buckets: int = 0
  transform: Literal["identity", "log1p", "quantile"] = "identity"
  bins: int = 64
  log_int: bool = False
  missing: tuple[str, ...] = ()
  separator: str = "|"
  length: int = 0
  pooling: Literal["mean", "sum"] = "mean"
  parts: tuple[Literal["month", "day", "weekday", "hour", "minute"], ...] = ("weekday", "hour")
  table: str = ""


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
  """Task of a spec.

  Attributes:
    kind: `binary`, `multiclass` or `regression`.
    column: column of the classes or numbers.
    condition: binary: condition under which the label is 1, see mmoe_jax/data/conditions.py.
    labelled: condition of the rows that have a label; empty for all.
    implies: tasks whose label is 1 wherever this one's is.
  """

  kind: Literal["binary", "multiclass", "regression"] = "binary"
  column: str = ""
  condition: str = ""
  labelled: str = ""
  implies: tuple[str, ...] = ()


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
  """Splits of a spec.

  Attributes:
    method: `files`: by --train, --validation and --test; `random`: by shares; `group`: by shares of
      the values of `column`, none of which is in two splits; `time`: by `column`.
    validation: share of validation rows; with `files`, of train rows if there is no file.
    test: share of test rows.
    seed: seed of `random` and `group`.
    column: column of `group` and `time`.
    validation_from: time from which rows are validation rows.
    test_from: time from which rows are test rows.
  """

  method: Literal["files", "random", "group", "time"] = "random"
  validation: float = 0.1
  test: float = 0.1
  seed: int = 0
  column: str = ""
  validation_from: str = ""
  test_from: str = ""


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
  """Spec of a table.

  Attributes:
    columns: name -> role, in the order of the features.
    tasks: name -> task.
    split: the splits.
    header: whether CSV files have a header; otherwise they have `columns` in their order.
    separator: separator of values in CSV files.
    slices: name -> condition of rows that metrics are also reported on.
    crosses: crossed features `a#b` of every run.
    protocols: name -> columns that are no features under it; the first one is the default.
  """

  columns: dict[str, Column]
  tasks: dict[str, Task]
  split: Split = Split()
  header: bool = True
  separator: str = ","
  slices: dict[str, str] = {}
  crosses: tuple[str, ...] = ()
  protocols: dict[str, tuple[str, ...]] = {}

  def of_role(self, *roles: str) -> tuple[str, ...]:
    """Returns the columns of some roles, in their order."""
    return tuple(name for name, column in self.columns.items() if column.role in roles)

  @property
  def tables(self) -> dict[str, tuple[str, ...]]:
    """Columns of each shared table."""
    found: dict[str, tuple[str, ...]] = {}
    for name, column in self.columns.items():
      if column.table:
        found[column.table] = (*found.get(column.table, ()), name)
    return found

  @property
  def weight(self) -> str | None:
    """Column of the sample weights, if any."""
    return next(iter(self.of_role("weight")), None)


def read_spec(path: str) -> Spec:
  """Reads and validates a spec, local or remote.

  Raises:
    UserError: naming the file, the key and what is wrong.
    OSError: if it cannot be read.
  """
  locations.require_readable(path)
  require(locations.stat(path)[0] <= _LONGEST, f"{path}: too large for a spec")
  return parse_spec(locations.read_text(path), path)


def parse_spec(text: str, where: str) -> Spec:
  """Parses and validates the text of a spec.

  Args:
    text: TOML.
    where: its file, for errors.

  Raises:
    UserError: naming the file, the key and what is wrong.
  """
  try:
    content = tomllib.loads(text)
  except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
    raise UserError(f"{where}: not TOML: {error}") from error
  try:
    spec = msgspec.convert(content, Spec)
  except (msgspec.ValidationError, RecursionError) as error:
    raise UserError(f"{where}: {_explain(str(error), content)}") from error
  check(spec, where)
  return spec


def check(spec: Spec, where: str) -> None:
  """Validates the parts of a spec against each other.

  Raises:
    UserError: naming the key.
  """
  require(bool(spec.columns), f"{where}: columns: must name at least one column")
  require(bool(spec.tasks), f"{where}: tasks: must define at least one task")
  require(
    len(spec.separator) == 1 and spec.separator not in "\"'\n\r ",
    f"{where}: separator = {spec.separator!r}: must be one character, such as ',' or '\\t'",
  )
  for name, column in spec.columns.items():
    _check_column(f"{where}: columns.{name}", name, column)
  for table, names in spec.tables.items():
    _check_name(f"{where}: columns.{names[0]}.table", table)
    for key in ("buckets", "min_count", "vocabulary"):
      values = {getattr(spec.columns[name], key) for name in names}
      require(
        len(values) == 1,
        f"{where}: columns {', '.join(names)} share the table '{table}': {key} must be the same",
      )
  require(
    len(spec.of_role("weight")) <= 1,
    f"{where}: columns {', '.join(spec.of_role('weight'))} have the role 'weight': must be one",
  )
  features = spec.of_role("category", "hash", "number", "list", "time")
  require(bool(features), f"{where}: columns: none is a feature; give one another role")
  for name, task in spec.tasks.items():
    _check_task(spec, f"{where}: tasks.{name}", name, task)
  _check_split(spec, f"{where}: split")
  for name, text in spec.slices.items():
    _check_name(f"{where}: slices.{name}", name)
    _check_condition(spec, text, f"{where}: slices.{name}")
  for name, columns in spec.protocols.items():
    for column in columns:
      require_known(column, spec.columns, f"{where}: protocols.{name}: a column")
  crossable = [*spec.of_role("category", "hash"), *(f"{n}_bins" for n in spec.of_role("number"))]
  for cross in spec.crosses:
    parts = cross.split("#")
    require(len(parts) == 2, f"{where}: crosses: '{cross}' must have the form a#b")
    for part in parts:
      require_known(part, crossable, f"{where}: a feature of '{cross}' in crosses")


def _explain(text: str, content: Any) -> str:
  """Returns msgspec's error with the key in TOML's form, and a suggestion for an unknown key."""
  text, _, path = text.partition(" - at `")
  key = path.rstrip("`").replace("$.", "").replace("$", "")
  # msgspec hides the keys of dictionaries; the one that fails is found by trying each.
  for group, kind in (("columns", Column), ("tasks", Task)):
    items = content.get(group)
    if key.startswith(f"{group}[") and isinstance(items, dict):
      for name, item in items.items():
        try:
          msgspec.convert(item, kind)
        except msgspec.ValidationError:
          key = key.replace("[...]", f".{name}", 1)
          break
  if "unknown field `" in text:
    field = text.split("`")[1]
    kind = Column if key.startswith("columns") else Task if key.startswith("tasks") else Spec
    kind = Split if key.startswith("split") else kind
    known = kind.__struct_fields__
    return f"{key or 'the spec'}: has no key '{field}'; {errors.did_you_mean(field, known)}"
  if "missing required field `" in text:
    return f"{key or 'the spec'}: {text.split('`')[1]} is missing"
  return f"{key or 'the spec'}: {text[:1].lower()}{text[1:]}"


def _check_name(where: str, name: str) -> None:
  good = bool(name) and name.isprintable() and not set(name) & set("/\\#=+,:[]") and name != "."
  require(good, f"{where}: a name must not be empty or contain / \\ # = + , : [ or ]")


def _check_column(where: str, name: str, column: Column) -> None:
  require(
    bool(name) and name.isprintable() and "`" not in name,
    f"{where}: a column's name must be printable and have no `",
  )
  if column.role in ("category", "hash", "number", "list", "time"):
    require("#" not in name, f"{where}: the name of a feature must not contain #")
  require(column.min_count >= 1, f"{where}.min_count = {column.min_count}: must be at least 1")
  require(1 <= column.bins <= 10_000, f"{where}.bins = {column.bins}: must be from 1 to 10,000")
  require(0 <= column.length <= 1000, f"{where}.length = {column.length}: must be from 0 to 1,000")
  require(
    0 <= column.buckets < _LARGEST_TABLE,
    f"{where}.buckets = {column.buckets}: must be from 0 to {_LARGEST_TABLE - 1:,}",
  )
  require(
    column.role != "hash" or column.buckets > 0,
    f"{where}.buckets is missing: a hashed column needs a number of buckets",
  )
  require(column.separator != "", f"{where}.separator is empty: must be a text such as '|'")
  require(bool(column.parts), f"{where}.parts is empty: must name a part such as 'hour'")
  own = {
    "min_count": ("category", "list"),
    "vocabulary": ("category", "list"),
    "buckets": ("hash", "list"),
    "transform": ("number",),
    "bins": ("number",),
    "log_int": ("number",),
    "separator": ("list",),
    "length": ("list",),
    "pooling": ("list",),
    "parts": ("time",),
    "table": ("category", "hash", "list"),
  }
  defaults = Column(role=column.role)
  for key, roles in own.items():
    is_default = getattr(column, key) == getattr(defaults, key)
    require(
      is_default or column.role in roles,
      f"{where}.{key}: has no effect on the role '{column.role}'; remove it, or use the role "
      f"{' or '.join(roles)}",
    )
  require(
    not (column.buckets and (column.vocabulary or column.min_count > 1)),
    f"{where}.buckets: has no vocabulary or min_count; remove one of them",
  )


def _check_task(spec: Spec, where: str, name: str, task: Task) -> None:
  _check_name(where, name)
  if task.kind == "binary":
    require(bool(task.condition), f"{where}.condition is missing, such as 'rating >= 4'")
    require(not task.column, f"{where}.column: has no effect on a binary task; use condition")
    _check_condition(spec, task.condition, f"{where}.condition")
  else:
    require(bool(task.column), f"{where}.column is missing: the column of the labels")
    require(not task.condition, f"{where}.condition: only for binary tasks; remove it")
    require_known(task.column, spec.columns, f"{where}.column")
  if task.labelled:
    _check_condition(spec, task.labelled, f"{where}.labelled")
  for other in task.implies:
    require_known(other, spec.tasks, f"{where}.implies: a task")
    is_binary = task.kind == "binary" == spec.tasks[other].kind
    require(other != name and is_binary, f"{where}.implies: must be other binary tasks of two")


def _check_condition(spec: Spec, text: str, where: str) -> None:
  for column in conditions.parse_condition(text, where).columns:
    require_known(column, spec.columns, f"{where}: a column")


def _check_split(spec: Spec, where: str) -> None:
  split = spec.split
  for key in ("validation", "test"):
    share = getattr(split, key)
    require(0 < share < 1, f"{where}.{key} = {share}: must be a share between 0 and 1")
  require(
    split.validation + split.test < 1,
    f"{where}: validation and test are {split.validation + split.test:g} of the rows together: "
    "must be below 1",
  )
  require(0 <= split.seed < 2**63, f"{where}.seed = {split.seed}: must be a whole number >= 0")
  if split.method in ("group", "time"):
    require(bool(split.column), f"{where}.column is missing: the column of the {split.method}")
    require_known(split.column, spec.columns, f"{where}.column")
  else:
    require(not split.column, f"{where}.column: has no effect on the method '{split.method}'")
  is_time = split.method == "time"
  for key in ("validation_from", "test_from"):
    value = getattr(split, key)
    require(
      bool(value) == is_time,
      f"{where}.{key}: " + ("is missing, such as '2026-01-31'" if is_time else "only for 'time'"),
    )
  if is_time:
    start, end = (
      parse_time(getattr(split, k), f"{where}.{k}") for k in ("validation_from", "test_from")
    )
    require(start < end, f"{where}: validation_from must be before test_from")


def parse_time(text: str, where: str) -> Any:
  """Parses one time as datetime64[s].

  Raises:
    UserError: if it is none.
  """
  from mmoe_jax.data.columns import from_rows
  from mmoe_jax.data.times import times_of

  return times_of(from_rows([{"time": text}], where), "time")[0]


def to_tasks(spec: Spec) -> list[data.Task]:
  """Returns the tasks of a spec, not fitted yet.

  A condition on the values of one column also names these; fitting keeps one of both.
  """
  tasks = []
  for name, task in spec.tasks.items():
    fields: dict[str, Any] = {"labelled": task.labelled, "implies": task.implies}
    condition = conditions.parse_condition(task.condition) if task.condition else None
    if condition:
      fields |= {"condition": task.condition}
      if condition.values:
        fields |= {"column": condition.column, "positive": condition.values}
    else:
      fields |= {"column": task.column}
    tasks.append(data.Task(name, kind=task.kind, **fields))
  return tasks


def needed_columns(spec: Spec, tasks: Sequence[data.Task]) -> tuple[str, ...]:
  """Returns the columns that preparation reads, each once."""
  needed = [*spec.of_role("category", "hash", "number", "list", "time", "weight")]
  needed += [column for task in tasks for column in task.columns]
  for text in spec.slices.values():
    needed += conditions.parse_condition(text).columns
  needed += [spec.split.column] if spec.split.column else []
  return tuple(dict.fromkeys(needed))
