"""Facts about a run that the page shows: what its work directory holds, and what is measured.

Shape letters: N rows, C classes, D bootstrap draws.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmoe_jax import data
from mmoe_jax.errors import UserError, require
from mmoe_jax.evaluation import column_effects, evaluate
from mmoe_jax.evaluation import held_out_statistics as statistics
from mmoe_jax.evaluation import metrics as metrics_lib
from mmoe_jax.evaluation.column_effects import METRIC_OF_KIND
from mmoe_jax.models import mean_scores
from mmoe_jax.prediction import gate_measurements
from mmoe_jax.prediction.predictor import MEAN, Predictor, score_names
from mmoe_jax.prediction.splits import data_folder, load_split
from mmoe_jax.workdir import contract, logs

MOST_ROWS = 200_000  # Rows of the test split that statistics are computed on.
_EFFECT_ROWS = 16_384  # Rows that effects of columns are computed on.
_PERMUTATIONS = 5
_DRAWS = 300
_LARGEST_PAIR = 2**31  # Crosses with more pairs do not fit the integers of the device.


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Test rows with their scores.

  Attributes:
    split: the rows, or a random sample of them.
    scores: for each task (N,) probabilities or estimates in units of the table, or (N, C).
    counts: (D, N) bootstrap counts.
    all_rows: number of rows of the split.
    rows: numbers of the rows in the split, ascending.
  """

  split: data.Split
  scores: list[np.ndarray]
  counts: np.ndarray
  all_rows: int
  rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class ColumnEffects:
  """Effects of columns on each task's metric, (C, T); positive is worse.

  Attributes:
    names: names of the columns.
    permuted: mean over permutations.
    deviation: standard deviation between permutations.
    unknown: with unknown values.
    unknown_share: (C,) share of test rows without a known value; for numbers, where training marked
      missing ones.
    rows: number of rows that they were measured on.
    permutations: number of permutations.
  """

  names: list[str]
  permuted: np.ndarray
  deviation: np.ndarray
  unknown: np.ndarray
  unknown_share: np.ndarray
  rows: int
  permutations: int


@dataclasses.dataclass(frozen=True)
class RunFacts:
  """Facts about a run, about one member of a population, or about the mean of its members.

  Attributes:
    workdir: its work directory.
    member: number of the member; MEAN for the mean of all that converged; None for a run.
    config: content of config.json.
    results: content of results.json, or the part of it for the member or the mean.
    whole: content of results.json.
    records: records of metrics.jsonl, of the member; of the mean, see `read_records`.
    predictor: the best variables.
    directory: folder of the prepared data; empty if there is none.
    held_out: test rows with their scores; None without data.
    intervals: task -> metric and slice -> interval on test rows.
    effects: effects of columns; None without data.
    gates: content of gates.json; None for a model without gates, or without data, and of the mean.
    gates_of_members: of the mean, the gates of each member; see measure_gates_of_members.
    absent: reasons why parts are absent.
  """

  workdir: str
  member: int | str | None
  config: dict[str, Any]
  results: dict[str, Any]
  whole: dict[str, Any]
  records: list[dict[str, Any]]
  predictor: Predictor
  directory: str
  held_out: HeldOut | None
  intervals: dict[str, dict[str, statistics.Interval]]
  effects: ColumnEffects | None
  gates: dict[str, Any] | None
  gates_of_members: list[dict[str, Any]]
  absent: list[str]

  @property
  def tasks(self) -> Sequence[data.Task]:
    """Tasks of the run."""
    return self.predictor.schema.tasks

  @property
  def is_mean(self) -> bool:
    """True for facts about the mean of a population's members."""
    return self.member == MEAN

  @property
  def best_epochs(self) -> list[tuple[int, int]]:
    """Best epoch and number of epochs of the run, or of each member that the mean is of."""
    of = self.whole[contract.MEMBERS] if self.is_mean else [self.results]
    of = [of[m] for m in self.predictor.members] if self.is_mean else of
    return [(each["best_epoch"], each["epochs"]) for each in of]


