"""Registry of the models: from the settings of a config to a model."""

import dataclasses
import importlib
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmoe_jax.config import is_number
from mmoe_jax.data import Schema
from mmoe_jax.errors import UserError, did_you_mean, require, require_known
from mmoe_jax.models import layers
from mmoe_jax.models.aitm import AITM
from mmoe_jax.models.base import Model
from mmoe_jax.models.baselines import (
  CrossStitch,
  L2Constrained,
  SharedBottom,
  SingleTask,
  TensorFactorization,
)
from mmoe_jax.models.batch_ensemble import BatchEnsemble
from mmoe_jax.models.dselect_k import DSelectK
from mmoe_jax.models.embedding import COMPRESSIONS, DTYPES, Compression, compress
from mmoe_jax.models.esmm import ESMM
from mmoe_jax.models.mmoe import MMoE, OMoE
from mmoe_jax.models.ple import CGC, PLE
from mmoe_jax.models.snr import SNRTrans

MODELS: dict[str, type[Model]] = {
  "single_task": SingleTask,
  "shared_bottom": SharedBottom,
  "l2_constrained": L2Constrained,
  "cross_stitch": CrossStitch,
  "tensor_factorization": TensorFactorization,
  "omoe": OMoE,
  "mmoe": MMoE,
  "cgc": CGC,
  "ple": PLE,
  "aitm": AITM,
  "esmm": ESMM,
  "snr_trans": SNRTrans,
  "dselect_k": DSelectK,
}

# Fields that the data or the devices set, not the config.
_NOT_SETTINGS = (
  *("feature_sizes", "feature_lengths", "feature_poolings", "feature_tables"),
  *("feature_compressions", "outputs", "embedding_dims", "axis_name", "parent", "name"),
)
# Settings from which the fields of a feature are computed.
_OF_FEATURES = ("embedding_dim", "embedding_dim_of", "embedding_compression", "embedding_rows")
_LEAST_DIM, _MOST_DIM = 4, 64  # Of widths by the rule.
_MAX_MEMBERS = 1024  # Of a batch ensemble; each costs as much time as a model.
_MAX_SIZE = 1 << 20  # A larger size is most likely a typing error.


def create_model(
  settings: Mapping[str, Any], schema: Schema, axis_name: str | None = None
) -> Model | BatchEnsemble:
  """Creates a model for the features and tasks of a schema.

  Args:
    settings: config.model, see `check_model`: `name`, see `find_model`; _OF_FEATURES, see
      `embedding_dims` and `embedding_compressions`; `batch_ensemble`, members of a BatchEnsemble if
      more than 1; fields of the model's class. Floats may be traced.
    schema: features and tasks of the run.
    axis_name: device axis that batch statistics are averaged over, if any.
  """
  settings = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in settings.items()}
  model_class = find_model(settings.pop("name"))
  members = settings.pop("batch_ensemble", 1)
  settings.pop("embedding_shards", None)  # Of training: where tables are placed.
  dims, compressions = embedding_dims(settings, schema), embedding_compressions(settings, schema)
  settings = {key: value for key, value in settings.items() if key not in _OF_FEATURES}
  model = model_class(
    feature_sizes=tuple(f.size for f in schema.id_features),
    outputs=tuple(task.outputs for task in schema.tasks),
    embedding_dims=dims,
    feature_lengths=tuple(f.length for f in schema.id_features),
    feature_poolings=tuple(f.pooling for f in schema.id_features),
    feature_tables=tuple(f.table for f in schema.id_features),
    feature_compressions=compressions,
    axis_name=axis_name,
    **settings,
  )
  return BatchEnsemble(model, members, schema.tasks) if members > 1 else model


def find_model(name: str) -> type[Model]:
  """Returns the class of a model.

  Args:
    name: a key of MODELS, or `MODULE:CLASS` of a model outside the package, such as
      `examples.own_model:GatedUnits`.

  Raises:
    UserError: if there is none.
  """
  where = "config.model.name"
  if not isinstance(name, str) or ":" not in name:
    require_known(name, MODELS, where)
    return MODELS[name]
  module_name, _, class_name = name.partition(":")
  absent = f"{where} = {name}: no module '{module_name}' in the current folder or the Python path"
  require(re.fullmatch(r"\w+(\.\w+)*", module_name) is not None, absent)
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    # An import inside the module that fails is an error of its author, with a traceback.
    if not f"{module_name}.".startswith(f"{error.name}."):
      raise
    raise UserError(absent) from error
  found = getattr(module, class_name, None)
  require(
    isinstance(found, type) and issubclass(found, Model),
    f"{where} = {name}: must name a class in '{module_name}' that inherits from "
    "mmoe_jax.models.Model",
  )
  require(
    any("__call__" in vars(c) for c in found.__mro__),
    f"{where} = {name}: must define __call__(features, train), which returns logits",
  )
  return found


