"""What came after MMoE, one class per paper.

Shape letters: B rows, T tasks, E experts, H hidden units, D inputs, O outputs of all tasks, G gates
of a level, V experts that a task's gate sees, K selectors, J sub-networks of a level.
"""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax.errors import require
from mmoe_jax.layers import Gate, ensemble, is_on, mixture
from mmoe_jax.models.base import BottomModel, ExpertModel
from mmoe_jax.models.parts import AttentionTransfer, Connections, SelectGate

Array = jax.Array


class CGC(ExpertModel):
  """Customized Gate Control: experts of each task's own beside shared ones.

  y_k = h^k(sum over i of g^k(x)_i f_i(x)), where i runs over the experts of task k and the shared
  ones. The experts stand in the order of the tasks, the shared ones last.

  Tang, Liu, Zhao, Gong: Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
  Personalized Recommendations. RecSys 2020. https://doi.org/10.1145/3383313.3412236

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
    """Returns logits_BxO; `train` turns dropout and batch statistics on."""
    x = self.embed(features, train)
    for level in range(1, self.levels + 1):
      x = self._extract(x, level, train)
    return self.to_logits(x, train)

  @nn.nowrap
  def _extract(self, x: Array, level: int, train: bool) -> Array:
    """One level: from x_BxD, or from what the level below made, to each task's mixture.

    Below the last level a further gate mixes all experts, for the shared experts above.
    """
    tasks, own, shared = self.tasks, self.task_experts, self.shared_experts
    owner_E = np.repeat(np.arange(tasks + 1), [own] * tasks + [shared])
    first, last = level == 1, level == self.levels
    in_axes = None if first else 0
    experts = self.stack("expert", len(owner_E), in_axes, f"experts_{level}")
    experts_ExBxH = experts(x if first else x[owner_E], train)
    gating = ensemble(Gate, tasks, in_axes)(own + shared, self.gate_hidden, name=f"gating_{level}")
    seen_TxBxV = gating(x if first else x[:tasks], train)
    # Which expert each weight of a task's gate is for.
    place_TxVxE = np.stack(
      [np.eye(len(owner_E))[np.isin(owner_E, (k, tasks))] for k in range(tasks)]
    )
    gates_GxBxE = jnp.einsum("tbv,tve->tbe", seen_TxBxV, jnp.float32(place_TxVxE))
    if last:
      self.sow("intermediates", "gates", gates_GxBxE)
    else:
      gate = Gate(len(owner_E), self.gate_hidden, name=f"shared_gating_{level}")
      shared_BxE = gate(x if first else x[tasks], train)
      gates_GxBxE = jnp.concatenate([gates_GxBxE, shared_BxE[None]])
    return mixture(gates_GxBxE, experts_ExBxH)


class PLE(CGC):
  """Progressive Layered Extraction: CGC level upon level.

  Each task's experts of a level see that task's mixture of the level below; the shared experts see
  a mixture of all experts below.

  Tang et al. 2020, as CGC. The gates that leave are those of the last level.

  Attributes:
    levels: number of levels, from one up.
  """

  levels: int = 2


class AITM(BottomModel):
  """Adaptive Information Transfer Multi-task: each task hears from the one before it.

  z_1 = q_1,  z_k = attention of (g(z_{k-1}), q_k),  y_k = h^k(z_k), with q_k the bottom of task k
  on shared embeddings; see parts.AttentionTransfer. Where each label implies the one before, a
  calibrator asks the same of the predictions:
  calibrator_strength · mean over rows of sum over k of max(p_k − p_{k-1}, 0).

  Xi, Chen, Yan, Zhang, Zhu, Zhuang, Chen: Modeling the Sequential Dependence among Audience
  Multi-step Conversions with Multi-task Learning in Targeted Display Advertising. KDD 2021.
  https://doi.org/10.1145/3447548.3467071

  Attributes:
    calibrator_strength: of the calibrator, alpha in the paper, which has 0.6; 0 for none.
  """

  calibrator_strength: float = 0.0

  def check(self, kinds: Sequence[str]) -> None:
    """Raises UserError for a calibrator of tasks that have no probability."""
    super().check(kinds)
    if is_on(self.calibrator_strength):
      self.require_binary(kinds, "config.model.calibrator_strength")

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` turns dropout, batch statistics and the calibrator on."""
    x_BxD = self.embed(features, train)
    bottoms_TxBxH = self.stack("bottom", self.tasks, None, "bottoms")(x_BxD, train)
    z = [bottoms_TxBxH[0]]
    for k in range(1, self.tasks):
      transfer = AttentionTransfer(self.bottom_activation, name=f"transfer_{k}")
      z.append(transfer(z[-1], bottoms_TxBxH[k], train))
    logits_BxO = self.to_logits(jnp.stack(z), train)
    if train and is_on(self.calibrator_strength):
      p_BxT = nn.sigmoid(logits_BxO)
      excess_B = nn.relu(p_BxT[:, 1:] - p_BxT[:, :-1]).sum(1)
      self.sow("losses", "calibrator", self.calibrator_strength * excess_B.mean())
    return logits_BxO


