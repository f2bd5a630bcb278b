"""MMoE on Census-Income at the usual size: 8 experts of 16, towers of 8, embeddings of 4.

  python -m mmoe_jax.main --config configs/census.py --workdir runs/census

Other models with about as many parameters: census.py:ple, census.py:shared_bottom, …

Hardware: two CPU cores, about 10 seconds. 27,846 parameters. Expected test AUC: 0.9565 ± 0.0002 for
income_50k and 0.9947 ± <0.0001 for marital_stat (mean of five seeds, 95 % interval of the mean).

Learning rate, dropout, moving average and number of epochs were selected on validation rows with
two seeds each; the size was not (configs/census_best.py is larger). Layer norm in the experts would
add 0.0003 to income's validation AUC and cost a fifth of the speed. studies/README.md has the
trials.
"""

from ml_collections import ConfigDict

from mmoe_jax.config import parse_arg
from mmoe_jax.errors import require_known

# Task weightings (mmoe_jax/training/task_weighting.py) and their settings.
WEIGHTINGS = {
  "static": {},  # Constant: loss.task_weights.
  "uncertainty": {"learning_rate": 1e-2},  # Adam's, of the log variances.
  "dwa": {"temperature": 2.0},  # The higher, the more even the weights.
  "gradnorm": {
    "alpha": 1.5,  # Strength with which training rates are pulled together.
    "learning_rate": 2.5e-2,  # Adam's, of the weights.
  },
  "pcgrad": {},
}

# Settings of all models.
_COMMON = {
  "embedding_dim": 4,  # Width of every embedding; 0: by the feature's size.
  "embedding_dim_of": {},  # Feature -> another width, such as {"age_bins": 8}.
  # none, quotient_remainder or double_hash: of features with more ids than embedding_rows.
  "embedding_compression": "none",
  "embedding_rows": 0,  # Table rows of such a feature.
  "embedding_dtype": "float32",  # Or bfloat16, with optimizer.embedding.updates = "rows".
  "embedding_init_std": 0.05,  # Standard deviation of the initial embeddings.
  # Devices that share each table's rows; 0 shards tables that one device's memory cannot hold.
  "embedding_shards": 0,
  "embedding_dropout": 0.0,  # Rate for coordinates of the model's input.
  "tower_hidden": (8,),  # Units of each hidden layer of a tower.
  "tower_activation": "relu",  # relu, gelu, silu, tanh or identity.
  "tower_norm": "none",  # none, layer or batch.
  "tower_dropout": 0.0,  # Rate for hidden units.
  # Members of a batch ensemble (TabM), which share all but input scales and output layers; 1: none.
  "batch_ensemble": 1,
}
# Settings of parts; MODELS sets their units.
_BOTTOM = {
  "bottom_hidden": (),  # Units of each hidden layer under the towers.
  "bottom_activation": "relu",  # As for towers, also the norm.
  "bottom_norm": "none",
  "bottom_dropout": 0.3,  # Rate for hidden units.
}
_EXPERTS = {
  "expert_hidden": (16,),  # Units of each hidden layer of an expert.
  "expert_activation": "relu",  # As for towers, also the norm.
  "expert_norm": "none",
  "expert_dropout": 0.3,  # Rate for hidden units.
}
_GATES = {"gate_hidden": ()}  # The papers' gates are linear.

# Settings of each model, with about as many parameters as MMoE on the default tasks.
MODELS = {
  "single_task": _BOTTOM | {"bottom_hidden": (58,)},
  "shared_bottom": _BOTTOM | {"bottom_hidden": (132,)},
  "l2_constrained": _BOTTOM
  | {
    "bottom_hidden": (58,),
    "l2_strength": 1e-4,  # Of the squared distances between tasks' parameters.
  },
  "cross_stitch": _BOTTOM
  | {
    "bottom_hidden": (69,),
    "stitch_own": 0.9,  # Initial weight of a task's own units; others share the rest.
  },
  "tensor_factorization": _BOTTOM
  | {
    "bottom_hidden": (172,),
    "ranks": (48, 48, 2),  # Of inputs, units and tasks.
  },
  "omoe": _EXPERTS | _GATES | {"experts": 8, "expert_hidden": (17,)},
  "mmoe": _EXPERTS
  | _GATES
  | {
    "experts": 8,
    "gate_dropout": 0.0,  # Rate at which a gate drops an expert in training.
    "exclusivity": 0.0,  # Share of experts that belong to one task each.
  },
  "cgc": _EXPERTS | _GATES | {"task_experts": 2, "shared_experts": 4},  # Experts of each task.
  "ple": _EXPERTS
  | _GATES
  | {
    "levels": 2,  # Levels of extraction.
    "task_experts": 2,
    "shared_experts": 3,
  },
  "aitm": _BOTTOM
  | {
    "bottom_hidden": (45,),
    # 0.6 in the paper, for tasks that imply the one before, which the default tasks do not.
    "calibrator_strength": 0.0,
  },
  "esmm": _BOTTOM | {"bottom_hidden": (69,)},
  "snr_trans": _EXPERTS
  | {
    "experts": 5,  # Sub-networks per level.
    "l0_strength": 1e-4,  # Of the expected number of open connections.
  },
  "dselect_k": _EXPERTS
  | {
    "experts": 8,
    "selectors": 2,  # Maximum number of experts per row and task.
    "smoothness": 1.0,  # Width of the selectors' smooth step.
    "entropy_strength": 1e-3,  # Makes selectors decide.
  },
}

