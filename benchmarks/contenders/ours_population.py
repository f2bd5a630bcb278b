"""Contender mmoe_jax: sixteen seeds as one population on all cores; rows of all members count."""

from typing import Any

import jax
import numpy as np

from benchmarks.contenders import ours, protocol
from mmoe_jax import cache, parallel
from mmoe_jax.evaluation import evaluate
from mmoe_jax.training.learner import create_learner
from mmoe_jax.training.step import Batch, fold_in
from mmoe_jax.training.train_rows import make_batch, steps_per_epoch

MEMBERS = 16


class Population:
  """See protocol.Contender; scores are those of the first member."""

  def __init__(self, task: protocol.Task):
    """Compiles the members."""
    config, self._task = ours.config_of(task), task
    self._members = parallel.Members(MEMBERS)
    steps = steps_per_epoch(config, len(task.labels))
    learner = create_learner(config, ours.schema_of(task), steps)
    self._predict = parallel.jit(evaluate.make_predict(learner.model))
    self._rows = self._members.replicate(make_batch(ours.split_of(task), config))
    self._number = 1
    self._seeds = self._members.shard(np.arange(MEMBERS, dtype=np.uint32) + task.seed)

    def epoch(state, seed, shared):
      rows, number = shared
      return learner.epoch(state, rows, fold_in(jax.random.key(seed), "epoch", number))

    sample = {"ids": task.ids[:1], "numeric": task.numbers[:1]}
    keys = [jax.random.key(task.seed + m) for m in range(MEMBERS)]
    self._state = self._members.init(learner.init, [(key, sample) for key in keys])
    self.parameters = (
      sum(a.size for a in jax.tree.leaves(self._state.params)) // self._members.padded
    )
    self._epoch = self._members.compile(epoch, self._state, self._seeds, self._shared())

  def train_epoch(self) -> int:
    """See protocol.Contender."""
    self._state, losses = self._epoch(self._state, self._seeds, self._shared())
    self._number += 1
    jax.block_until_ready(losses)
    return MEMBERS * len(self._task.labels)

  def _shared(self) -> tuple[Batch, Any]:
    return self._rows, self._members.replicate(np.int32(self._number))

  def scores(self) -> np.ndarray:
    """See protocol.Contender."""
    variables = jax.tree.map(lambda a: a[0], self._members.unshard(self._state.variables))
    features = {"ids": self._task.test_ids, "numeric": self._task.test_numbers}
    logits = self._predict(variables, evaluate.to_chunks(features))
    return np.asarray(logits)[: len(self._task.test_ids)]


if __name__ == "__main__":
  parallel.use_all_cores()
  cache.keep_programs()
  protocol.serve(Population)
