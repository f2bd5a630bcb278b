"""Scores raw rows: python -m mmoe_jax.predict --workdir DIR --input FILE --output FILE.csv."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from absl import flags
from ml_collections import ConfigDict

from mmoe_jax import cache, checkpoint, errors, evaluate, models, parallel, workdirs
from mmoe_jax.data import Schema, Task
from mmoe_jax.table import floats_as_csv, read_table, write_atomically


class Predictor:
  """The best variables of a run, ready to score tables.

  Attributes:
    schema: the schema that the run encodes with.
    model: the model.
    variables: its best variables.
  """

  def __init__(self, workdir: str, member: int | None = None):
    """Restores a run from its work directory, or one member of a population.

    Raises UserError when it holds none.
    """
    config = ConfigDict(workdirs.read_config(workdir))
    members = len(config.get(workdirs.MEMBERS, ()))
    _check_member(workdir, members, member)
    self.schema: Schema = workdirs.read_schema(workdir)
    try:
      self.model = models.create_model(config.model, self.schema)
    except (AttributeError, KeyError, TypeError) as error:
      raise errors.UserError(f"{workdir}: config.json is broken: {error}") from error
    self._predict = parallel.jit(evaluate.make_predict(self.model))
    with checkpoint.Checkpoints(workdir, read_only=True) as saver:
      variables = saver.restore_best(self._variables_like((members,) if members else ()))
    errors.require(variables is not None, f"{workdir}: no checkpoint here; has the run begun?")
    self.variables = jax.tree.map(lambda a: a[member], variables) if members else variables

  def __call__(self, frame: pd.DataFrame, where: str = "the table") -> pd.DataFrame:
    """Scores raw rows.

    Args:
      frame: the rows, as strings, such as `read_table` gives; labels are not needed.
      where: what to call the table in errors.

    Returns:
      float64 columns, in the order of the rows. For each task, one by its name: the probability of
      the label being 1 (binary), or an estimate in the units of the table (regression); or one a
      class, `TASK=CLASS`: its probability (multiclass).
    """
    features = self.schema.features(self.schema.encode(frame, where=where))
    return pd.DataFrame(self.score(features))

  def score(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores encoded rows: `ids` (N, F) and `numeric` (N, D), as `schema.features` gives them.

    Returns:
      The columns that calling gives for raw rows, (N,) each.
    """
    rows = len(features["ids"])
    logits = jax.device_get(self._predict(self.variables, evaluate.chunked(features)))[:rows]
    # In float64, where distinct logits stay distinct probabilities: no ties that AUC would see.
    return scores(self.schema.tasks, logits.astype(np.float64))

  def score_file(self, source: str, target: str) -> int:
    """Scores the rows of a file into a CSV file, which appears whole or not at all.

    Returns:
      How many rows it was.

    Raises:
      UserError: naming what is wrong with the file.
      OSError: when one cannot be read or written.
    """
    frame = read_table(source, self.schema.columns)
    features = self.schema.features(self.schema.encode(frame, where=source))
    write_atomically(target, floats_as_csv(self.score(features)))
    return len(frame)

  def _variables_like(self, leading: tuple[int, ...]) -> Any:
    blank = {
      "ids": np.zeros((1, len(self.schema.id_features)), np.int32),
      "numeric": np.zeros((1, len(self.schema.numeric)), np.float32),
    }
    shapes = jax.eval_shape(self.model.init, jax.random.key(0), blank)
    like = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
      lambda s: jax.ShapeDtypeStruct(leading + s.shape, s.dtype, sharding=device), like
    )


def _check_member(workdir: str, members: int, member: int | None) -> None:
  if not members:
    errors.require(member is None, f"--member={member}: the run in {workdir} is no population")
    return
  last = members - 1
  errors.require(
    member is not None,
    f"{workdir}: a population of {members} members; name one, --member=0 to {last}",
  )
  errors.require(
    0 <= member <= last, f"--member={member}: there are {members} members, 0 to {last}"
  )


def scores(tasks: Sequence[Task], logits_NxO: np.ndarray) -> dict[str, np.ndarray]:
  """What a model's outputs say in the words of the table: columns (N,) by name.

  Args:
    tasks: whose outputs stand side by side in this order.
    logits_NxO: the outputs.
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
      shares_CxN = (odds_NxC / odds_NxC.sum(1, keepdims=True)).T
      names = [f"{task.name}={value}" for value in task.classes]
      columns |= dict(zip(names, shares_CxN, strict=True))
  return columns


def main(argv: list[str]) -> None:
  """The command line: scores a file into a file, which appears whole or not at all."""
  del argv
  cache.keep_programs()
  predictor = Predictor(_WORKDIR.value, _MEMBER.value)
  rows = predictor.score_file(_INPUT.value, _OUTPUT.value)
  tasks = ", ".join(task.name for task in predictor.schema.tasks)
  print(f"{rows:,} rows scored for {tasks} in {_OUTPUT.value}")


if __name__ == "__main__":
  _WORKDIR = flags.DEFINE_string("workdir", None, "Of a training run.", required=True)
  _MEMBER = flags.DEFINE_integer("member", None, "Which member, where WORKDIR is a population's.")
  _INPUT = flags.DEFINE_string("input", None, "Raw rows, with or without a header.", required=True)
  _OUTPUT = flags.DEFINE_string("output", None, "The CSV file to write.", required=True)
  errors.run(main)
