"""Entire Space Multi-task Model.

Ma, Zhao, Huang, Wang, Hu, Zhu, Gai: Entire Space Multi-Task Model: An Effective Approach for
Estimating Post-Click Conversion Rate. SIGIR 2018. https://doi.org/10.1145/3209978.3210104

Shape letters: B rows, T tasks, H hidden units, D inputs, O outputs of all tasks.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmoe_jax.models.base import BottomModel
from mmoe_jax.models.embedding import FeatureEmbedding
from mmoe_jax.models.layers import Mlp, ensemble, towers

Array = jax.Array


class ESMM(BottomModel):
  """Chain of binary tasks by products of probabilities: p_k = p_{k-1} · sigmoid(z_k) (equation 1).

  z_k = h^k(f^k(x)) on shared embeddings is the logit of task k given that task k − 1 is 1; it is
  trained on all rows through the product. The output is the logit l_k of p_k,
  l_k = −log(1/p_k − 1) = −log(exp(−l_{k-1}) + exp(−z_k) + exp(−l_{k-1} − z_k)),
  so that losses and metrics are those of any binary task.
  """

  chained = True

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` enables dropout and batch statistics."""
    x_BxD = FeatureEmbedding(**self.embedding, name="embedding")(features, train)
    bottoms_TxBxH = ensemble(Mlp, self.tasks)(**self.bottom, name="bottoms")(x_BxD, train)
    z_BxT = towers(self.outputs, self.tower, bottoms_TxBxH, train)
    logits = [z_BxT[:, 0]]
    for k in range(1, self.tasks):
      a_B, b_B = -logits[-1], -z_BxT[:, k]
      logits.append(-nn.logsumexp(jnp.stack([a_B, b_B, a_B + b_B]), axis=0))
    return jnp.stack(logits, axis=1)
