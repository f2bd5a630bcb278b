"""Trains one epoch and evaluates, without the training loop."""

from configs import smoke
from mmoe_jax import data
from mmoe_jax.evaluation import evaluate
from mmoe_jax.training import run


def train_one_epoch(data_dir: str) -> float:
  """Returns the validation AUC of a small model after one epoch."""
  config = smoke.get_config()
  config.data_dir = data_dir
  schema, splits = data.load(config.data_dir, **config.data)
  compiled = run.compile_run(config, schema, splits["train"])
  state, losses = compiled.train_epoch(compiled.state, 1)
  print("mean losses of the tasks:", losses.losses.mean(0))
  held_out = compiled.place(evaluate.make_eval_batch(splits["validation"]))
  metrics = compiled.evaluate(state.variables, held_out)
  return float(metrics["income_50k/auc"])
