"""mmoe_jax, sixteen seeds as one population on all cores; its rows are those of all members."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import ours, protocol
from mmoe_jax import cache, engine, evaluate, parallel

MEMBERS = 16


class Population:
  """See protocol.Contender; the scores are those of the first member."""

  def __init__(self, task: protocol.Task):
    config, self._task = ours.config_of(task), task
    self._members = parallel.Members(MEMBERS)
    steps = engine.steps_per_epoch(config, len(task.labels))
    learner = engine.create_learner(config, ours.schema_of(task), steps)
    self._predict = evaluate.make_predict(learner.model)
    self._shared = self._members.share(ours.train_arrays(task))
    self._seeds = self._members.spread(np.arange(MEMBERS, dtype=np.uint32) + task.seed)

    def epoch(state, seed, shared):
      key = engine.fold_in(jax.random.key(seed), "epoch", state.step)
      return learner.epoch(state, shared, key, jnp.int32(0))

    sample = {"ids": task.ids[:1], "numeric": task.numbers[:1]}
    keys = [jax.random.key(task.seed + m) for m in range(MEMBERS)]
    self._state = self._members.start(learner.init, [(key, sample) for key in keys])
    self.parameters = (
      sum(a.size for a in jax.tree.leaves(self._state.params)) // self._members.padded
    )
    self._epoch = self._members.compile(epoch, self._state, self._seeds, self._shared)

  def train_epoch(self) -> int:
    """See protocol.Contender."""
    self._state, losses = self._epoch(self._state, self._seeds, self._shared)
    jax.block_until_ready(losses)
    return MEMBERS * len(self._task.labels)

  def scores(self) -> np.ndarray:
    """See protocol.Contender."""
    variables = jax.tree.map(lambda a: a[0], self._members.gather(self._state.variables))
    features = {"ids": self._task.test_ids, "numeric": self._task.test_numbers}
    logits = self._predict(variables, evaluate.chunked(features))
    return np.asarray(logits)[: len(self._task.test_ids)]


if __name__ == "__main__":
  parallel.use_all_cores()
  cache.keep_programs()
  protocol.serve(Population)