def describe(model: Model | BatchEnsemble) -> str:
  """Returns the name of a model for people."""
  if isinstance(model, BatchEnsemble):
    return f"{type(model.model).__name__}, a batch ensemble of {model.members}"
  return type(model).__name__


def embedding_dims(settings: Mapping[str, Any], schema: Schema) -> tuple[int, ...]:
  """Returns the width of each id feature's embedding.

  Args:
    settings: config.model: `embedding_dim` is the width of every embedding, or 0 for a rule:
      6 · size^(1/4) (Wang et al., Deep & Cross Network for Ad Click Predictions, ADKDD 2017,
      https://arxiv.org/abs/1708.05123), rounded down to a power of two from 4 to 64, so that there
      are few tables. `embedding_dim_of` is feature name -> another width.
    schema: features of the run.
  """
  dim, dim_of = settings["embedding_dim"], settings["embedding_dim_of"]

  def by_rule(size: int) -> int:
    return min(_MOST_DIM, max(_LEAST_DIM, 1 << int(math.log2(6 * size**0.25))))

  return tuple(dim_of.get(f.name, dim or by_rule(f.size)) for f in schema.id_features)


def embedding_compressions(
  settings: Mapping[str, Any], schema: Schema
) -> tuple[Compression | None, ...]:
  """Returns the compression of each id feature's table; empty for none.

  Args:
    settings: config.model: `embedding_compression`, a key of COMPRESSIONS or `none`, of features
      with more ids than `embedding_rows`, which get that many table rows.
    schema: features of the run.

  Raises:
    UserError: if a feature does not fit into so few rows.
  """
  kind, rows = settings.get("embedding_compression", "none"), settings.get("embedding_rows", 0)
  if kind == "none":
    return ()
  found = []
  for feature in schema.id_features:
    try:
      found.append(compress(kind, feature.size, rows))
    except ValueError as error:
      raise UserError(
        f"config.model.embedding_rows = {rows}: {error} ('{feature.name}') with '{kind}'"
      ) from error
  return tuple(found)


def check_model(settings: Mapping[str, Any], schema: Schema) -> None:
  """Validates config.model.

  Args:
    settings: as for `create_model`, with concrete values.
    schema: features and tasks of the run.

  Raises:
    UserError: for an unknown model, setting, activation, norm or feature, or an impossible value.
  """
  settings, where = dict(settings), "config.model"
  for key in ("name", "embedding_dim", "embedding_dim_of"):
    require(key in settings, f"{where}.{key} is missing")
  name = settings.pop("name")
  model_class = find_model(name)
  dim = settings.pop("embedding_dim")
  if not (dim == 0 and _is_size(dim + 1)):
    _check_value("embedding_dim", dim)
  shards = settings.pop("embedding_shards", 0)
  require(
    shards == 0 or _is_size(shards),
    f"{where}.embedding_shards = {shards!r}: must be a whole number (0: by memory)",
  )
  members = settings.pop("batch_ensemble", 1)
  require(
    _is_size(members, _MAX_MEMBERS),
    f"{where}.batch_ensemble = {members!r}: must be a whole number from 1 to {_MAX_MEMBERS:,}",
  )
  kind = settings.pop("embedding_compression", "none")
  require_known(kind, ("none", *COMPRESSIONS), f"{where}.embedding_compression")
  rows = settings.pop("embedding_rows", 0)
  require(
    (kind == "none" and rows == 0) or (_is_size(rows, 1 << 31) and rows > 1),
    f"{where}.embedding_rows = {rows!r}: must be a whole number from 2 to 2,147,483,648 (0 without "
    "compression)",
  )
  require(
    kind != "none" or rows == 0,
    f"{where}.embedding_rows = {rows}: has no effect without {where}.embedding_compression",
  )
  embedding_compressions({"embedding_compression": kind, "embedding_rows": rows}, schema)
  feature_names = [f.name for f in schema.id_features]
  dim_of = settings.pop("embedding_dim_of")
  require(
    hasattr(dim_of, "items"),
    f"{where}.embedding_dim_of = {dim_of!r}: must be feature -> width, such as {{'age_bins': 8}}",
  )
  for name_of_feature, width in dim_of.items():
    require_known(name_of_feature, feature_names, f"a feature in {where}.embedding_dim_of")
    _check_value(f"embedding_dim_of.{name_of_feature}", width)
  dims = embedding_dims({"embedding_dim": dim, "embedding_dim_of": dim_of}, schema)
  of_table: dict[str, int] = {}
  for feature, width in zip(schema.id_features, dims, strict=True):
    require(
      not feature.table or of_table.setdefault(feature.table, width) == width,
      f"{where}.embedding_dim_of: features of the table '{feature.table}' must have the same "
      f"width, but '{feature.name}' has {width}",
    )
  fields = {f.name: f for f in dataclasses.fields(model_class) if f.name not in _NOT_SETTINGS}
  for key, value in settings.items():
    if key not in fields:
      hint = did_you_mean(key, fields)
      raise UserError(f"{where}.{key}: not a setting of the model '{name}'; {hint}")
    _check_value(key, value, fields[key])
  model = create_model(
    {"name": name, "embedding_dim": 1, "embedding_dim_of": {}} | settings, schema
  )
  model.check([task.kind for task in schema.tasks])
  if ":" in name:
    _check_outputs(name, model, schema)


