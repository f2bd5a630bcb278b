"""Learner: the pure functions of a run, built from its config and schema.

Every float of the config may be a traced scalar here, so that members of a population may differ
in it. Concrete settings are validated before, by checks.check_config.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax import data, models
from mmoe_jax.evaluation import evaluate, gate_statistics
from mmoe_jax.models.layers import is_enabled
from mmoe_jax.training import list_packing, losses, table_updates
from mmoe_jax.training.step import (
  State,
  TaskLosses,
  init_state,
  keep_best,
  make_train_epoch,
  make_train_step,
)
from mmoe_jax.training.task_weighting import create_task_weighting

Array = jax.Array


class Assessment(NamedTuple):
  """Measurements after an epoch.

  Attributes:
    metrics: metrics of the held-out rows by name, see evaluate.make_compute_metrics.
    gates: gate_statistics.statistics of the held-out rows; None for a model without gates.
    task_weights_T: weight of each task's loss in the next step.
    zero_rows: table -> number of rows that L1 set to zero, with row-wise updates.
    is_finite: whether the parameters, their average and the optimizer's state are.
  """

  metrics: dict[str, Array]
  gates: dict[str, Array] | None
  task_weights_T: Array
  zero_rows: Mapping[str, Array]
  is_finite: Array


class Learner(NamedTuple):
  """The pure functions of a run.

  Attributes:
    model: the model without a device axis, for initialising and evaluating.
    init: (key, features, variables to start from or None) -> State before the first step.
    epoch: (state, rows, key) -> (state, TaskLosses (S, T)), see make_train_epoch.
    assess: (state, held-out EvalBatch, epoch) -> (state, Assessment): evaluates the current
      variables and keeps the best.
    evaluate: (variables, EvalBatch) -> metrics by name.
  """

  model: models.Model | models.BatchEnsemble
  init: Callable[..., State]
  epoch: Callable[..., tuple[State, TaskLosses]]
  assess: Callable[[State, evaluate.EvalBatch, Array], tuple[State, Assessment]]
  evaluate: Callable[[Any, evaluate.EvalBatch], dict[str, Array]]


def create_learner(
  config: Any,
  schema: data.Schema,
  steps_per_epoch: int,
  devices: int = 1,
  axis_name: str | None = None,
  is_sharded: bool = False,
) -> Learner:
  """Creates the pure functions of a run.

  Args:
    config: settings as in configs/census.py, validated; its floats may be traced.
    schema: features and tasks of the run.
    steps_per_epoch: number of steps per epoch.
    devices: number of devices that share a batch.
    axis_name: name of their axis, if there are several.
    is_sharded: whether each device owns a range of the rows of every table.
  """
  tasks, decay = schema.tasks, config.train.average_decay
  model = models.create_model(config.model, schema, axis_name)
  # Initialised and evaluated on one device, so batch norm averages over no axis there.
  eval_model = models.create_model(config.model, schema)
  horizon = (steps_per_epoch, config.train.epochs)
  tables = table_updates.create_tables(config, schema, *horizon, devices, axis_name, is_sharded)
  tx = table_updates.create_dense_optimizer(config.optimizer, *horizon)
  weighting = create_task_weighting(
    config.loss.weighting,
    task_weights(config.loss.task_weights, len(tasks)),
    [task.kind for task in tasks],
    steps_per_epoch,
  )
  has_average = is_enabled(decay)
  loss_fn = losses.elementwise(tasks)
  if isinstance(model, models.BatchEnsemble):
    loss_fn = losses.mean_of_members(loss_fn)
  step = make_train_step(
    model,
    tx,
    weighting,
    loss_fn,
    decay if has_average else None,
    axis_name,
    tables,
  )
  predict = evaluate.make_predict_with_gates(eval_model)
  compute_metrics = evaluate.make_compute_metrics(tasks)

  def init(key: Array, features: Mapping[str, Any], variables: Any = None) -> State:
    settings = (eval_model, tx, weighting, features, has_average, tables)
    return init_state(key, *settings, variables=variables)

  def assess(state: State, held_out: evaluate.EvalBatch, epoch: Array) -> tuple[State, Assessment]:
    logits, gates_TxNxE = predict(state.variables, held_out.features)
    metrics = compute_metrics(logits, held_out)
    gates = None
    if gates_TxNxE is not None:
      gates = gate_statistics.statistics(gates_TxNxE, held_out.views[""])
    value = evaluate.selection(metrics, config.select, tasks)
    task_weights_T = weighting.weights(state.weighting)
    zero_rows = tables.count_zero_rows(state.params)
    assessment = Assessment(metrics, gates, task_weights_T, zero_rows, _is_finite(state))
    return keep_best(state, value, epoch), assessment

  return Learner(
    model=eval_model,
    init=init,
    epoch=make_train_epoch(
      step,
      config.train.batch_size,
      devices,
      axis_name,
      config.train.shuffle,
      list_packing.find_lists(schema),
    ),
    assess=assess,
    evaluate=evaluate.make_evaluate(eval_model, tasks),
  )


def _is_finite(state: State) -> Array:
  """Returns whether a state can be saved: rows that no metric reads may not be finite, either."""
  leaves = jax.tree.leaves((state.params, state.batch_stats, state.average, state.opt_state))
  floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
  return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


def task_weights(weights: Sequence[float] | Array, tasks: int) -> Array | np.ndarray:
  """Returns config.loss.task_weights as (T,) float32; 1 for each task if it is empty."""
  if isinstance(weights, Array):
    return weights
  return np.array(weights or (1.0,) * tasks, np.float32)
