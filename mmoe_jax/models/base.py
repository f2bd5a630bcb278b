"""Base classes of the models: the signature, and the settings of their parts.

Shape letters: B rows, F id features, T tasks, D inputs, E experts, O outputs of all tasks.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax

from mmoe_jax.errors import require
from mmoe_jax.models.embedding import Compression

Array = jax.Array


class Model(nn.Module):
  """Multi-task network from features to the concatenated outputs of all tasks.

    variables = model.init(key, features)
    logits_BxO = model.apply(variables, features, train=False)

  `features` is a dict of `ids` (B, F) and `numeric` (B, D); a list has several columns of ids.
  Training (`train=True`) needs a random key named `dropout`. Models with gates sow their weights
  into the collection `intermediates` under `gates`, as gates_TxBxE that sum to one. Models with a
  penalty sow it in training into `losses`, as scalars, or (B,) with one value per row, of which the
  weighted mean is added to the loss. Training also passes a random key named `shared`. Both keys
  are the same on all devices: what is drawn for rows depends on `axis_name`, see layers.Dropout.

  Every float among the settings may be a traced scalar.

  Attributes:
    feature_sizes: number of ids of each id feature.
    outputs: number of outputs of each of the T tasks, T >= 1.
    embedding_dims: width of each id feature's embedding.
    feature_lengths: number of columns of ids of each id feature, more than 1 for lists; empty for
      1 each.
    feature_poolings: how the vectors of a list are combined, `mean` or `sum`.
    feature_tables: name of the table of features that share one, "" for others; empty for none.
    feature_compressions: see embedding.Compression; empty for none.
    embedding_init_std: standard deviation of the initial embeddings.
    embedding_dtype: type of the tables' numbers, `float32` or `bfloat16`.
    embedding_dropout: dropout rate of the model's input x.
    tower_hidden: units of each hidden layer of a tower, see layers.Mlp, also for the next three.
    tower_activation: activation of a tower.
    tower_norm: norm of a tower.
    tower_dropout: dropout rate of a tower.
    axis_name: device axis that rows are sharded over, if any: batch statistics are averaged over
      it, and dropout differs between its devices.
  """

  # True if each task's label must imply the label of the task before it.
  chained: ClassVar[bool] = False
  # Why training cannot update only the rows of tables that a batch reads; empty if it can.
  dense_tables: ClassVar[str] = ""

  feature_sizes: Sequence[int]
  outputs: Sequence[int]
  embedding_dims: Sequence[int]
  feature_lengths: Sequence[int] = ()
  feature_poolings: Sequence[str] = ()
  feature_tables: Sequence[str] = ()
  feature_compressions: Sequence[Compression | None] = ()
  embedding_init_std: float = 0.05
  embedding_dtype: str = "float32"
  embedding_dropout: float = 0.0
  tower_hidden: Sequence[int] = (8,)
  tower_activation: str = "relu"
  tower_norm: str = "none"
  tower_dropout: float = 0.0
  axis_name: str | None = None

  def check(self, kinds: Sequence[str]) -> None:
    """Validates settings against each other and the tasks' kinds.

    Raises:
      UserError: naming the key of the config.
    """
    if self.chained:
      self.require_binary(kinds, "this model")

  def require_binary(self, kinds: Sequence[str], user: str) -> None:
    """Raises UserError unless all tasks are binary; `user` names the part that needs it."""
    require(
      all(kind == "binary" for kind in kinds),
      f"config.data.tasks have the kinds {', '.join(kinds)}: must all be binary for {user}",
    )

  @property
  def tasks(self) -> int:
    """Number of tasks T."""
    return len(self.outputs)

  @property
  def embedding(self) -> dict[str, Any]:
    """Arguments of embedding.FeatureEmbedding."""
    return {
      "sizes": self.feature_sizes,
      "dims": self.embedding_dims,
      "lengths": self.feature_lengths,
      "poolings": self.feature_poolings,
      "shared": self.feature_tables,
      "compressions": self.feature_compressions,
      "init_std": self.embedding_init_std,
      "dtype": self.embedding_dtype,
      "dropout": self.embedding_dropout,
      "axis_name": self.axis_name,
    }

  @property
  def tower(self) -> dict[str, Any]:
    """Arguments of layers.Mlp for a tower."""
    return {
      "hidden": self.tower_hidden,
      "activation": self.tower_activation,
      "norm": self.tower_norm,
      "dropout": self.tower_dropout,
      "axis_name": self.axis_name,
    }


class BottomModel(Model):
  """Model of plain networks, called bottoms, under the towers.

  Attributes:
    bottom_hidden: units of each hidden layer of a bottom, see layers.Mlp, also for the next three.
    bottom_activation: activation of a bottom.
    bottom_norm: norm of a bottom.
    bottom_dropout: dropout rate of a bottom.
  """

  bottom_hidden: Sequence[int] = (64,)
  bottom_activation: str = "relu"
  bottom_norm: str = "none"
  bottom_dropout: float = 0.0

  @property
  def bottom(self) -> dict[str, Any]:
    """Arguments of layers.Mlp for a bottom."""
    return {
      "hidden": self.bottom_hidden,
      "activation": self.bottom_activation,
      "norm": self.bottom_norm,
      "dropout": self.bottom_dropout,
      "axis_name": self.axis_name,
    }

  def require_hidden(self) -> None:
    """Raises UserError without a hidden layer, for models that connect hidden layers."""
    require(
      len(self.bottom_hidden) > 0, "config.model.bottom_hidden = (): must have at least one layer"
    )


class ExpertModel(Model):
  """Model of experts under the towers.

  Attributes:
    expert_hidden: units of each hidden layer of an expert, see layers.Mlp, also for the next three.
    expert_activation: activation of an expert.
    expert_norm: norm of an expert.
    expert_dropout: dropout rate of an expert.
  """

  expert_hidden: Sequence[int] = (16,)
  expert_activation: str = "relu"
  expert_norm: str = "none"
  expert_dropout: float = 0.0

  @property
  def expert(self) -> dict[str, Any]:
    """Arguments of layers.Mlp for an expert."""
    return {
      "hidden": self.expert_hidden,
      "activation": self.expert_activation,
      "norm": self.expert_norm,
      "dropout": self.expert_dropout,
      "axis_name": self.axis_name,
    }