# Default tasks. ESMM needs tasks that each imply the one before.
TASKS = dict.fromkeys(MODELS, ("income_50k", "marital_stat")) | {"esmm": ("education", "bachelors")}


def set_model(config: ConfigDict, **settings: object) -> None:
  """Sets the given settings, except those that the config's model does not have."""
  config.model.update({k: v for k, v in settings.items() if k in config.model})


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns every key with its default.

  Args:
    arg: `MODEL,tasks=A+B,protocol=P,weighting=W`, which changes many keys; parts are optional.
  """
  arg = parse_arg(arg, model="mmoe", tasks=(), protocol="demo", weighting="static")
  require_known(arg["model"], MODELS, "config.model.name")
  require_known(arg["weighting"], WEIGHTINGS, "config argument 'weighting'")
  config = ConfigDict()
  config.seed = 0  # Of initialisation, order of rows and dropout.
  config.data_dir = "data/census"  # Output folder of data preparation.

  config.data = data = ConfigDict()
  # One or more of income_50k, marital_stat, education, …: see data_prep/README.md.
  data.tasks = arg["tasks"] or TASKS[arg["model"]]
  # demo, or paper: neither education nor marital_stat is a feature.
  data.protocol = arg["protocol"]
  data.numeric = "both"  # standardize, bins, both, piecewise, log_int or none.
  data.exclude = ()  # Further columns that are no features.
  data.crosses = ()  # Crossed features, such as ("sex#education",).

  # Change the model by the argument, because other models have other settings.
  config.model = ConfigDict({"name": arg["model"]} | _COMMON | MODELS[arg["model"]])

  config.loss = ConfigDict()
  config.loss.task_weights = ()  # One number per task; empty for 1 each.
  # A key of WEIGHTINGS and its settings; adaptive weights are factors of task_weights.
  config.loss.weighting = ConfigDict({"name": arg["weighting"], **WEIGHTINGS[arg["weighting"]]})
  config.loss.sample_weight = False  # Whether rows are weighted by the survey weight.

  config.optimizer = ConfigDict()
  config.optimizer.clip_norm = 0.0  # Bound on the norm of the whole gradient; 0 disables it.
  for group in ("dense", "embedding"):  # All other parameters, and embedding tables.
    config.optimizer[group] = ConfigDict(
      {
        # adam, adagrad, sgd, or ftrl with other keys (census_demo.py); of tables also
        # rowwise_adagrad.
        "name": "adam",
        "learning_rate": 5e-3,  # The highest: after warm-up, before decay.
        "weight_decay": 0.0,  # Decoupled, on kernels and tables.
        "schedule": "cosine",  # constant, cosine or linear; the last two end at zero.
        "warmup_epochs": 0.0,  # Linear increase of the learning rate.
      }
    )
  # dense: a step updates whole tables; rows: only those that its batch reads; auto: by size.
  config.optimizer.embedding.updates = "auto"

  config.train = ConfigDict()
  config.train.batch_size = 1024  # Rows per step, over all devices.
  config.train.epochs = 12  # At most: see select.patience.
  config.train.shuffle = True  # A new order of the rows in each epoch.
  config.train.average_decay = 0.999  # Of the moving average of parameters; 0 disables it.
  config.train.warm_start = ""  # Work directory of a run with the initial parameters.
  config.train.memory_gib = 0.0  # Larger train splits are streamed from disk; 0: no limit.
  config.train.devices = 0  # Number of devices; 0 for all.
  # Of jsonl (always), tensorboard, csv, mlflow and wandb: see docs/usage.md.
  config.train.trackers = "jsonl,tensorboard"

  config.select = ConfigDict()  # Selects the best epoch on validation rows.
  config.select.metric = "auc"  # Or log_loss, or another metric of all selected tasks.
  config.select.tasks = ()  # Tasks over which the metric is averaged; empty for all.
  config.select.patience = 5  # Epochs without improvement until early stopping; 0 disables it.

  # Search space of mmoe_jax/tune.py, see mmoe_jax/training/search_space.py.
  config.search = (
    ("optimizer.dense.learning_rate+optimizer.embedding.learning_rate", ("log", 1e-3, 2e-2)),
    ("model.embedding_dropout", ("uniform", 0.0, 0.4)),
    ("model.tower_dropout", ("uniform", 0.0, 0.4)),
  )

  config.checkpoint = ConfigDict()
  config.checkpoint.every_epochs = 1  # The last epoch is always saved.
  return config
