"""MMoE on Census-Income at the field's usual size: 8 experts of 16, towers of 8, embeddings of 4.

  python -m mmoe_jax.main --config configs/census.py --workdir runs/census

On two CPU cores: 20 seconds; 27,846 parameters. Expect a test AUC of 0.9567 ± 0.0003 for
income_50k and 0.9946 ± <0.0001 for marital_stat (mean of five seeds, 95 % interval of the mean).

Learning rate, dropout, the moving average and the length of training were chosen on the
validation rows, with two seeds each; the size was not (configs/census_best.py says what larger
ones give). Layer norm in the experts would add 0.0003 to income's validation AUC and cost a fifth
of the speed. benchmarks/README.md has the trials.
"""

from ml_collections import ConfigDict

from mmoe_jax.config import parse_arg
from mmoe_jax.errors import require_known

# The ways to weigh tasks (mmoe_jax/task_weighting.py) and the settings of each.
WEIGHTINGS = {
  "static": {},  # As loss.task_weights says.
  "uncertainty": {"learning_rate": 1e-2},  # Of the log variances, by Adam.
  "dwa": {"temperature": 2.0},  # The higher, the more even the weights.
  "gradnorm": {
    "alpha": 1.5,  # How hard the tasks' rates of training are pulled together.
    "learning_rate": 2.5e-2,  # Of the weights, by Adam.
  },
  "pcgrad": {},
}


def get_config(arg: str | None = None) -> ConfigDict:
  """Every key there is, once.

  Args:
    arg: `MODEL,tasks=A+B,protocol=P,weighting=W`, what changes many keys; each part may be left
      out.
  """
  arg = parse_arg(
    arg,
    model="mmoe",
    tasks=("income_50k", "marital_stat"),
    protocol="demo",
    weighting="static",
  )
  require_known(arg["weighting"], WEIGHTINGS, "config argument 'weighting'")
  config = ConfigDict()
  config.seed = 0  # Of everything: initialisation, order of rows, dropout.
  config.data_dir = "data/census"  # What data preparation wrote.

  config.data = data = ConfigDict()
  data.tasks = arg["tasks"]  # Of income_50k, marital_stat, education; from one up.
  data.protocol = arg[
    "protocol"
  ]  # demo, or paper: neither education nor marital_stat is a feature.
  data.numeric = "both"  # standardize, bins, both, log_int or none; see data_prep/README.md.
  data.exclude = ()  # Further columns to leave out.
  data.crosses = ()  # Crossed features, such as ("sex#education",).

  config.model = model = ConfigDict()
  model.name = arg["model"]  # A key of models.MODELS; the rest are its settings.
  model.embedding_dim = 4
  model.embedding_dim_of = ConfigDict()  # Feature -> a width of its own, such as {"age_bins": 8}.
  model.embedding_init_std = 0.05
  model.embedding_dropout = 0.0  # Of single coordinates of the models' input.
  model.experts = 8
  model.expert_hidden = (16,)  # Units of each hidden layer of an expert.
  model.expert_activation = "relu"  # relu, gelu, silu, tanh or identity.
  model.expert_norm = "none"  # none, layer or batch.
  model.expert_dropout = 0.3
  model.gate_hidden = ()  # The paper's gates are linear.
  model.tower_hidden = (8,)
  model.tower_activation = "relu"
  model.tower_norm = "none"
  model.tower_dropout = 0.0

  config.loss = ConfigDict()
  config.loss.task_weights = ()  # One number a task; empty means 1 for each.
  # A key of WEIGHTINGS, and its settings. Weights that adapt are factors of task_weights.
  config.loss.weighting = ConfigDict({"name": arg["weighting"], **WEIGHTINGS[arg["weighting"]]})
  config.loss.sample_weight = False  # Whether rows count by their survey weight.

  config.optimizer = ConfigDict()
  config.optimizer.clip_norm = 0.0  # Bound on the norm of the whole gradient; 0 for none.
  for group in ("dense", "embedding"):  # Tables, and all other parameters.
    config.optimizer[group] = ConfigDict(
      {
        "name": "adam",  # adam, adagrad, sgd, or ftrl, which has other keys (census_demo.py).
        "learning_rate": 5e-3,
        "weight_decay": 0.0,  # Decoupled, on kernels and tables.
        "schedule": "cosine",  # constant, cosine or linear; the last two end at zero.
        "warmup_epochs": 0.0,
      }
    )

  config.train = ConfigDict()
  config.train.batch_size = 1024  # Rows of a step, over all devices.
  config.train.epochs = 12
  config.train.shuffle = True
  config.train.average_decay = 0.999  # Moving average of the parameters; 0 for none.
  config.train.warm_start = ""  # Work directory of a run to take the initial parameters from.
  config.train.devices = 0  # How many to train on; 0 for all there are.

  config.select = ConfigDict()  # The epoch that is kept is the best on validation rows, by …
  config.select.metric = "auc"  # … auc or log_loss …
  config.select.tasks = ()  # … averaged over these tasks; empty means all.
  config.select.patience = 5  # Epochs without a better one before training stops; 0 for never.

  config.checkpoint = ConfigDict()
  config.checkpoint.every_epochs = 1
  return config
