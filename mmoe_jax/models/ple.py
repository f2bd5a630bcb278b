"""Customized Gate Control and Progressive Layered Extraction.

Tang, Liu, Zhao, Gong: Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
Personalized Recommendations. RecSys 2020. https://doi.org/10.1145/3383313.3412236

Shape letters: B rows, T tasks, E experts, H hidden units, D inputs, O outputs of all tasks, G gates
of a level, V experts that a task's gate weighs.
"""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax.models.base import ExpertModel
from mmoe_jax.models.embedding import FeatureEmbedding
from mmoe_jax.models.kernels import mixture
from mmoe_jax.models.layers import Gate, Mlp, ensemble, towers

Array = jax.Array


class CGC(ExpertModel):
  """Customized Gate Control: experts of each task next to shared ones.

  y_k = h^k(sum over i of g^k(x)_i f_i(x)), where i runs over the experts of task k and the shared
  experts. Experts are in the order of the tasks, the shared ones last.

  Attributes:
    task_experts: number of experts of each task.
    shared_experts: number of experts of all tasks.
    gate_hidden: hidden layers of each gate; none in the paper.
  """

  levels: ClassVar[int] = 1

  task_experts: int = 4
  shared_experts: int = 4
  gate_hidden: Sequence[int] = ()

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` enables dropout and batch statistics."""
    x = FeatureEmbedding(**self.embedding, name="embedding")(features, train)
    for level in range(1, self.levels + 1):
      x = self._extract(x, level, train)
    return towers(self.outputs, self.tower, x, train)

  @nn.nowrap
  def _extract(self, x: Array, level: int, train: bool) -> Array:
    """Applies one level to x_BxD or to the mixtures of the level below; returns (G, B, H).

    Below the last level a further gate mixes all experts, for the shared experts above.
    """
    tasks, own, shared = self.tasks, self.task_experts, self.shared_experts
    # Owner T means shared.
    owner_E = np.repeat(np.arange(tasks + 1), [own] * tasks + [shared])
    is_first, is_last = level == 1, level == self.levels
    in_axes = None if is_first else 0
    experts = ensemble(Mlp, len(owner_E), in_axes)(**self.expert, name=f"experts_{level}")
    experts_ExBxH = experts(x if is_first else x[owner_E], train)
    gating = ensemble(Gate, tasks, in_axes)(own + shared, self.gate_hidden, name=f"gating_{level}")
    visible_TxBxV = gating(x if is_first else x[:tasks], train)
    # One-hot: the expert that each weight of a task's gate belongs to.
    place_TxVxE = np.stack(
      [np.eye(len(owner_E))[np.isin(owner_E, (k, tasks))] for k in range(tasks)]
    )
    gates_GxBxE = jnp.einsum("tbv,tve->tbe", visible_TxBxV, jnp.float32(place_TxVxE))
    if is_last:
      self.sow("intermediates", "gates", gates_GxBxE)
    else:
      gate = Gate(len(owner_E), self.gate_hidden, name=f"shared_gating_{level}")
      shared_BxE = gate(x if is_first else x[tasks], train)
      gates_GxBxE = jnp.concatenate([gates_GxBxE, shared_BxE[None]])
    return mixture(gates_GxBxE, experts_ExBxH)


class PLE(CGC):
  """Progressive Layered Extraction: several levels of CGC.

  Each task's experts of a level get that task's mixture of the level below; the shared experts get
  a mixture of all experts below. The sown gates are those of the last level.

  Attributes:
    levels: number of levels, at least one.
  """

  levels: int = 2