def collect(workdir: str, data_dir: str = "", member: int | str | None = None) -> RunFacts:
  """Collects the facts about a finished run.

  Args:
    workdir: work directory of a run or a population.
    data_dir: folder of the prepared data; empty for that of the run.
    member: member of a population, or MEAN; None for the best member on validation rows.

  Raises:
    UserError: if the run has not finished, or is broken, or has no mean.
  """
  config, whole = contract.read_config(workdir), contract.read_results(workdir)
  results = whole
  if contract.MEMBERS in whole:
    member = best_member(config, whole) if member is None else member
  predictor = Predictor(workdir, member)
  if member == MEAN:
    results = _mean_results(workdir, whole)
  elif member is not None:
    results = whole[contract.MEMBERS][member]
  absent: list[str] = []
  directory, held_out, effects, gates, gates_of_members = "", None, None, None, []
  intervals: dict[str, dict[str, statistics.Interval]] = {}
  try:
    directory = data_folder(workdir, data_dir)
    data.verify(directory)
    held_out = _score_test_rows(predictor, directory)
  except (UserError, OSError) as error:
    require(not data_dir, str(error))  # A folder that was asked for must work.
    absent.append(f"Parts that need test rows are left out: {error}.")
  if held_out is not None:
    intervals = _intervals(predictor.schema.tasks, held_out)
    effects = _measure_columns(predictor, held_out, absent)
    has_gates = _has_gates(predictor, held_out)
    if has_gates and member == MEAN:
      gates_of_members = gate_measurements.measure_gates_of_members(
        predictor, held_out.split.features
      )
    elif has_gates:
      gates = gate_measurements.measure_gates_of_rows(
        predictor, directory, "test", held_out.split.features, held_out.rows
      )
  return RunFacts(
    workdir=workdir,
    member=member,
    config=config,
    results=dict(results),
    whole=whole,
    records=read_records(workdir, predictor.members if member == MEAN else member),
    predictor=predictor,
    directory=directory,
    held_out=held_out,
    intervals=intervals,
    effects=effects,
    gates=gates,
    gates_of_members=gates_of_members,
    absent=absent,
  )


def best_member(config: Mapping[str, Any], results: Mapping[str, Any]) -> int:
  """Returns the member with the best validation metric of config.select.

  Raises:
    UserError: if no member has one.
  """
  select = config["select"]
  values = {}
  for m, member in enumerate(results[contract.MEMBERS]):
    metrics = member.get("validation", {})
    tasks = select["tasks"] or [n.split("/")[0] for n in metrics if n.endswith(select["metric"])]
    found = [metrics.get(f"{task}/{select['metric']}") for task in tasks]
    if found and all(isinstance(v, int | float) for v in found) and "error" not in member:
      values[m] = float(np.mean(found))
  require(bool(values), "no member of the population has a validation metric to report on")
  sign = -1 if select["metric"] in metrics_lib.LOWER_IS_BETTER else 1
  return max(values, key=lambda m: (sign * values[m], -m))


