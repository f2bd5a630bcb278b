"""Predictor: scores of raw rows by the best variables of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from mmoe_jax import data, models, parallel
from mmoe_jax.errors import UserError, require
from mmoe_jax.evaluation import evaluate
from mmoe_jax.workdir import checkpoint, contract, logs, remote

MEAN = "mean"  # In place of a member: the mean of all.


class Predictor:
  """The best variables of a run, ready to score tables.

  Attributes:
    workdir: work directory of the run; its local copy, if it is in object storage.
    member: member, if the run is a population; MEAN for all members whose training converged.
    members: their numbers; empty if the run is no population.
    schema: the schema that the run encodes with.
    encoder: encoder of that schema.
    model: the model.
    variables: its best variables; of MEAN with a leading axis of members.
    epoch: epoch of the checkpoint.
    log: digest of its records, see checkpoint.Restored.
  """

  def __init__(self, workdir: str, member: int | str | None = None):
    """Restores a run, or one member of a population or their mean, from its work directory.

    Raises:
      UserError: if the work directory contains no such run.
    """
    workdir = remote.local_copy(workdir)
    belongs_to = contract.digests_of(workdir)
    self.workdir, self.member = workdir, member
    config = ConfigDict(contract.read_config(workdir))
    members = len(config.get(contract.MEMBERS, ()))
    _check_member(workdir, members, member)
    self.schema: data.Schema = contract.read_schema(workdir)
    self.encoder = data.Encoder(self.schema)
    try:
      models.check_model(config.model, self.schema)
    except (AttributeError, KeyError, TypeError) as error:
      raise UserError(f"{workdir}: {contract.CONFIG} is broken: {error}") from error
    self.model = models.create_model(config.model, self.schema)
    predict = evaluate.make_predict(self.model)
    if member == MEAN:
      each = predict
      predict = lambda v, features: jax.lax.map(lambda one: each(one, features), v)
    self._predict = parallel.jit(predict)
    with checkpoint.Checkpoints(workdir, True, belongs_to) as checkpoints:
      best = checkpoints.restore_best(self._variables_like((members,) if members else ()))
    require(best is not None, f"{workdir}: contains no checkpoint yet")
    self.log = best.log
    self.epoch = best.epoch
    diverged = _find_diverged(workdir, best.epoch) if members else {}
    if member == MEAN:
      self.members = [m for m in range(members) if m not in diverged]
      require(bool(self.members), f"{workdir}: the training of every member diverged")
    else:
      reason = diverged.get(member)
      require(reason is None, f"--member={member}: its training diverged ({reason})")
      self.members = [member] if members else []
    self.variables = best.item
    if members:
      chosen = np.array(self.members) if member == MEAN else member
      self.variables = jax.tree.map(lambda a: a[chosen], best.item)

  @property
  def columns(self) -> list[str]:
    """Names of the scores, see `__call__`."""
    names = score_names(self.schema.tasks)
    return names + [f"{name}/std" for name in names] if self.member == MEAN else names

  @property
  def identity(self) -> list[Any]:
    """Digests and epoch of the checkpoint, which the scores depend on, and the member."""
    return [contract.digests_of(self.workdir), self.epoch, self.member]

  def __call__(self, rows: Any, where: str = "the table") -> pd.DataFrame:
    """Scores raw rows.

    Args:
      rows: raw rows, of any kind that data.columns.to_table converts: a DataFrame, an Arrow table,
        a dict, a list of dicts. Labels are not needed.
      where: name of the table in errors.

    Returns:
      float64 columns, in the order of the rows. For each task one by its name: the probability of
      label 1 (binary), or an estimate in the units of the table (regression); or one per class,
      `TASK=CLASS`: its probability (multiclass). With MEAN these are means over members, and
      `…/std` are the standard deviations between them.
    """
    return pd.DataFrame(self.scores(rows, where))

  def scores(self, rows: Any, where: str = "the table") -> dict[str, np.ndarray]:
    """Scores raw rows; returns the columns of `__call__` as arrays, which for a row is faster."""
    encoded = self.encoder(rows, where=where)
    return self.score(data.to_features(self.schema, encoded))

  def score(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores encoded rows.

    Args:
      features: `ids` (N, F) and `numeric` (N, D), see data.to_features.

    Returns:
      The columns of `__call__`, (N,) each.
    """
    rows = len(features["ids"])
    logits = jax.device_get(self._predict(self.variables, evaluate.to_chunks(features)))
    if self.member == MEAN:
      return self._mean_scores(logits[:, :rows])
    # In float64, distinct logits stay distinct probabilities, so AUC has no ties.
    return to_scores(self.schema.tasks, logits[:rows].astype(np.float64))

  def each_variables(self) -> list[Any]:
    """Returns the variables of each model whose mean the scores are."""
    if self.member != MEAN:
      return [self.variables]
    count = len(self.members)
    return [jax.tree.map(lambda a, m=m: a[m], self.variables) for m in range(count)]

  def _mean_scores(self, logits_MxNxO: np.ndarray) -> dict[str, np.ndarray]:
    """Returns means and standard deviations of the members' scores."""
    each = [to_scores(self.schema.tasks, z.astype(np.float64)) for z in logits_MxNxO]
    stacked = {name: np.stack([scores[name] for scores in each]) for name in each[0]}
    means = {name: values.mean(0) for name, values in stacked.items()}
    return means | {f"{name}/std": values.std(0) for name, values in stacked.items()}

  def _variables_like(self, leading: tuple[int, ...]) -> Any:
    """Returns the shapes of the variables, with leading axes."""
    one_row = {
      "ids": np.zeros((1, self.schema.id_count), np.int32),
      "numeric": np.zeros((1, self.schema.numeric_count), np.float32),
    }
    shapes = jax.eval_shape(self.model.init, jax.random.key(0), one_row)
    variables = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
      lambda s: jax.ShapeDtypeStruct(leading + s.shape, s.dtype, sharding=device), variables
    )


