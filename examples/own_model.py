"""A model from outside the package, trained with every command of the package.

  python -m mmoe_jax.main --config examples/own_model.py --workdir runs/own_model

Shared-Bottom whose units each task scales by a separate gate, as the gate units of PEPNet (Chang
et al., KDD 2023, https://arxiv.org/abs/2302.01115, section 3.2) scale them for a user.
"""

import flax.linen as nn
from ml_collections import ConfigDict

from configs import census
from mmoe_jax.models import BottomModel, FeatureEmbedding, Mlp, ensemble, towers


class GatedUnits(BottomModel):
  """y_k = h^k(s σ(V_k x) ⊙ f(x)): one bottom f; a gate V_k and a tower h^k for each task k."""

  gate_scale: float = 2.0  # s: the greatest factor of a unit.

  @nn.compact
  def __call__(self, features, train=False):
    """Returns logits_BxO."""
    x_BxD = FeatureEmbedding(**self.embedding, name="embedding")(features, train)
    units_BxH = Mlp(**self.bottom, name="bottom")(x_BxD, train)
    gates = ensemble(Mlp, self.tasks)(hidden=(), out=units_BxH.shape[1], name="gates")
    scales_TxBxH = self.gate_scale * nn.sigmoid(gates(x_BxD, train))
    return towers(self.outputs, self.tower, scales_TxBxH * units_BxH[None], train)


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the settings of Shared-Bottom on Census, with this model in its place."""
  config = census.get_config(f"shared_bottom,{arg or ''}")
  config.model.name = "examples.own_model:GatedUnits"
  config.model.gate_scale = 2.0
  config.model.bottom_hidden = (48,)
  return config