def _mean_results(workdir: str, whole: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the results of the mean, with the number of parameters of all its members."""
  found = whole.get("mean")
  if not found:
    raise UserError(
      f"{workdir}: results.json has no metrics of the mean of members: fewer than two converged, "
      "or each has separate data; use --member=N"
    )
  members = [whole[contract.MEMBERS][m] for m in found["members"]]
  return {**found, "parameters": sum(member["parameters"] for member in members)}


def read_records(workdir: str, member: int | Sequence[int] | None) -> list[dict[str, Any]]:
  """Returns the records of metrics.jsonl.

  Args:
    workdir: work directory of a run or a population.
    member: None for a run; a member, for the epochs that it trained; several members, for their
      means over the epochs that all of them trained.
  """
  if isinstance(member, Sequence):
    each = [read_records(workdir, m) for m in member]
    return [_mean_record(records) for records in zip(*each, strict=False)]
  records = logs.read_metrics(workdir)
  if member is None:
    return records
  own = [{"epoch": r["epoch"], **logs.of_member(r, member)} for r in records]
  return [r for r in own if r.get("active", True)]


def _mean_record(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the means of the numbers that all records of an epoch have."""
  is_number = lambda v: isinstance(v, int | float) and not isinstance(v, bool)
  names = [k for k in records[0] if all(is_number(r.get(k)) for r in records)]
  means = {k: float(np.mean([r[k] for r in records])) for k in names}
  return means | {"epoch": records[0]["epoch"]}


def main_metric(task: data.Task) -> str:
  """Returns the metric that stands for a task in summaries."""
  return METRIC_OF_KIND[task.kind]


def _score_test_rows(predictor: Predictor, directory: str) -> HeldOut:
  split = load_split(directory, "test", predictor)
  all_rows = len(split)
  rows = np.arange(all_rows)
  if all_rows > MOST_ROWS:
    rows = np.sort(np.random.default_rng(0).choice(all_rows, MOST_ROWS, replace=False))
    split = data.Split(
      {name: array[rows] for name, array in split.features.items()},
      split.labels[rows],
      split.weights[rows],
      {name: array[rows] for name, array in split.slices.items()},
    )
  named = predictor.score(split.features)
  scores = []
  for task in predictor.schema.tasks:
    columns = [named[name] for name in score_names([task])]
    scores.append(np.stack(columns, 1) if task.kind == "multiclass" else columns[0])
  return HeldOut(split, scores, statistics.draw_counts(len(split), _DRAWS), all_rows, rows)


def in_label_units(task: data.Task, scores: np.ndarray) -> np.ndarray:
  """Returns scores in the units of prepared labels: a regression's are standardised."""
  return (scores - task.mean) / task.std if task.kind == "regression" else scores


def _intervals(
  tasks: Sequence[data.Task], held_out: HeldOut
) -> dict[str, dict[str, statistics.Interval]]:
  """Returns task -> metric, with the suffix of its slice -> interval."""
  found: dict[str, dict[str, statistics.Interval]] = {}
  split = held_out.split
  views = {"": np.ones(len(split), bool)} | {f"_{k}": rows for k, rows in split.slices.items()}
  for t, task in enumerate(tasks):
    scores = in_label_units(task, held_out.scores[t])
    found[task.name] = {}
    for suffix, rows in views.items():
      if rows.any():
        of_view = statistics.metric_intervals(
          task, scores[rows], split.labels[rows, t], held_out.counts[:, rows]
        )
        found[task.name] |= {f"{name}{suffix}": value for name, value in of_view.items()}
  return found


def _measure_columns(
  predictor: Predictor, held_out: HeldOut, absent: list[str]
) -> ColumnEffects | None:
  """Returns the effects of columns on a sample of the test rows."""
  schema = predictor.schema
  for feature in schema.id_features:
    if feature.kind == "cross":
      first, second = (schema.id_feature(name).size for name in feature.sources)
      if first * second >= _LARGEST_PAIR:
        absent.append(f"Effects of columns are left out: {feature.name} has too many pairs.")
        return None
  rng = np.random.default_rng(0)
  split = held_out.split
  rows = np.sort(rng.permutation(len(split))[:_EFFECT_ROWS])
  permutations = np.stack([rng.permutation(len(rows)) for _ in range(_PERMUTATIONS)])
  predict = evaluate.make_predict(predictor.model)
  if predictor.member == MEAN:
    predict = mean_scores.over_members(predict, schema.tasks)
  measure = jax.jit(column_effects.make_measure(predict, schema))
  features = {
    "ids": split.features["ids"][rows].astype(np.int32),
    "numeric": split.features["numeric"][rows],
  }
  effects = jax.device_get(
    measure(predictor.variables, features, split.labels[rows], permutations.astype(np.int32))
  )
  worse = lambda changed: column_effects.worsening(schema.tasks, effects.base_T, changed)
  permuted_CxRxT = worse(effects.permuted_CxRxT)
  return ColumnEffects(
    column_effects.columns_of(schema).names,
    permuted_CxRxT.mean(1),
    permuted_CxRxT.std(1, ddof=1),
    worse(effects.unknown_CxT),
    column_effects.unknown_shares(schema, split.features),
    len(rows),
    _PERMUTATIONS,
  )


def _has_gates(predictor: Predictor, held_out: HeldOut) -> bool:
  row = {name: array[:1] for name, array in held_out.split.features.items()}
  predict = evaluate.make_predict_with_gates(predictor.model)
  variables = predictor.each_variables()[0]
  shapes = jax.eval_shape(predict, variables, evaluate.to_chunks(row))
  return shapes[1] is not None
