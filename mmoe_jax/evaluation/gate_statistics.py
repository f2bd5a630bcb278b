"""Statistics of gates: pure functions of gate weights for jit and vmap.

A gate g^k(x) is the distribution over experts by which task k mixes them for a row x (Ma et al.
2018, equation 7). Its rows sum to one; an expert that a task cannot use has weight 0.

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
IN_USE = 0.1  # An expert is in use if its mean weight is above this part of an even share, 1/E.
COLLAPSED = 0.95  # A gate has collapsed if one expert has more than this share of its weight.
SAME = 0.99  # Gates with at least this overlap are regarded as the same.


def statistics(gates_TxNxE: Array, weights_N: Array) -> dict[str, Array]:
  """Computes weighted statistics of gates over rows; vmap it over members or groups of rows.

  With the mean gate ḡ^k_i = sum_n w_n g^k(x_n)_i / sum_n w_n and H(p) = −sum_i p_i log p_i,
  where 0 log 0 = 0:

  `mean` (T, E): ḡ^k, which sums to one over experts.
  `entropy` (T,): mean over rows of H(g^k(x)), in nats: 0 if each row uses one expert, log E if it
    uses all equally.
  `mean_entropy` (T,): H(ḡ^k), in nats. At least `entropy`; the difference is the mutual information
    of row and expert.
  `effective_experts` (T,): exp H(ḡ^k), from 1 to E: the number of equally weighted experts with
    that entropy (the diversity of order 1 of Hill 1973).
  `used_experts` (T,): number of experts with a mean weight above IN_USE / E.
  `similarity` (T, T): mean over rows of sum_i min(g^a(x)_i, g^b(x)_i), one minus the total
    variation distance: 1 if two tasks mix the experts equally in each row, 0 if they share none.

  Args:
    gates_TxNxE: weights of the experts; each row sums to one.
    weights_N: at least 0. Rows of weight 0 do not count, even if their gates are NaN.

  Returns:
    float32 arrays by name; all NaN (`used_experts` 0) if no row has weight. Sums are in float32,
    with errors of about 1e-5.

  References:
    Hill: Diversity and Evenness: A Unifying Notation and Its Consequences. Ecology 54(2), 1973.
  """
  total = weights_N.sum()
  total = jnp.where(total > 0, total, jnp.nan)
  # Rows without weight become 0, because 0 · NaN would be NaN.
  gates_TxNxE = jnp.where(weights_N[None, :, None] > 0, gates_TxNxE, 0.0)

  # Products and sums, because accelerators compute an einsum in lower precision.
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
  """Returns the statistics of one run by flat names, for logs.

  Args:
    statistics: result of `statistics`, on the host.
    task_names: names of the T tasks.

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
  """Returns the name in `scalars` of the similarity of two tasks, in the order of tasks."""
  return f"{PREFIX}similarity/{task}~{other}"


def collapsed(statistics: Mapping[str, Array], task_names: Sequence[str]) -> list[str]:
  """Returns warnings about collapsed gates.

  A gate has collapsed if its mean gives one of several experts more than COLLAPSED of the weight:
  the task then uses that expert alone. The gates of all tasks are the same if every two of them
  overlap by at least SAME. Bitwise identical gates are one gate by the model's design and give no
  warning.

  Args:
    statistics: result of `statistics` for one run.
    task_names: names of the T tasks.

  Returns:
    One line per warning; none if the statistics are NaN.

  References:
    Zhao et al.: Recommending What Video to Watch Next: A Multitask Ranking System. RecSys 2019.
    https://doi.org/10.1145/3298689.3346997
  """
  mean_TxE = np.asarray(statistics["mean"])
  similarity_TxT = np.asarray(statistics["similarity"])
  lines = []
  if mean_TxE.shape[1] > 1:  # With one expert there is no choice.
    for task, mean_E in zip(task_names, mean_TxE, strict=True):
      if mean_E.max() > COLLAPSED:
        lines.append(
          f"the gate of '{task}' has collapsed: expert {mean_E.argmax()} has "
          f"{mean_E.max():.1%} of its weight (over {COLLAPSED:.0%})"
        )
    is_one_gate = (mean_TxE == mean_TxE[:1]).all()
    if not is_one_gate and similarity_TxT.min() >= SAME:
      lines.append(
        f"the gates of all {len(task_names)} tasks are the same: any two overlap by at least "
        f"{similarity_TxT.min():.4f} (threshold {SAME}), so all tasks mix the experts equally"
      )
  return lines
