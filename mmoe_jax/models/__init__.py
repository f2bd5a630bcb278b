"""The zoo: one class per paper, one signature; see base.Model for it."""

from mmoe_jax.models.base import Model
from mmoe_jax.models.create import MODELS, create_model
from mmoe_jax.models.paper import (
  CrossStitch,
  L2Constrained,
  MMoE,
  OMoE,
  SharedBottom,
  SingleTask,
  TensorFactorization,
)
from mmoe_jax.models.successors import AITM, CGC, ESMM, PLE, DSelectK, SNRTrans

__all__ = [
  "AITM",
  "CGC",
  "ESMM",
  "MODELS",
  "PLE",
  "CrossStitch",
  "DSelectK",
  "L2Constrained",
  "MMoE",
  "Model",
  "OMoE",
  "SNRTrans",
  "SharedBottom",
  "SingleTask",
  "TensorFactorization",
  "create_model",
]
