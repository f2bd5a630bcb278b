"""Splits of prepared data in the form that a finished run was trained on."""

import math
import os
from typing import Any

from ml_collections import ConfigDict

from mmoe_jax import data
from mmoe_jax.errors import require
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.workdir import contract


def data_folder(workdir: str, data_dir: str = "") -> str:
  """Returns the folder of prepared data: the given one, or that of the run if it is empty.

  Raises:
    UserError: if it contains no prepared data.
  """
  directory = data_dir or ConfigDict(contract.read_config(workdir)).data_dir
  require(
    os.path.exists(os.path.join(directory, data.SCHEMA_FILE)),
    f"{directory}: contains no prepared data; pass its folder as --data",
  )
  return directory


def load_split(directory: str, split: str, predictor: Predictor) -> data.Split:
  """Loads a split, encoded as in the run.

  Args:
    directory: folder of prepared data.
    split: one of data.SPLITS.
    predictor: the run.

  Raises:
    UserError: for data of another run.
  """
  config: Any = ConfigDict(contract.read_config(predictor.workdir))
  # Train rows stay on disk unless they are asked for.
  budget = math.inf if split == "train" else 0
  schema, splits = data.load(directory, **config.data, budget=budget)
  for part in ("id_features", "numeric"):
    require(
      getattr(schema, part) == getattr(predictor.schema, part),
      f"{directory}: prepared differently from the data of the run in {predictor.workdir}; pass "
      "the folder that it was trained on as --data",
    )
  return splits[split]
