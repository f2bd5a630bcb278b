"""Models: one signature, see base.Model; a paper per file, its baselines, and their layers."""

from mmoe_jax.models.aitm import AITM
from mmoe_jax.models.base import BottomModel, ExpertModel, Model
from mmoe_jax.models.baselines import (
  CrossStitch,
  L2Constrained,
  SharedBottom,
  SingleTask,
  TensorFactorization,
)
from mmoe_jax.models.batch_ensemble import BatchEnsemble
from mmoe_jax.models.dselect_k import DSelectK
from mmoe_jax.models.embedding import FeatureEmbedding
from mmoe_jax.models.esmm import ESMM
from mmoe_jax.models.kernels import mixture
from mmoe_jax.models.layers import Dropout, Gate, Mlp, ensemble, towers
from mmoe_jax.models.mmoe import MMoE, OMoE
from mmoe_jax.models.ple import CGC, PLE
from mmoe_jax.models.registry import MODELS, check_model, create_model, describe, find_model
from mmoe_jax.models.snr import SNRTrans

__all__ = [
  "AITM",
  "CGC",
  "ESMM",
  "MODELS",
  "PLE",
  "BatchEnsemble",
  "BottomModel",
  "CrossStitch",
  "DSelectK",
  "Dropout",
  "ExpertModel",
  "FeatureEmbedding",
  "Gate",
  "L2Constrained",
  "MMoE",
  "Mlp",
  "Model",
  "OMoE",
  "SNRTrans",
  "SharedBottom",
  "SingleTask",
  "TensorFactorization",
  "check_model",
  "create_model",
  "describe",
  "ensemble",
  "find_model",
  "mixture",
  "towers",
]
