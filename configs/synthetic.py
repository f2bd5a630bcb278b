"""Synthetic tasks of the paper at its sizes: 100 numbers, two regressions, no embeddings.

  python -m data_prep.synthetic --out data/synthetic --correlation 0.9 --seed 0
  python -m mmoe_jax.main --config configs/synthetic.py --workdir runs/synthetic

14,818 parameters. Expected mean squared error, mean of both tasks on test rows: 0.17, 0.15 and 0.15
for a correlation of 0.5, 0.9 and 1 (means of 200 runs; 90 % are within about 0.1). Labels are not
standardised: their variance is 1.19, the noise's 0.01. The paper's figure 4 has about 0.08 for
each, on an unknown scale.

The task correlation belongs to the data: prepare another folder for another one, and pass it as
--config.data_dir.

From Ma et al. (KDD 2018): 8 experts of one layer of 16, towers of one layer of 8, linear gates,
Adam with the best learning rate of 1e-4, 1e-3 and 1e-2. `synthetic.py:omoe` has one gate for both
tasks; `synthetic.py:shared_bottom` has a bottom of 113 units, for as many parameters as the experts
and towers (without the gates). Other models have the sizes of census.py. The paper gives neither
rows, batches nor steps: with 100,000 rows, batches of 256 and 12 epochs, 1,800 runs train in 45
minutes on two cores. On 30,000 rows models of this size overfit, Shared-Bottom most.
"""

from ml_collections import ConfigDict

from configs import census
from mmoe_jax.config import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns configs/census.py with the paper's synthetic tasks.

  Args:
    arg: `MODEL,lr=L,weighting=W` with Adam's learning rate and a task weighting; parts are
      optional.
  """
  arg = parse_arg(arg, model="mmoe", lr=1e-2, weighting="static")
  config = census.get_config(
    f"{arg['model']},tasks=task_1+task_2,protocol=none,weighting={arg['weighting']}"
  )
  config.data_dir = "data/synthetic"
  config.data.numeric = "standardize"  # These numbers have no transform.
  census.set_model(config, experts=8, expert_hidden=(16,), expert_dropout=0.0, bottom_dropout=0.0)
  if arg["model"] == "shared_bottom":
    config.model.bottom_hidden = (113,)
  for group in ("dense", "embedding"):
    config.optimizer[group].learning_rate = arg["lr"]
    config.optimizer[group].schedule = "constant"
  config.train.batch_size = 256
  config.train.epochs = 12
  config.train.average_decay = 0.0
  config.select.metric = "mse"
  config.select.patience = 0
  config.search = (("optimizer.dense.learning_rate", ("log", 1e-4, 1e-2)),)
  config.checkpoint.every_epochs = 10
  return config