def _check_outputs(name: str, model: Model, schema: Schema) -> None:
  """Validates the shape of what a model outside the package returns."""
  rows = 3
  features = {
    "ids": jnp.zeros((rows, schema.id_count), jnp.int32),
    "numeric": jnp.zeros((rows, schema.numeric_count)),
  }
  logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), features)
  expected = (rows, sum(model.outputs))
  found = getattr(logits, "shape", None)
  require(
    found == expected,
    f"config.model.name = {name}: must return logits of the shape {expected} for {rows} rows, one "
    f"column for each output of the tasks, but returns {found or type(logits).__name__}",
  )


def _check_value(key: str, value: Any, field: dataclasses.Field | None = None) -> None:
  """Validates one setting by the kind of quantity that its name ends with, or by its default."""
  what = f"config.model.{key}"
  default = field.default if field else None
  if key.endswith("activation"):
    require_known(value, layers.ACTIVATIONS, what)
    return
  if key.endswith("dtype"):
    require_known(value, DTYPES, what)
    return
  if key.endswith("norm"):
    require_known(value, layers.NORMS, what)
    return
  if key.endswith("hidden") or key == "ranks":
    require(
      isinstance(value, list | tuple) and all(_is_size(n) for n in value),
      f"{what} = {value!r}: must be a tuple of whole numbers from 1 to {_MAX_SIZE:,}",
    )
    return
  if isinstance(default, bool | str | tuple):
    kinds = tuple | list if isinstance(default, tuple) else type(default)
    require(isinstance(value, kinds), f"{what} = {value!r}: must be like {default!r}")
    return
  if field and not isinstance(default, int | float | type(dataclasses.MISSING)):
    return  # Of a model outside the package, which validates it itself.
  if field and default is dataclasses.MISSING and callable(field.default_factory):
    return
  require(is_number(value), f"{what} = {value!r:.80}: must be a number")
  if key.endswith("dropout"):
    require(0 <= value < 1, f"{what} = {value}: must be a rate in [0, 1)")
  elif key.endswith("std"):
    require(value >= 0, f"{what} = {value}: must be a standard deviation of at least 0")
  elif key.endswith("strength"):
    require(value >= 0, f"{what} = {value}: must be at least 0 (0 disables it)")
  elif key == "smoothness":
    require(value > 0, f"{what} = {value}: must be a width above 0")
  elif key in ("stitch_own", "exclusivity"):
    require(0 <= value <= 1, f"{what} = {value}: must be a share from 0 to 1")
  elif isinstance(default, int) and default < 1:
    require(isinstance(value, int), f"{what} = {value}: must be a whole number")
  elif not isinstance(default, float):
    require(_is_size(value), f"{what} = {value}: must be a whole number from 1 to {_MAX_SIZE:,}")


def _is_size(value: Any, most: int = _MAX_SIZE) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
