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
from mmoe_jax.workdir import checkpoint, contract, logs


class Predictor:
  """The best variables of a run, ready to score tables.

  Attributes:
    workdir: work directory of the run.
    member: member, if the run is a population.
    schema: the schema that the run encodes with.
    encoder: encoder of that schema.
    model: the model.
    variables: its best variables.
    epoch: epoch of the checkpoint.
    log: digest of its records, see checkpoint.Restored.
  """

  def __init__(self, workdir: str, member: int | None = None):
    """Restores a run, or one member of a population, from its work directory.

    Raises:
      UserError: if the work directory contains no such run.
    """
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
    self._predict = parallel.jit(evaluate.make_predict(self.model))
    with checkpoint.Checkpoints(workdir, True, belongs_to) as checkpoints:
      best = checkpoints.restore_best(self._variables_like((members,) if members else ()))
    require(best is not None, f"{workdir}: contains no checkpoint yet")
    self.log = best.log
    self.epoch = best.epoch
    _require_converged(workdir, member, best.epoch)
    self.variables = jax.tree.map(lambda a: a[member], best.item) if members else best.item

  @property
  def columns(self) -> list[str]:
    """Names of the scores, see `__call__`."""
    return list(
      to_scores(self.schema.tasks, np.zeros((0, sum(t.outputs for t in self.schema.tasks))))
    )

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
      `TASK=CLASS`: its probability (multiclass).
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
    logits = jax.device_get(self._predict(self.variables, evaluate.to_chunks(features)))[:rows]
    # In float64, distinct logits stay distinct probabilities, so AUC has no ties.
    return to_scores(self.schema.tasks, logits.astype(np.float64))

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
      columns[task.name] = 1 / (1 + np.exp(-z_NxC[:, 0]))
    elif task.kind == "regression":
      columns[task.name] = z_NxC[:, 0] * task.std + task.mean
    else:
      odds_NxC = np.exp(z_NxC - z_NxC.max(1, keepdims=True))
      probabilities_CxN = (odds_NxC / odds_NxC.sum(1, keepdims=True)).T
      names = [f"{task.name}={value}" for value in task.classes]
      columns |= dict(zip(names, probabilities_CxN, strict=True))
  return columns


def _check_member(workdir: str, members: int, member: int | None) -> None:
  if not members:
    require(member is None, f"--member={member}: the run in {workdir} is not a population")
    return
  require(
    member is not None,
    f"{workdir}: a population of {members} members; choose one by --member=0 to {members - 1}",
  )
  require(
    0 <= member < members, f"--member={member}: must be from 0 to {members - 1}, the last member"
  )


def _require_converged(workdir: str, member: int | None, epoch: int) -> None:
  """Raises UserError for a member of a population whose training diverged."""
  records = logs.read_metrics(workdir, epoch) if member is not None else []
  diverged = records[-1].get("errors") if records else None
  if isinstance(diverged, dict) and str(member) in diverged:
    raise UserError(f"--member={member}: its training diverged ({diverged[str(member)]})")
