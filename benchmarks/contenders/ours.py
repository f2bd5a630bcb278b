"""mmoe_jax, at the sizes that all contenders have."""

import jax
import numpy as np

from benchmarks.contenders import protocol
from configs import census
from mmoe_jax import cache, data, engine, evaluate, parallel


def config_of(task: protocol.Task):
  """configs/census.py at the contenders' sizes: no dropout, no moving average, a constant rate."""
  config = census.get_config("mmoe")
  config.seed = task.seed
  config.train.batch_size = task.batch_size
  config.train.average_decay = 0.0
  config.model.expert_dropout = 0.0
  for group in ("dense", "embedding"):
    config.optimizer[group].learning_rate = protocol.LEARNING_RATE
    config.optimizer[group].schedule = "constant"
  return config


def schema_of(task: protocol.Task) -> data.Schema:
  """A schema of the given sizes; what the ids stand for does not matter here."""
  features = [
    data.IdFeature(f"feature_{i}", "category", (f"feature_{i}",), ("",) * (size - 1))
    for i, size in enumerate(task.sizes)
  ]
  numeric = [data.NumericFeature(f"number_{i}", 0.0, 1.0) for i in range(task.numbers.shape[1])]
  tasks = [data.Task(f"task_{i}", f"task_{i}") for i in range(task.labels.shape[1])]
  return data.Schema((), tuple(features), tuple(numeric), tuple(tasks))


def train_arrays(task: protocol.Task) -> dict:
  """What an epoch trains on."""
  features = {"ids": task.ids, "numeric": task.numbers}
  weights = np.ones(len(task.labels), np.float32)
  return {"features": features, "labels": task.labels, "weights": weights}


class Ours:
  """See protocol.Contender: one run, as mmoe_jax.main trains it."""

  def __init__(self, task: protocol.Task):
    config, self._task = config_of(task), task
    devices = parallel.Devices(parallel.device_count(0, task.batch_size))
    steps = engine.steps_per_epoch(config, len(task.labels))
    learner = engine.create_learner(
      config, schema_of(task), steps, devices.count, devices.axis_name
    )
    self._arrays = devices.replicate(train_arrays(task))
    self._key = jax.random.key(task.seed)
    sample = {"ids": task.ids[:1], "numeric": task.numbers[:1]}
    init = parallel.jit_once(learner.init)
    self._state = devices.replicate(init(self._key, sample))
    self.parameters = sum(a.size for a in jax.tree.leaves(self._state.params))
    self._epoch = devices.compile(learner.epoch, self._state, self._arrays, self._key)
    self._predict = evaluate.make_predict(learner.model)

  def train_epoch(self) -> int:
    """See protocol.Contender."""
    key = engine.fold_in(self._key, "epoch", self._state.step)
    self._state, losses_SxT = self._epoch(self._state, self._arrays, key)
    jax.block_until_ready(losses_SxT)
    return len(self._task.labels)

  def scores(self) -> np.ndarray:
    """See protocol.Contender."""
    features = {"ids": self._task.test_ids, "numeric": self._task.test_numbers}
    logits = self._predict(jax.device_get(self._state.variables), evaluate.chunked(features))
    return np.asarray(logits)[: len(self._task.test_ids)]


if __name__ == "__main__":
  cache.keep_programs()
  protocol.serve(Ours)