def score_names(tasks: Sequence[data.Task]) -> list[str]:
  """Returns the names of the scores of tasks: a task's, or `TASK=CLASS` for each class."""
  names = []
  for task in tasks:
    is_multiclass = task.kind == "multiclass"
    names += [f"{task.name}={c}" for c in task.classes] if is_multiclass else [task.name]
  return names


def to_scores(tasks: Sequence[data.Task], logits_NxO: np.ndarray) -> dict[str, np.ndarray]:
  """Converts model outputs to scores in the units of the table.

  Args:
    tasks: tasks, in the order of their outputs.
    logits_NxO: outputs of all tasks.

  Returns:
    Columns (N,) by name, see Predictor.__call__.
  """
  columns, start = {}, 0
  for task in tasks:
    z_NxC = logits_NxO[:, start : start + task.outputs]
    start += task.outputs
    if task.kind == "binary":
      with np.errstate(over="ignore"):  # Of infinity, the probability 0 is right.
        columns[task.name] = 1 / (1 + np.exp(-z_NxC[:, 0]))
    elif task.kind == "regression":
      columns[task.name] = z_NxC[:, 0] * task.std + task.mean
    else:
      odds_NxC = np.exp(z_NxC - z_NxC.max(1, keepdims=True))
      probabilities_CxN = (odds_NxC / odds_NxC.sum(1, keepdims=True)).T
      names = [f"{task.name}={value}" for value in task.classes]
      columns |= dict(zip(names, probabilities_CxN, strict=True))
  return columns


def parse_member(text: str) -> int | str | None:
  """Parses --member: a number, MEAN, or empty for none.

  Raises:
    UserError: for another text.
  """
  if text in ("", MEAN):
    return text or None
  require(text.isdecimal(), f"--member={text}: must be a number, or {MEAN}")
  return int(text)


def _check_member(workdir: str, members: int, member: int | str | None) -> None:
  if not members:
    require(member is None, f"--member={member}: the run in {workdir} is not a population")
    return
  if member == MEAN:
    return
  require(
    member is not None,
    f"{workdir}: a population of {members} members; choose one by --member=0 to {members - 1}, or "
    f"--member={MEAN}",
  )
  require(
    0 <= member < members, f"--member={member}: must be from 0 to {members - 1}, the last member"
  )


def _find_diverged(workdir: str, epoch: int) -> dict[int, str]:
  """Returns the members of a population whose training diverged, and why."""
  found = logs.read_metrics(workdir, epoch)
  errors = found[-1].get("errors") if found else None
  return {int(m): error for m, error in errors.items()} if isinstance(errors, dict) else {}
