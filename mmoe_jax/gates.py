"""What gates do, in numbers: pure, jit-able and vmap-able functions of gate weights.

A gate g^k(x) is the distribution over experts by which task k mixes them for a row x (Ma et al.
2018, eq. 7). Its rows sum to one; an expert that a task cannot see has weight 0.

Shape letters: N rows, T tasks, E experts.
"""

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr

Array = jax.Array
PREFIX = "gates/"
IN_USE = 0.1  # An expert is in use where its mean weight is above this part of an even share, 1/E.
COLLAPSED = 0.95  # A gate has collapsed when one expert has more than this share of its weight.
SAME = 0.99  # Gates whose overlap is at least this mix the experts alike.


def statistics(gates_TxNxE: Array, weights_N: Array) -> dict[str, Array]:
  """Weighted statistics of gates over rows; map over members or over groups of rows with vmap.

  With the mean gate ḡ^k_i = sum_n w_n g^k(x_n)_i / sum_n w_n and H(p) = −sum_i p_i log p_i,
  where 0 log 0 = 0:

  `mean` (T, E): ḡ^k, which sums to one over experts.
  `entropy` (T,): the mean over rows of H(g^k(x)), in nats: 0 where each row listens to one
    expert, log E where it listens to all alike.
  `mean_entropy` (T,): H(ḡ^k), in nats. Never below `entropy`; the distance is how much the gate
    tells rows apart (the mutual information of row and expert).
  `effective_experts` (T,): exp H(ḡ^k), from 1 to E: as many experts with even weights would have
    that entropy (the diversity of order 1 of Hill 1973).
  `used_experts` (T,): how many experts have a mean weight above IN_USE / E.
  `similarity` (T, T): the mean over rows of sum_i min(g^a(x)_i, g^b(x)_i), which is one minus the
    total variation distance: 1 where two tasks mix the experts alike, row by row, 0 where they
    share none.

  Args:
    gates_TxNxE: weights of the experts; each row sums to one.
    weights_N: at least 0. Rows of weight 0 do not count, whatever their gates are.

  Returns:
    float32 arrays by name; all NaN (`used_experts` 0) when no row has weight. Means are summed in
    float32: right to about 1e-5.

  References:
    Hill: Diversity and Evenness: A Unifying Notation and Its Consequences. Ecology 54(2), 1973.
  """
  total = weights_N.sum()
  total = jnp.where(total > 0, total, jnp.nan)
  # Zeros in place of what does not count: 0 · NaN would be NaN.
  gates_TxNxE = jnp.where(weights_N[None, :, None] > 0, gates_TxNxE, 0.0)

  # Products and sums rather than an einsum, which accelerators would do in half precision.
  mean_TxE = (gates_TxNxE * weights_N[None, :, None]).sum(1) / total
  entropy_TxN = entr(gates_TxNxE).sum(-1)
  mean_entropy_T = entr(mean_TxE).sum(-1)
  overlap_TxTxN = jnp.minimum(gates_TxNxE[:, None], gates_TxNxE[None]).sum(-1)
  return {
    "mean": mean_TxE,
    "entropy": (entropy_TxN * weights_N[None]).sum(-1) / total,
    "mean_entropy": mean_entropy_T,
    "effective_experts": jnp.exp(mean_entropy_T),
    "used_experts": (mean_TxE > IN_USE / mean_TxE.shape[1]).sum(-1).astype(jnp.float32),
    "similarity": (overlap_TxTxN * weights_N[None, None]).sum(-1) / total,
  }


def scalars(statistics: Mapping[str, Array], task_names: Sequence[str]) -> dict[str, float]:
  """The statistics of one member by flat names, as logs take them.

  Args:
    statistics: what `statistics` gave, as read from the device.
    task_names: the T tasks.

  Returns:
    `gates/TASK/NAME` for each measure of a task, `gates/TASK/expert_E` for the mean weight of each
    expert, counted from 0, and `gates/similarity/TASK~TASK` for each pair of tasks.
  """
  named = {}
  for t, task in enumerate(task_names):
    for name in ("entropy", "mean_entropy", "effective_experts", "used_experts"):
      named[f"{PREFIX}{task}/{name}"] = float(statistics[name][t])
    for e, weight in enumerate(np.asarray(statistics["mean"][t])):
      named[f"{PREFIX}{task}/expert_{e}"] = float(weight)
  for a, b in itertools.combinations(range(len(task_names)), 2):
    named[similarity_name(task_names[a], task_names[b])] = float(statistics["similarity"][a, b])
  return named


def similarity_name(task: str, other: str) -> str:
  """The name in `scalars` of how alike two tasks' gates are; `task` is the first of the two."""
  return f"{PREFIX}similarity/{task}~{other}"


def collapsed(statistics: Mapping[str, Array], task_names: Sequence[str]) -> list[str]:
  """What to warn of: gates that have collapsed.

  A gate has collapsed when its mean puts more than COLLAPSED of the weight on one of several
  experts: the task then learns as if it were alone with that expert. And when the gates of all
  tasks overlap by at least SAME, each with each, the tasks mix the experts alike: many gates do
  the work of one. Gates that are equal to the bit are one gate, by the model's design, and no
  finding.

  Args:
    statistics: what `statistics` gave for one member.
    task_names: the T tasks.

  Returns:
    A line for each finding; empty when all is well, and where nothing could be measured.

  References:
    Zhao et al.: Recommending What Video to Watch Next: A Multitask Ranking System. RecSys 2019.
    https://doi.org/10.1145/3298689.3346997
  """
  mean_TxE = np.asarray(statistics["mean"])
  similarity_TxT = np.asarray(statistics["similarity"])
  lines = []
  if mean_TxE.shape[1] > 1:  # With one expert there is nothing to choose.
    for task, mean_E in zip(task_names, mean_TxE, strict=True):
      if mean_E.max() > COLLAPSED:
        lines.append(
          f"the gate of '{task}' has collapsed: expert {mean_E.argmax()} has "
          f"{mean_E.max():.1%} of its weight (over {COLLAPSED:.0%})"
        )
    one_gate = (mean_TxE == mean_TxE[:1]).all()
    if not one_gate and similarity_TxT.min() >= SAME:
      lines.append(
        f"the gates of all {len(task_names)} tasks are the same: any two overlap by "
        f"{similarity_TxT.min():.4f} or more (at least {SAME}), so no task mixes the experts in "
        "a way of its own"
      )
  return lines
