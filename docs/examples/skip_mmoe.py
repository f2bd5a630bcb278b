"""MMoE whose towers also see the model's input: an example of a model.

Shape letters: B rows, T tasks, E experts, H hidden units, D inputs, O outputs of all tasks.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmoe_jax.models.base import ExpertModel
from mmoe_jax.models.embedding import FeatureEmbedding
from mmoe_jax.models.kernels import mixture
from mmoe_jax.models.layers import Dropout, Gate, Mlp, ensemble, towers

Array = jax.Array


class SkipMMoE(ExpertModel):
  """Multi-gate Mixture-of-Experts: y_k = h^k([f^k(x), x]), with dropout of the second x.

  Attributes:
    experts: number of experts E.
    skip_dropout: dropout rate of the towers' own x.
  """

  experts: int = 8
  skip_dropout: float = 0.0

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` enables dropout and batch statistics."""
    x_BxD = FeatureEmbedding(**self.embedding, name="embedding")(features, train)
    experts_ExBxH = ensemble(Mlp, self.experts)(**self.expert, name="experts")(x_BxD, train)
    gating = ensemble(Gate, self.tasks)(self.experts, name="gating")
    gates_TxBxE = gating(x_BxD, train)
    self.sow("intermediates", "gates", gates_TxBxE)
    mixed_TxBxH = mixture(gates_TxBxE, experts_ExBxH)
    skip_BxD = Dropout(self.skip_dropout)(x_BxD, train)
    skip_TxBxD = jnp.repeat(skip_BxD[None], self.tasks, axis=0)
    both = jnp.concatenate([mixed_TxBxH, skip_TxBxD], axis=2)
    return towers(self.outputs, self.tower, both, train)
