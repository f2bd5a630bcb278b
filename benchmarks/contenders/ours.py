"""Contender mmoe_jax: one run."""

import jax
import numpy as np

from benchmarks.contenders import protocol
from configs import census
from mmoe_jax import cache, data, parallel
from mmoe_jax.evaluation import evaluate
from mmoe_jax.training.run import compile_run


def config_of(task: protocol.Task):
  """Returns configs/census.py without dropout, moving average and schedule, as for all."""
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
  """Returns a schema of the given sizes with arbitrary values."""
  features = [
    data.IdFeature(f"feature_{i}", "category", (f"feature_{i}",), ("",) * (size - 1))
    for i, size in enumerate(task.sizes)
  ]
  numeric = [data.NumericFeature(f"number_{i}", 0.0, 1.0) for i in range(task.numbers.shape[1])]
  tasks = [data.Task(f"task_{i}", f"task_{i}") for i in range(task.labels.shape[1])]
  return data.Schema((), tuple(features), tuple(numeric), tuple(tasks))


def split_of(task: protocol.Task) -> data.Split:
  """Returns the train rows."""
  features = {"ids": task.ids, "numeric": task.numbers}
  return data.Split(features, task.labels, np.ones(len(task.labels), np.float32), {})


class Ours:
  """See protocol.Contender: one run, compiled as for mmoe_jax.main."""

  def __init__(self, task: protocol.Task):
    """Compiles the run."""
    self._task, self._epoch = task, 0
    self._run = compile_run(config_of(task), schema_of(task), split_of(task))
    self._state = self._run.state
    self.parameters = sum(a.size for a in jax.tree.leaves(self._state.params))
    self._predict = parallel.jit(evaluate.make_predict(self._run.learner.model))

  def train_epoch(self) -> int:
    """See protocol.Contender."""
    self._epoch += 1
    self._state, _ = self._run.train_epoch(self._state, self._epoch)
    jax.block_until_ready(self._state)
    return len(self._task.labels)

  def scores(self) -> np.ndarray:
    """See protocol.Contender."""
    features = {"ids": self._task.test_ids, "numeric": self._task.test_numbers}
    logits = self._predict(jax.device_get(self._state.variables), evaluate.to_chunks(features))
    return np.asarray(logits)[: len(self._task.test_ids)]


if __name__ == "__main__":
  cache.keep_programs()
  protocol.serve(Ours)
