"""The zoo: one class per paper, one signature.

  variables = model.init(key, features)
  logits_BxT = model.apply(variables, features, train=False)

`features` is a dict of `ids` (B, F) and `numeric` (B, D). Models with gates sow their weights into
the collection `intermediates` under `gates`, as gates_TxBxE.

Shape letters: B rows, T tasks, E experts, H expert units, D inputs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmoe_jax import layers
from mmoe_jax.data import Schema
from mmoe_jax.errors import UserError, did_you_mean, require, require_known
from mmoe_jax.layers import FeatureEmbedding, Gate, Mlp, ensemble

Array = jax.Array
Model = nn.Module  # What the rest of the code calls it: only this room and layers.py know Linen.


class MMoE(nn.Module):
  """Multi-gate Mixture-of-Experts.

  y_k = h^k(f^k(x)),  f^k(x) = sum_i g^k(x)_i f_i(x),  g^k(x) = softmax(W_gk x)
  (equations 5 to 7): shared experts f_i, and for each task k a gate g^k and a tower h^k.

  Ma, Zhao, Yi, Chen, Hong, Chi: Modeling Task Relationships in Multi-task Learning with
  Multi-gate Mixture-of-Experts. KDD 2018. https://doi.org/10.1145/3219819.3220007

  Attributes:
    feature_sizes: number of ids of each id feature.
    tasks: number of tasks T, from one up.
    embedding_dims: width of each id feature's embedding.
    embedding_init_std: standard deviation of the initial embeddings.
    embedding_dropout: rate of dropout on the models' input x.
    experts: number of experts E.
    expert_hidden, expert_activation, expert_norm, expert_dropout: each expert, see layers.Mlp.
    gate_hidden: hidden layers of each gate; none in the paper.
    tower_hidden, tower_activation, tower_norm, tower_dropout: each tower, see layers.Mlp.
    axis_name: the device axis for batch statistics, if any.
  """

  feature_sizes: Sequence[int]
  tasks: int
  embedding_dims: Sequence[int]
  embedding_init_std: float = 0.05
  embedding_dropout: float = 0.0
  experts: int = 8
  expert_hidden: Sequence[int] = (16,)
  expert_activation: str = "relu"
  expert_norm: str = "none"
  expert_dropout: float = 0.0
  gate_hidden: Sequence[int] = ()
  tower_hidden: Sequence[int] = (8,)
  tower_activation: str = "relu"
  tower_norm: str = "none"
  tower_dropout: float = 0.0
  axis_name: str | None = None

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxT; `train` turns dropout and batch statistics on."""
    x_BxD = FeatureEmbedding(
      self.feature_sizes,
      self.embedding_dims,
      self.embedding_init_std,
      self.embedding_dropout,
      name="embedding",
    )(features, train)
    experts_ExBxH = ensemble(Mlp, self.experts)(
      self.expert_hidden,
      activation=self.expert_activation,
      norm=self.expert_norm,
      dropout=self.expert_dropout,
      axis_name=self.axis_name,
      name="experts",
    )(x_BxD, train)
    gates_TxBxE = ensemble(Gate, self.tasks)(self.experts, self.gate_hidden, name="gating")(
      x_BxD, train
    )
    self.sow("intermediates", "gates", gates_TxBxE)
    mixed_TxBxH = jnp.einsum("tbe,ebh->tbh", gates_TxBxE, experts_ExBxH)
    logits_TxBx1 = ensemble(Mlp, self.tasks, in_axes=0)(
      self.tower_hidden,
      out=1,
      activation=self.tower_activation,
      norm=self.tower_norm,
      dropout=self.tower_dropout,
      axis_name=self.axis_name,
      name="towers",
    )(mixed_TxBxH, train)
    return logits_TxBx1[..., 0].T


MODELS: dict[str, type[nn.Module]] = {"mmoe": MMoE}

# Fields that come from the data or the devices rather than from the config.
_WIRED = ("feature_sizes", "tasks", "embedding_dims", "axis_name", "parent", "name")


def create_model(
  settings: Mapping[str, Any], schema: Schema, axis_name: str | None = None
) -> nn.Module:
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
  return MODELS[name](
    feature_sizes=tuple(f.size for f in schema.id_features),
    tasks=len(schema.tasks),
    embedding_dims=dims,
    axis_name=axis_name,
    **settings,
  )


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
  if key.endswith("activation"):
    require_known(value, layers.ACTIVATIONS, what)
  elif key.endswith("norm"):
    require_known(value, layers.NORMS, what)
  elif key.endswith("dropout"):
    require(0 <= value < 1, f"{what} is {value}; a dropout rate is at least 0 and below 1")
  elif key.endswith("hidden"):
    require(
      all(isinstance(n, int) and 1 <= n <= _LARGEST for n in value),
      f"{what} is {tuple(value)}; a layer has a whole number of units, from 1 to {_LARGEST:,}",
    )
  elif key.endswith("std"):
    require(value >= 0, f"{what} is {value}; a standard deviation is not negative")
  else:
    require(1 <= value <= _LARGEST, f"{what} is {value}; must be from 1 to {_LARGEST:,}")
