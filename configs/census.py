"""MMoE on Census-Income at the field's usual size: 8 experts of 16, towers of 8, embeddings of 4.

  python -m mmoe_jax.main --config configs/census.py --workdir runs/census

Or another model of the zoo, with as many parameters (census.py:ple, census.py:shared_bottom, …).

On two CPU cores: some 20 seconds; 27,846 parameters. Expect a test AUC of 0.9565 ± 0.0002 for
income_50k and 0.9947 ± <0.0001 for marital_stat (mean of five seeds, 95 % interval of the mean).

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

# What all models have.
_COMMON = {
  "embedding_dim": 4,
  "embedding_dim_of": {},  # Feature -> a width of its own, such as {"age_bins": 8}.
  "embedding_init_std": 0.05,
  "embedding_dropout": 0.0,  # Of single coordinates of the models' input.
  "tower_hidden": (8,),  # Units of each hidden layer of a tower.
  "tower_activation": "relu",  # relu, gelu, silu, tanh or identity.
  "tower_norm": "none",  # none, layer or batch.
  "tower_dropout": 0.0,
}
# Parts that several have, each with units that MODELS sets.
_BOTTOM = {
  "bottom_hidden": (),  # Units of each hidden layer under the towers.
  "bottom_activation": "relu",
  "bottom_norm": "none",
  "bottom_dropout": 0.3,
}
_EXPERTS = {
  "expert_hidden": (16,),  # Units of each hidden layer of an expert.
  "expert_activation": "relu",
  "expert_norm": "none",
  "expert_dropout": 0.3,
}
_GATES = {"gate_hidden": ()}  # The papers' gates are linear.

# The settings of each model, at about the number of parameters of MMoE on the default tasks.
MODELS = {
  "single_task": _BOTTOM | {"bottom_hidden": (58,)},
  "shared_bottom": _BOTTOM | {"bottom_hidden": (132,)},
  "l2_constrained": _BOTTOM
  | {
    "bottom_hidden": (58,),
    "l2_strength": 1e-4,  # Of the sum over pairs of tasks of their parameters' squared distance.
  },
  "cross_stitch": _BOTTOM
  | {
    "bottom_hidden": (69,),
    "stitch_own": 0.9,  # Initial weight of a task's own units; the others share the rest.
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
    "gate_dropout": 0.0,  # Rate at which a gate loses an expert in training.
    "exclusivity": 0.0,  # Share of the experts that belong to one task each.
  },
  "cgc": _EXPERTS | _GATES | {"task_experts": 2, "shared_experts": 4},  # Experts of each task.
  "ple": _EXPERTS
  | _GATES
  | {
    "levels": 2,  # Of extraction.
    "task_experts": 2,
    "shared_experts": 3,
  },
  "aitm": _BOTTOM
  | {
    "bottom_hidden": (45,),
    # The paper has 0.6, for tasks which each imply the one before, as the default tasks do not.
    "calibrator_strength": 0.0,
  },
  "esmm": _BOTTOM | {"bottom_hidden": (69,)},
  "snr_trans": _EXPERTS
  | {
    "experts": 5,  # Sub-networks of each of two levels.
    "l0_strength": 1e-4,  # Of the number of open connections.
  },
  "dselect_k": _EXPERTS
  | {
    "experts": 8,
    "selectors": 2,  # At most as many experts a row and task in the end.
    "smoothness": 1.0,  # Width of the selectors' smooth step.
    "entropy_strength": 1e-3,  # What makes selectors decide.
  },
}

# What a run is for when it does not say. ESMM needs tasks which each imply the one before.
TASKS = dict.fromkeys(MODELS, ("income_50k", "marital_stat")) | {"esmm": ("education", "bachelors")}


def set_model(config: ConfigDict, **settings: object) -> None:
  """Sets those of the settings that the config's model has."""
  config.model.update({k: v for k, v in settings.items() if k in config.model})


def get_config(arg: str | None = None) -> ConfigDict:
  """Every key there is, once.

  Args:
    arg: `MODEL,tasks=A+B,protocol=P,weighting=W`, what changes many keys; each part may be left
      out.
  """
  arg = parse_arg(arg, model="mmoe", tasks=(), protocol="demo", weighting="static")
  require_known(arg["model"], MODELS, "config.model.name")
  require_known(arg["weighting"], WEIGHTINGS, "config argument 'weighting'")
  config = ConfigDict()
  config.seed = 0  # Of everything: initialisation, order of rows, dropout.
  config.data_dir = "data/census"  # What data preparation wrote.

  config.data = data = ConfigDict()
  # Of income_50k, marital_stat, education, …: data_prep/README.md has them all; from one up.
  data.tasks = arg["tasks"] or TASKS[arg["model"]]
  data.protocol = arg[
    "protocol"
  ]  # demo, or paper: neither education nor marital_stat is a feature.
  data.numeric = "both"  # standardize, bins, both, log_int or none; see data_prep/README.md.
  data.exclude = ()  # Further columns to leave out.
  data.crosses = ()  # Crossed features, such as ("sex#education",).

  # To change the name, give the argument: other models have other settings.
  config.model = ConfigDict({"name": arg["model"]} | _COMMON | MODELS[arg["model"]])

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
  config.train.memory_gib = 0.0  # Train rows that take more are streamed from disk; 0 for never.
  config.train.devices = 0  # How many to train on; 0 for all there are.

  config.select = ConfigDict()  # The epoch that is kept is the best on validation rows, by …
  config.select.metric = "auc"  # … auc or log_loss …
  config.select.tasks = ()  # … averaged over these tasks; empty means all.
  config.select.patience = 5  # Epochs without a better one before training stops; 0 for never.

  # What mmoe_jax/tune.py varies: keys, and from where to where (mmoe_jax/search_space.py).
  config.search = (
    ("optimizer.dense.learning_rate+optimizer.embedding.learning_rate", ("log", 1e-3, 2e-2)),
    ("model.embedding_dropout", ("uniform", 0.0, 0.4)),
    ("model.tower_dropout", ("uniform", 0.0, 0.4)),
  )

  config.checkpoint = ConfigDict()
  config.checkpoint.every_epochs = 1
  return config
