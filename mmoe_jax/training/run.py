"""Compiled run: what the training loop, tests and benchmarks call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from mmoe_jax import data, parallel
from mmoe_jax.evaluation import evaluate
from mmoe_jax.training import checks, train_rows
from mmoe_jax.training.learner import Assessment, Learner, create_learner
from mmoe_jax.training.step import State, TaskLosses, fold_in

Array = jax.Array


class Run(NamedTuple):
  """Compiled functions of a run, its initial state and its train rows.

  Attributes:
    state: state before the first step, on the devices. Training donates it.
    train_epoch: (state, epoch) -> (state, TaskLosses (S, T) on the host).
    assess: (state, held-out EvalBatch, epoch) -> (state, Assessment).
    evaluate: (variables, EvalBatch) -> metrics by name.
    learner: the pure functions that were compiled.
    rows: train rows.
    devices: devices of the run.
  """

  state: State
  train_epoch: Callable[[State, int], tuple[State, TaskLosses]]
  assess: Callable[[State, evaluate.EvalBatch, Any], tuple[State, Assessment]]
  evaluate: Callable[[Any, evaluate.EvalBatch], dict[str, Array]]
  learner: Learner
  rows: train_rows.Resident | train_rows.Streamed
  devices: parallel.Devices


def compile_run(config: Any, schema: data.Schema, split: data.Split | data.StoredSplit) -> Run:
  """Validates the settings, places the train rows and compiles the functions of a run.

  Args:
    config: settings as in configs/census.py.
    schema: features and tasks of the run.
    split: train rows, as data.load gives them.

  Raises:
    UserError: for impossible settings, or labels that do not fit the model.
  """
  checks.check_config(config, schema)
  devices = parallel.Devices(parallel.device_count(config.train.devices, config.train.batch_size))
  rows = train_rows.create_train_rows(split, schema, config, devices)
  checks.check_labels(config, schema, rows.sample.labels)
  learner = create_learner(config, schema, rows.steps, devices.count, devices.axis_name)
  key = jax.random.key(config.seed)
  one_row = {name: a[:1] for name, a in rows.sample.features.items()}
  state = devices.replicate(parallel.jit_once(learner.init)(key, one_row))
  # One program for each size of block: a streamed epoch ends with a shorter one.
  train_block = {
    len(shape.weights): devices.compile(learner.epoch, state, shape, key) for shape in rows.shapes
  }

  def train_epoch(state: State, epoch: int) -> tuple[State, TaskLosses]:
    losses = []
    for block, batch in rows.blocks(epoch):
      block_key = fold_in(key, "epoch", epoch, *block)
      state, block_losses = train_block[len(batch.weights)](state, batch, block_key)
      losses.append(jax.device_get(block_losses))
    return state, jax.tree.map(lambda *a: np.concatenate(a), *losses)

  return Run(
    state=state,
    train_epoch=train_epoch,
    assess=parallel.jit(learner.assess),
    evaluate=parallel.jit(learner.evaluate),
    learner=learner,
    rows=rows,
    devices=devices,
  )
