"""placeholder"""

from ml_collections import ConfigDict

from configs import census


def get_config(arg: str | None = None) -> ConfigDict:
  """configs/census.py with the demo's features, sizes and length; `arg` as there."""
  config = census.get_config(arg)
  config.data.numeric = "log_int"
  config.model.embedding_dim = 2
  config.model.experts = 2
  config.model.expert_hidden = (4,)
  config.model.expert_activation = "identity"
  config.model.expert_norm = "batch"
  config.model.expert_dropout = 0.0
  config.model.tower_hidden = ()
  dense = config.optimizer.dense
  dense.learning_rate = 1e-3
  dense.schedule = "constant"
  config.optimizer.embedding = ConfigDict(
    {"name": "ftrl", "learning_rate": 0.5, "beta": 1.0, "l1": 1.0, "l2": 120.0}
  )
  config.train.batch_size = 128
  config.train.epochs = 100
  config.train.average_decay = 0.0
  config.select.patience = 0
  config.checkpoint.every_epochs = 10
  return config
