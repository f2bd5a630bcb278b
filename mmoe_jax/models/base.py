"""What the models of the zoo have in common: their input, their towers, the settings of a part.

Shape letters: B rows, T tasks, D inputs, H hidden units, O outputs of all tasks.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax

from mmoe_jax import layers
from mmoe_jax.errors import require

Array = jax.Array


class Model(nn.Module):
  """A multi-task network: features in, the outputs of all tasks side by side out.

    variables = model.init(key, features)
    logits_BxO = model.apply(variables, features, train=False)

  `features` is a dict of `ids` (B, F) and `numeric` (B, D). In training (`train=True`) it needs a
  random key named `dropout`. Models with gates sow their weights into the collection
  `intermediates` under `gates`, as gates_TxBxE over all experts; models with a penalty sow it in
  training into `losses`, as scalars to be added to the loss.

  Every float among the settings may be a traced scalar.

  Attributes:
    feature_sizes: number of ids of each id feature.
    outputs: number of outputs of each of the T tasks, from one task up.
    embedding_dims: width of each id feature's embedding.
    embedding_init_std: standard deviation of the initial embeddings.
    embedding_dropout: rate of dropout on the model's input x.
    tower_hidden, tower_activation, tower_norm, tower_dropout: each tower, see layers.Mlp.
    axis_name: the device axis for batch statistics, if any.
  """

  # Whether each task's label implies the label of the task before it.
  chained: ClassVar[bool] = False

  feature_sizes: Sequence[int]
  outputs: Sequence[int]
  embedding_dims: Sequence[int]
  embedding_init_std: float = 0.05
  embedding_dropout: float = 0.0
  tower_hidden: Sequence[int] = (8,)
  tower_activation: str = "relu"
  tower_norm: str = "none"
  tower_dropout: float = 0.0
  axis_name: str | None = None

  def check(self, kinds: Sequence[str]) -> None:
    """Raises UserError where settings do not fit each other or the tasks, which have `kinds`."""
    if self.chained:
      self.require_binary(kinds, "this model")

  @property
  def tasks(self) -> int:
    """Number of tasks T."""
    return len(self.outputs)

  def require_binary(self, kinds: Sequence[str], who: str) -> None:
    """Raises UserError unless all tasks are binary; `who` is what needs that."""
    require(
      all(kind == "binary" for kind in kinds),
      f"config.data.tasks are of the kinds {', '.join(kinds)}; {who} is for binary tasks only",
    )

  @nn.nowrap
  def embed(self, features: dict[str, Array], train: bool) -> Array:
    """Returns the input x_BxD."""
    return layers.FeatureEmbedding(*self.embedding_settings(), name="embedding")(features, train)

  @nn.nowrap
  def embedding_settings(self) -> tuple:
    """The arguments of layers.FeatureEmbedding."""
    return (
      self.feature_sizes,
      self.embedding_dims,
      self.embedding_init_std,
      self.embedding_dropout,
    )

  @nn.nowrap
  def mlp_settings(self, part: str) -> dict:
    """The arguments of layers.Mlp for a part, such as `tower`, from the settings named after it."""
    settings = ("hidden", "activation", "norm", "dropout")
    return {s: getattr(self, f"{part}_{s}") for s in settings} | {"axis_name": self.axis_name}

  @nn.nowrap
  def stack(self, part: str, size: int, in_axes: int | None, name: str) -> Callable[..., Array]:
    """A stack of `size` networks of a part, as layers.ensemble has it."""
    settings = self.mlp_settings(part) | {"shared_input": in_axes is None}
    return layers.ensemble(layers.Mlp, size, in_axes)(**settings, name=name)

  @nn.nowrap
  def to_logits(self, input_TxBxH: Array, train: bool) -> Array:
    """Applies each task's tower h^k to its input; returns logits_BxO."""
    return layers.towers(self.outputs, self.mlp_settings("tower"), input_TxBxH, train)


class BottomModel(Model):
  """A model of plain networks, here called bottoms, under the towers.

  Attributes:
    bottom_hidden, bottom_activation, bottom_norm, bottom_dropout: each bottom, see layers.Mlp.
  """

  bottom_hidden: Sequence[int] = (64,)
  bottom_activation: str = "relu"
  bottom_norm: str = "none"
  bottom_dropout: float = 0.0

  @nn.nowrap
  def require_hidden(self) -> None:
    """Raises UserError without a hidden layer, for models that are about hidden layers."""
    require(len(self.bottom_hidden) > 0, "config.model.bottom_hidden is empty; give it a layer")


class ExpertModel(Model):
  """A model of experts under the towers.

  Attributes:
    expert_hidden, expert_activation, expert_norm, expert_dropout: each expert, see layers.Mlp.
  """

  expert_hidden: Sequence[int] = (16,)
  expert_activation: str = "relu"
  expert_norm: str = "none"
  expert_dropout: float = 0.0
