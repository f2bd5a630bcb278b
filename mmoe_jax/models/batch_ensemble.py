"""Batch ensemble: one model whose score is the mean of members that share most parameters.

Gorishniy, Kotelnikov, Babenko: TabM: Advancing Tabular Deep Learning with Parameter-Efficient
Ensembling. ICLR 2025. https://arxiv.org/abs/2410.24210 (section 3, the variant TabM-mini)

Shape letters: M members, B rows, D inputs, O outputs of all tasks.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmoe_jax.data import Task
from mmoe_jax.errors import require
from mmoe_jax.models import mean_scores
from mmoe_jax.models.base import Model

Array = jax.Array
MEMBERS = "members"  # Key of the parameters that each member has separately.
TOWERS = "towers"  # See layers.towers; tasks of unequal outputs have layers `head_K`.


@dataclasses.dataclass(frozen=True)
class BatchEnsemble:
  """A model of M members, which differ in a scale of each input and in the output layers.

  It is used like the model that it wraps: `init` and `apply` take the same arguments. In training
  `apply` returns the members' logits, so that each is trained by its own loss; otherwise logits of
  their mean score. Gates are means over members. Batch norm has statistics for each member.

  The forward pass of one member is mapped over the members' parameters; the embeddings of a batch
  are read once for all. Scales start as random signs.

  Attributes:
    model: the model.
    members: number of members M.
    tasks: tasks, in the order of their outputs.
  """

  model: Model
  members: int
  tasks: Sequence[Task]

  def init(self, key: Array, features: Mapping[str, Any]) -> dict[str, Any]:
    """Returns variables: `params`, with those of each member as `members`, and `batch_stats`.

    Raises:
      UserError: for a model without output layers that are known by name.
    """
    variables = self.model.init(key, features)
    shared, heads = self._separate(variables["params"])
    require(
      bool(heads),
      f"config.model.batch_ensemble = {self.members}: needs a model whose last part is "
      "mmoe_jax.models.towers",
    )
    head_keys = jax.random.split(jax.random.fold_in(key, 0), self.members)
    draw = lambda k: self._separate(self.model.init(k, features)["params"])[1]
    inputs = sum(self.model.embedding_dims) + features["numeric"].shape[1]
    scales_MxD = jax.random.rademacher(
      jax.random.fold_in(key, 1), (self.members, inputs), jnp.float32
    )
    members = {"input_scale": scales_MxD, "heads": jax.vmap(draw)(head_keys)}
    repeat = lambda a: jnp.repeat(a[None], self.members, axis=0)
    batch_stats = jax.tree.map(repeat, variables.get("batch_stats", {}))
    return {"params": {**shared, MEMBERS: members}, "batch_stats": batch_stats}

  def apply(
    self,
    variables: Mapping[str, Any],
    features: Mapping[str, Any],
    train: bool = False,
    rngs: Mapping[str, Array] | None = None,
    mutable: Sequence[str] = (),
  ) -> Any:
    """Returns logits_BxO of the mean score, in training logits_MxBxO.

    Args:
      variables: result of `init`.
      features: see Model.
      train: enables dropout and batch statistics.
      rngs: random keys by name; members drop different units.
      mutable: collections to return, too, as in Flax.
    """
    shared = {k: v for k, v in variables["params"].items() if k != MEMBERS}
    own = variables["params"][MEMBERS]

    def member(own: Any, batch_stats: Any, number: Array) -> tuple[Array, Any]:
      params = _merge(shared, own["heads"])
      scaled = {**features, "input_scale": own["input_scale"]}
      keys = dict(rngs or {})
      if "dropout" in keys:
        keys["dropout"] = jax.random.fold_in(keys["dropout"], number)
      return self.model.apply(
        {"params": params, "batch_stats": batch_stats},
        scaled,
        train=train,
        rngs=keys,
        mutable=list(mutable),
      )

    numbers = jnp.arange(self.members)
    logits_MxBxO, updates = jax.vmap(member)(own, variables.get("batch_stats", {}), numbers)
    means = {
      name: part if name == "batch_stats" else jax.tree.map(lambda a: a.mean(0), part)
      for name, part in updates.items()
    }
    logits = logits_MxBxO if train else self._mean(logits_MxBxO)
    return (logits, means) if mutable else logits

  def _mean(self, logits_MxBxO: Array) -> Array:
    sums: mean_scores.Sums = ()
    for m in range(self.members):
      sums = mean_scores.add_scores(self.tasks, sums, logits_MxBxO[m])
    return mean_scores.to_logits(self.tasks, sums, self.members)

  def _separate(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the parameters that members share, and the output layers."""
    last = f"Dense_{len(self.model.tower_hidden)}"
    heads = {k: v for k, v in params.items() if k.startswith("head_")}
    towers = dict(params.get(TOWERS, {}))
    if last in towers:
      heads[TOWERS] = {last: towers.pop(last)}
    shared = {k: v for k, v in params.items() if k not in heads and k != TOWERS}
    return shared | ({TOWERS: towers} if towers else {}), heads


def _merge(shared: Mapping[str, Any], heads: Mapping[str, Any]) -> dict[str, Any]:
  return {**shared, **{name: {**shared.get(name, {}), **part} for name, part in heads.items()}}
