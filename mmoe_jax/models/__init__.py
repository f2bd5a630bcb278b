"""Models: one signature, see base.Model; a paper per file, and its baselines."""

from mmoe_jax.models.aitm import AITM
from mmoe_jax.models.base import Model
from mmoe_jax.models.baselines import (
  CrossStitch,
  L2Constrained,
  SharedBottom,
  SingleTask,
  TensorFactorization,
)
from mmoe_jax.models.dselect_k import DSelectK
from mmoe_jax.models.esmm import ESMM
from mmoe_jax.models.mmoe import MMoE, OMoE
from mmoe_jax.models.ple import CGC, PLE
from mmoe_jax.models.registry import MODELS, check_model, create_model
from mmoe_jax.models.snr import SNRTrans

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
  "check_model",
  "create_model",
]
