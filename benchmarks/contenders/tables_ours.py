"""Contender mmoe_jax with large tables: dense or row-wise updates, by $CONTENDER_VARIANT."""

import os

from ml_collections import ConfigDict

from benchmarks.contenders import ours, protocol
from benchmarks.contenders.tables_protocol import DIM, RATE
from mmoe_jax import cache, data
from mmoe_jax.training.run import compile_run

# Variant -> `updates` and optimizer of the tables.
VARIANTS = {
  "dense_adam": ("dense", "adam"),
  "rows_adam": ("rows", "adam"),
  "rows_adagrad": ("rows", "adagrad"),
  "rows_rowwise_adagrad": ("rows", "rowwise_adagrad"),
}


def schema_of(task: protocol.Task) -> data.Schema:
  """Returns a schema of hashed features: without a vocabulary, which would need memory."""
  features = [
    data.IdFeature(f"feature_{i}", "hash", (f"feature_{i}",), buckets=size - 1)
    for i, size in enumerate(task.sizes)
  ]
  small = ours.schema_of(task._replace(sizes=[]))
  return data.Schema((), tuple(features), small.numeric, small.tasks)


class TablesOurs(ours.Ours):
  """See protocol.Contender: one run on one device, compiled as for mmoe_jax.main."""

  def __init__(self, task: protocol.Task):
    """Compiles the run."""
    updates, name = VARIANTS[os.environ["CONTENDER_VARIANT"]]
    config = ours.config_of(task)
    config.train.devices = 1
    config.model.embedding_dim = DIM
    settings = dict(config.optimizer.embedding) | {"name": name, "learning_rate": RATE}
    config.optimizer.embedding = ConfigDict(settings | {"updates": updates})
    self._task, self._epoch = task, 0
    run = compile_run(config, schema_of(task), ours.split_of(task))
    # A run also holds its initial state, whose arrays training donates.
    self._state, self._run = run.state, run._replace(state=None)
    self.parameters = run.parameters


if __name__ == "__main__":
  cache.keep_programs()
  protocol.serve(TablesOurs)
