"""Scores raw rows: python -m mmoe_jax.predict --workdir DIR --input FILE --output FILE.csv."""

from typing import Any

import jax
import numpy as np
import pandas as pd
from absl import flags
from ml_collections import ConfigDict

from mmoe_jax import checkpoint, errors, evaluate, models, workdirs
from mmoe_jax.data import Schema
from mmoe_jax.table import read_table, write_atomically


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
    self._predict = evaluate.make_predict(self.model)
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
      A float64 probability for each row and task, in the order of the rows.
    """
    features = evaluate.chunked(self.schema.features(self.schema.encode(frame, where=where)))
    logits = jax.device_get(self._predict(self.variables, features))[: len(frame)]
    # In float64, where distinct logits stay distinct probabilities: no ties that AUC would see.
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return pd.DataFrame(probabilities, columns=[task.name for task in self.schema.tasks])

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


def main(argv: list[str]) -> None:
  """The command line: scores a file into a file, which appears whole or not at all."""
  del argv
  predictor = Predictor(_WORKDIR.value, _MEMBER.value)
  frame = read_table(_INPUT.value, predictor.schema.columns)
  scores = predictor(frame, where=_INPUT.value)
  # 17 digits give back the very float64.
  write_atomically(_OUTPUT.value, scores.to_csv(index=False, float_format="%.17g"))
  print(f"{len(scores):,} rows scored for {', '.join(scores.columns)} in {_OUTPUT.value}")


if __name__ == "__main__":
  _WORKDIR = flags.DEFINE_string("workdir", None, "Of a training run.", required=True)
  _MEMBER = flags.DEFINE_integer("member", None, "Which member, where WORKDIR is a population's.")
  _INPUT = flags.DEFINE_string("input", None, "Raw rows, with or without a header.", required=True)
  _OUTPUT = flags.DEFINE_string("output", None, "The CSV file to write.", required=True)
  errors.run(main)
