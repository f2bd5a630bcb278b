"""From the settings of a config to a model: names, checks, and what the data decides."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from mmoe_jax import layers
from mmoe_jax.data import Schema
from mmoe_jax.errors import UserError, did_you_mean, require, require_known
from mmoe_jax.models import paper, successors
from mmoe_jax.models.base import Model

MODELS: dict[str, type[Model]] = {
  "single_task": paper.SingleTask,
  "shared_bottom": paper.SharedBottom,
  "l2_constrained": paper.L2Constrained,
  "cross_stitch": paper.CrossStitch,
  "tensor_factorization": paper.TensorFactorization,
  "omoe": paper.OMoE,
  "mmoe": paper.MMoE,
  "cgc": successors.CGC,
  "ple": successors.PLE,
  "aitm": successors.AITM,
  "esmm": successors.ESMM,
  "snr_trans": successors.SNRTrans,
  "dselect_k": successors.DSelectK,
}

# Fields that come from the data or the devices rather than from the config.
_WIRED = ("feature_sizes", "outputs", "embedding_dims", "axis_name", "parent", "name")


def create_model(
  settings: Mapping[str, Any], schema: Schema, axis_name: str | None = None
) -> Model:
  """Builds the model that the settings describe, for the features and tasks of a schema.

  Args:
    settings: `name`, a key of MODELS; `embedding_dim`, the width of every embedding, and
      `embedding_dim_of`, a map from feature name to a width of its own; all else are fields of
      the model's class.
    schema: the schema of the run.
    axis_name: the device axis that batch statistics are averaged over, if any.

  Raises:
    UserError: for an unknown model, setting, activation, norm or feature, or a size below one.
  """
  settings = dict(settings)
  name = settings.pop("name")
  require_known(name, MODELS, "config.model.name")
  dims = _embedding_dims(settings.pop("embedding_dim"), settings.pop("embedding_dim_of"), schema)
  fields = [f.name for f in dataclasses.fields(MODELS[name]) if f.name not in _WIRED]
  for key, value in settings.items():
    if key not in fields:
      raise UserError(
        f"config.model.{key} is no setting of the model '{name}'; {did_you_mean(key, fields)}"
      )
    _check(key, value)
  settings = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in settings.items()}
  model = MODELS[name](
    feature_sizes=tuple(f.size for f in schema.id_features),
    outputs=tuple(getattr(task, "outputs", 1) for task in schema.tasks),
    embedding_dims=dims,
    axis_name=axis_name,
    **settings,
  )
  model.check([getattr(task, "kind", "binary") for task in schema.tasks])
  return model


_LARGEST = 1 << 20  # Of any one size: beyond it is a slip of the keyboard.


def _embedding_dims(dim: int, dim_of: Mapping[str, int], schema: Schema) -> tuple[int, ...]:
  names = [f.name for f in schema.id_features]
  for name, own in dim_of.items():
    require_known(name, names, "a feature in config.model.embedding_dim_of")
    _check(f"embedding_dim_of.{name}", own)
  _check("embedding_dim", dim)
  return tuple(dim_of.get(name, dim) for name in names)


def _check(key: str, value: Any) -> None:
  """Raises UserError for a value that no model could have under that key."""
  what = f"config.model.{key}"
  if isinstance(value, jax.Array):
    return  # A traced setting; whoever traces it has checked its values.
  if key.endswith("activation"):
    require_known(value, layers.ACTIVATIONS, what)
  elif key.endswith("norm"):
    require_known(value, layers.NORMS, what)
  elif key.endswith("dropout"):
    require(0 <= value < 1, f"{what} is {value}; a dropout rate is at least 0 and below 1")
  elif key.endswith("hidden") or key == "ranks":
    require(
      all(isinstance(n, int) and 1 <= n <= _LARGEST for n in value),
      f"{what} is {tuple(value)}; a layer has a whole number of units, from 1 to {_LARGEST:,}",
    )
  elif key.endswith("std"):
    require(value >= 0, f"{what} is {value}; a standard deviation is not negative")
  elif key.endswith("strength"):
    require(0 <= value < math.inf, f"{what} is {value}; a strength is not negative (0: off)")
  elif key == "smoothness":
    require(0 < value < math.inf, f"{what} is {value}; a width is above 0")
  elif key in ("stitch_own", "exclusivity"):
    require(0 <= value <= 1, f"{what} is {value}; a share is from 0 to 1")
  else:
    require(1 <= value <= _LARGEST, f"{what} is {value}; must be from 1 to {_LARGEST:,}")
