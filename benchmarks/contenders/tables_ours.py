"""Contender mmoe_jax with large tables: dense or row-wise updates, by $CONTENDER_VARIANT."""

import os

from ml_collections import ConfigDict

from benchmarks.contenders import ours, protocol
from benchmarks.contenders.tables_protocol import DIM, RATE
from mmoe_jax import cache
from mmoe_jax.training.run import compile_run

# Variant -> `updates` and optimizer of the tables.
VARIANTS = {
  "dense_adam": ("dense", "adam"),
  "rows_adam": ("rows", "adam"),
  "rows_adagrad": ("rows", "adagrad"),
  "rows_rowwise_adagrad": ("rows", "rowwise_adagrad"),
  "rows_sgd": ("rows", "sgd"),
}


class TablesOurs(ours.Ours):
  """See protocol.Contender: one run on one device, compiled as for mmoe_jax.main."""

  def __init__(self, task: protocol.Task):
    """Compiles the run."""
    updates, name = VARIANTS[os.environ["CONTENDER_VARIANT"]]
    config = ours.config_of(task)
    config.train.devices = int(os.environ.get("CONTENDER_DEVICES", "1"))
    config.model.embedding_shards = int(os.environ.get("CONTENDER_SHARDS", "1"))
    config.model.embedding_dim = DIM
    settings = dict(config.optimizer.embedding) | {"name": name, "learning_rate": RATE}
    config.optimizer.embedding = ConfigDict(settings | {"updates": updates})
    self._task, self._epoch = task, 0
    self._run = compile_run(config, ours.schema_of(task), ours.split_of(task))
    self._state = self._run.state
    # The run holds the initial state, too, whose arrays training donates.
    self._run = self._run._replace(state=None)
    self.parameters = self._run.parameters


if __name__ == "__main__":
  cache.keep_programs()
  protocol.serve(TablesOurs)