class ESMM(BottomModel):
  """Entire Space Multi-task Model: p_k = p_{k-1} · sigmoid(z_k), for a chain of binary tasks.

  z_k = h^k(f^k(x)) on shared embeddings is the logit of task k given that task k − 1 is 1 (equation
  1), and is learnt from all rows through the product. What comes out is the logit l_k of p_k,
  l_k = −log(1/p_k − 1) = −log(exp(−l_{k-1}) + exp(−z_k) + exp(−l_{k-1} − z_k)),
  so that losses and metrics are those of any binary task.

  Ma, Zhao, Huang, Wang, Hu, Zhu, Gai: Entire Space Multi-Task Model: An Effective Approach for
  Estimating Post-Click Conversion Rate. SIGIR 2018. https://doi.org/10.1145/3209978.3210104
  """

  chained = True

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` turns dropout and batch statistics on."""
    x_BxD = self.embed(features, train)
    bottoms_TxBxH = self.stack("bottom", self.tasks, None, "bottoms")(x_BxD, train)
    z_BxT = self.to_logits(bottoms_TxBxH, train)
    logits = [z_BxT[:, 0]]
    for k in range(1, self.tasks):
      a_B, b_B = -logits[-1], -z_BxT[:, k]
      logits.append(-nn.logsumexp(jnp.stack([a_B, b_B, a_B + b_B]), axis=0))
    return jnp.stack(logits, axis=1)


class SNRTrans(ExpertModel):
  """Sub-Network Routing with transformations: two levels of sub-networks, sparsely connected.

  v_j = sum over i of z_ij W_ij u_i, from the first level to the second and from there to the
  towers; z_ij is learnt to be 0 or 1, see parts.Connections, with the penalty
  l0_strength · expected number of open connections.

  Ma, Zhao, Chen, Li, Hong, Chi: SNR: Sub-Network Routing for Flexible Parameter Sharing in
  Multi-Task Learning. AAAI 2019. https://doi.org/10.1609/aaai.v33i01.3301216

  Attributes:
    experts: number of sub-networks of each level; the expert_* settings are theirs.
    l0_strength: of the penalty, lambda in the paper.
  """

  experts: int = 4
  l0_strength: float = 1e-4

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` turns dropout, batch statistics, noise and the penalty on."""
    x_BxD = self.embed(features, train)
    u_JxBxH = self.stack("expert", self.experts, None, "experts_1")(x_BxD, train)
    v_JxBxH, open_1 = Connections(self.experts, name="connections_1")(u_JxBxH, train)
    u_JxBxH = self.stack("expert", self.experts, 0, "experts_2")(v_JxBxH, train)
    v_TxBxH, open_2 = Connections(self.tasks, name="connections_2")(u_JxBxH, train)
    if train and is_on(self.l0_strength):
      self.sow("losses", "l0", self.l0_strength * (open_1 + open_2))
    return self.to_logits(v_TxBxH, train)


class DSelectK(ExpertModel):
  """MMoE with DSelect-k gates, which come to select at most k experts for each row and task.

  y_k = h^k(sum over i of g^k(x)_i f_i(x)), with g^k as in parts.SelectGate. Penalties, summed over
  tasks and selectors, mean over rows: entropy_strength · entropy of r(z), which makes selectors
  decide; and where E is no power of two 1 / sum over experts of r(z), which keeps them off codes of
  no expert.

  Hazimeh, Zhao, Chowdhery, Sathiamoorthy, Chen, Mazumder, Hong, Chi: DSelect-k: Differentiable
  Selection in the Mixture of Experts with Applications to Multi-Task Learning. NeurIPS 2021.

  Attributes:
    experts: number of experts E, from two up.
    selectors: number of selectors of each gate, k in the paper.
    smoothness: width of the selectors' smooth step, gamma in the paper.
    entropy_strength: of the entropy penalty, lambda in the paper; 0 for none.
  """

  experts: int = 8
  selectors: int = 2
  smoothness: float = 1.0
  entropy_strength: float = 1e-3

  def check(self, kinds: Sequence[str]) -> None:
    """Raises UserError where there is nothing to select from."""
    super().check(kinds)
    require(
      self.experts >= 2, f"config.model.experts is {self.experts}; a selection needs two or more"
    )

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool = False) -> Array:
    """Returns logits_BxO; `train` turns dropout, batch statistics and the penalties on."""
    x_BxD = self.embed(features, train)
    experts_ExBxH = self.stack("expert", self.experts, None, "experts")(x_BxD, train)
    gates_TxBxE, r_TxBxKxE = ensemble(SelectGate, self.tasks)(
      self.experts, self.selectors, self.smoothness, name="gating"
    )(x_BxD, train)
    self.sow("intermediates", "gates", gates_TxBxE)
    if train:
      self._sow_penalties(r_TxBxKxE)
    mixed_TxBxH = mixture(gates_TxBxE, experts_ExBxH)
    return self.to_logits(mixed_TxBxH, train)

  @nn.nowrap
  def _sow_penalties(self, r_TxBxKxE: Array) -> None:
    tiny = 1e-6  # Selectors reach 0 exactly.
    rows = r_TxBxKxE.shape[1]
    if is_on(self.entropy_strength):
      entropy = -(r_TxBxKxE * jnp.log(r_TxBxKxE + tiny)).sum() / rows
      self.sow("losses", "entropy", self.entropy_strength * entropy)
    if self.experts & (self.experts - 1):
      self.sow("losses", "reachable", (1 / (r_TxBxKxE.sum(-1) + tiny)).sum() / rows)
