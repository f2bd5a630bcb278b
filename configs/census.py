"""MMoE on Census-Income at the field's usual size."""

from ml_collections import ConfigDict

from mmoe_jax.config import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
  """Every setting of a run.

  Args:
    arg: MODEL,tasks=A+B,protocol=demo|paper (see mmoe_jax/config.py).
  """
  arg = parse_arg(arg, model="mmoe", tasks=("income_50k", "marital_stat"), protocol="demo")
  config = ConfigDict()
  config.seed = 0
  config.data_dir = "data/census"

  config.data = ConfigDict()
  config.data.tasks = arg["tasks"]
  config.data.protocol = arg["protocol"]
  config.data.numeric = "standardize"
  config.data.exclude = ()
  config.data.crosses = ()

  config.model = ConfigDict()
  config.model.name = arg["model"]
  config.model.embedding_dim = 4
  config.model.embedding_dim_of = ConfigDict()
  config.model.embedding_init_std = 0.05
  config.model.embedding_dropout = 0.0
  config.model.experts = 8
  config.model.expert_hidden = (16,)
  config.model.expert_activation = "relu"
  config.model.expert_norm = "none"
  config.model.expert_dropout = 0.0
  config.model.gate_hidden = ()
  config.model.tower_hidden = (8,)
  config.model.tower_activation = "relu"
  config.model.tower_norm = "none"
  config.model.tower_dropout = 0.0

  config.loss = ConfigDict()
  config.loss.task_weights = ()
  config.loss.sample_weight = False

  config.optimizer = ConfigDict()
  config.optimizer.clip_norm = 0.0
  for group in ("dense", "embedding"):
    settings = ConfigDict()
    settings.name = "adam"
    settings.learning_rate = 1e-3
    settings.weight_decay = 0.0
    settings.schedule = "constant"
    settings.warmup_epochs = 0.0
    config.optimizer[group] = settings

  config.train = ConfigDict()
  config.train.batch_size = 1024
  config.train.epochs = 10
  config.train.shuffle = True
  config.train.average_decay = 0.0
  config.train.warm_start = ""
  config.train.devices = 0

  config.select = ConfigDict()
  config.select.metric = "auc"
  config.select.tasks = ("income_50k",)
  config.select.patience = 5

  config.checkpoint = ConfigDict()
  config.checkpoint.every_epochs = 1
  return config
