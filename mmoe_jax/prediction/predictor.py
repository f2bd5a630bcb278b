"""Predictor: scores of raw rows by the best variables of a run."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from mmoe_jax import data, models, parallel
from mmoe_jax.data.tables import floats_as_csv, read_table
from mmoe_jax.errors import UserError, require
from mmoe_jax.evaluation import evaluate
from mmoe_jax.files import write_atomically
from mmoe_jax.workdir import checkpoint, contract, logs

_UNKNOWN_SHARE = 0.05  # Of unknown values in a column, above which there is a warning.


class Predictor:
  """The best variables of a run, ready to score tables.

  Attributes:
    schema: the schema that the run encodes with.
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
    self._workdir = workdir
    config = ConfigDict(contract.read_config(workdir))
    members = len(config.get(contract.MEMBERS, ()))
    _check_member(workdir, members, member)
    self.schema: data.Schema = contract.read_schema(workdir)
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

  def __call__(self, frame: pd.DataFrame, where: str = "the table") -> pd.DataFrame:
    """Scores raw rows.

    Args:
      frame: rows as strings, as data.tables.read_table gives them; labels are not needed.
      where: name of the table in errors.

    Returns:
      float64 columns, in the order of the rows. For each task one by its name: the probability of
      label 1 (binary), or an estimate in the units of the table (regression); or one per class,
      `TASK=CLASS`: its probability (multiclass).
    """
    encoded = data.encode(self.schema, frame, where=where)
    return pd.DataFrame(self.score(data.to_features(self.schema, encoded)))

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

  def score_file(self, input_path: str, output_path: str) -> int:
    """Scores the rows of a file and writes a CSV file, atomically.

    Returns:
      Number of rows.

    Raises:
      UserError: naming the error in the file.
      OSError: if a file cannot be read or written.
    """
    is_input = os.path.exists(output_path) and os.path.samefile(input_path, output_path)
    require(not is_input, f"--output={output_path}: is the input; use another file")
    contract.require_free(self._workdir, output_path)
    frame = read_table(input_path, self.schema.columns)
    encoded = data.encode(self.schema, frame, where=input_path)
    self._warn_of_unknown(frame, encoded, input_path)
    scores = self.score(data.to_features(self.schema, encoded))
    for name, values in scores.items():
      is_finite = np.isfinite(values)
      require(
        bool(is_finite.all()),
        f"{input_path}, line {frame.index[int(np.argmin(is_finite))]}: the score of {name} is not "
        "finite; check the numbers of this row, or train again if every row is concerned",
      )
    write_atomically(output_path, floats_as_csv(scores))
    return len(frame)

  def _warn_of_unknown(self, frame: pd.DataFrame, rows: data.EncodedRows, where: str) -> None:
    """Prints a warning for columns with many values that training did not contain."""
    for column, count in data.count_unknown(self.schema, rows).items():
      if count > _UNKNOWN_SHARE * len(frame):
        feature = next(f for f in self.schema.id_features if f.sources == (column,))
        value = next(v for v in frame[column] if v not in feature.values)
        print(
          f"warning: {where}, column '{column}': {count:,} of {len(frame):,} rows have values that "
          f"training did not contain, such as '{value:.60}' (training had '{feature.values[0]}'); "
          "their scores mean little",
          file=sys.stderr,
        )

  def _variables_like(self, leading: tuple[int, ...]) -> Any:
    """Returns the shapes of the variables, with leading axes."""
    one_row = {
      "ids": np.zeros((1, len(self.schema.id_features)), np.int32),
      "numeric": np.zeros((1, len(self.schema.numeric)), np.float32),
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
