"""The engine: what a config means, as pure functions of one member's state on one device.

A step, an epoch as a scan of steps, and the assessment after it. Members (seeds, settings) and
devices are mapped outside, by whoever calls. Any float of the config may be a traced scalar here,
so that members may differ in it.

Shape letters: N rows, S steps of an epoch, B rows of a step on one device, T tasks.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmoe_jax import data, evaluate, gates, losses, models, optimizer
from mmoe_jax.errors import require
from mmoe_jax.shuffle import permutation
from mmoe_jax.task_weighting import TaskWeighting, create_task_weighting

Array = jax.Array


class Best(NamedTuple):
  """The variables with the best validation measure so far, its value (higher is better), when."""

  variables: Any
  value: Array
  epoch: Array


class State(NamedTuple):
  """Everything that training carries from step to step.

  Attributes:
    step: steps taken.
    params: the trained parameters.
    batch_stats: running statistics of batch norm; empty without it.
    average: exponential moving average of `params` and `batch_stats`, as variables, evaluated in
      their place; () without.
    opt_state: the optimizer's.
    weighting: that of the task weighting; () where it has none.
    best: what is evaluated in the end.
  """

  step: Array
  params: Any
  batch_stats: Any
  average: Any
  opt_state: Any
  weighting: Any
  best: Best

  @property
  def variables(self) -> Any:
    """What the model is evaluated with."""
    own = {"params": self.params, "batch_stats": self.batch_stats}
    return own if self.average == () else self.average


def fold_in(key: Array, purpose: str, *numbers: int | Array) -> Array:
  """The random key of a named purpose at an epoch or step.

  Keys depend on what they are for and when, never on what was drawn before, so that a run which
  is resumed, or gains another use of randomness, draws the same.
  """
  key = jax.random.fold_in(key, zlib.crc32(purpose.encode()))
  for number in numbers:
    key = jax.random.fold_in(key, number)
  return key


def init_state(
  key: Array,
  model: models.Model,
  tx: optax.GradientTransformation,
  weighting: TaskWeighting,
  features: Mapping[str, Any],
  averaged: bool,
) -> State:
  """The state before the first step. Pure, so that it can be mapped over keys.

  Args:
    key: the run's key.
    model: the model.
    tx: the optimizer.
    weighting: how the tasks' losses become one gradient.
    features: a batch, for its shapes.
    averaged: whether to keep a moving average of the parameters.
  """
  variables = model.init(fold_in(key, "init"), features)
  params, stats = variables["params"], variables.get("batch_stats", {})
  own = {"params": params, "batch_stats": stats}
  best = Best(own, jnp.float32(-jnp.inf), jnp.int32(0))
  average = own if averaged else ()
  opt_state, weights = tx.init(params), weighting.init(params)
  return State(jnp.int32(0), params, stats, average, opt_state, weights, best)


def make_train_step(
  model: models.Model,
  tx: optax.GradientTransformation,
  weighting: TaskWeighting,
  loss_of: Callable[[Array, Array], Array],
  average_decay: float | Array | None = None,
  axis_name: str | None = None,
) -> Callable[..., tuple[State, Array]]:
  """Returns step(state, batch, key, shard=0) -> (state, losses_T).

  The loss of a task is the weighted mean of its elementwise loss over the rows that have its
  label. What the model sows into `losses` is added to them as it is.

  Args:
    model: the model.
    tx: the optimizer.
    weighting: how the tasks' losses become one gradient.
    loss_of: (logits_BxO, labels_BxT) -> loss_BxT, such as losses.elementwise gives.
    average_decay: decay of the moving average of the parameters; None for none.
    axis_name: the device axis that the rows of a batch are spread over, if any.
  """

  def step(
    state: State, batch: dict[str, Any], key: Array, shard: int | Array = 0
  ) -> tuple[State, Array]:
    def losses_of(params: Any) -> tuple[Array, tuple[Array, Any]]:
      logits_BxO, updated = model.apply(
        {"params": params, "batch_stats": state.batch_stats},
        batch["features"],
        train=True,
        rngs={"dropout": fold_in(key, "dropout", state.step, shard)},
        mutable=["batch_stats", "losses"],
      )
      loss_BxT = loss_of(logits_BxO, batch["labels"])
      weights_BxT = losses.label_weights(batch["labels"], batch["weights"])
      losses_T = losses.weighted_mean(loss_BxT, weights_BxT, axis_name)
      penalty = sum(jax.tree.leaves(updated.get("losses", {})), jnp.float32(0))
      return losses_T, (penalty, updated.get("batch_stats", {}))

    # The same key on all devices: they must agree on what is drawn of gradients.
    order = fold_in(key, "weighting", state.step)
    grads, losses_T, stats, weights = weighting.gradient(
      losses_of, state.params, state.weighting, order, axis_name
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average_decay is not None:
      # Early on a short memory, so that the random start is soon forgotten.
      decay = jnp.minimum(average_decay, (1.0 + state.step) / (10.0 + state.step))
      own = {"params": params, "batch_stats": stats}
      average = optax.incremental_update(own, average, 1 - decay)
    step = state.step + 1
    return State(step, params, stats, average, opt_state, weights, state.best), losses_T

  return step


def make_train_epoch(
  step: Callable[..., tuple[State, Array]],
  batch_size: int,
  devices: int = 1,
  shuffle: bool = True,
) -> Callable[[State, dict[str, Any], Array, Array], tuple[State, Array]]:
  """Returns epoch(state, arrays, key, shard) -> (state, losses_SxT): a scan of steps over all rows.

  Rows are shuffled by number on the device. The last batch is filled up with rows from the
  beginning of the order, at weight 0: no row is lost or counted twice in the loss, and shapes stay
  the same. Batch norm does see them, which are rows like any other, where zeros would mislead it.

  Args:
    step: one optimizer step, from `make_train_step`.
    batch_size: rows of a step over all devices.
    devices: how many devices share a batch; each takes its `shard` of it.
    shuffle: whether to draw a new order in each epoch.
  """
  share = batch_size // devices

  def epoch(state: State, arrays: dict[str, Any], key: Array, shard: Array) -> tuple[State, Array]:
    rows = len(arrays["labels"])
    steps = math.ceil(rows / batch_size)
    slots_SxB = shard * share + batch_size * jnp.arange(steps)[:, None] + jnp.arange(share)[None]
    order_N = permutation(fold_in(key, "shuffle"), rows) if shuffle else jnp.arange(rows)
    rows_SxB = order_N[slots_SxB % rows]
    real_SxB = slots_SxB < rows

    def body(state: State, slot: tuple[Array, Array]) -> tuple[State, Array]:
      rows_B, real_B = slot
      batch = jax.tree.map(lambda a: a[rows_B], arrays)
      batch["weights"] = batch["weights"] * real_B
      return step(state, batch, key, shard)

    return jax.lax.scan(body, state, (rows_SxB, real_SxB))

  return epoch


def keep_best(state: State, value: Array, epoch: Array) -> State:
  """Takes the current variables as the best ones if `value` is above the best so far."""
  better = value > state.best.value
  new = Best(state.variables, value, epoch)
  return state._replace(best=jax.tree.map(lambda a, b: jnp.where(better, a, b), new, state.best))


class Assessment(NamedTuple):
  """What is measured after an epoch.

  Attributes:
    metrics: of the held-out rows, by name, see evaluate.make_metrics.
    gates: gates.statistics of the held-out rows; None for a model without gates.
    weights_T: by which each task's loss is now multiplied.
  """

  metrics: dict[str, Array]
  gates: dict[str, Array] | None
  weights_T: Array


class Learner(NamedTuple):
  """What a config, a schema and a number of steps an epoch make.

  Attributes:
    model: the model, as it is evaluated.
    init: (key, features) -> State before the first step.
    epoch: (state, arrays, key, shard) -> (state, losses_SxT).
    assess: (state, held-out EvalArrays, epoch) -> (state, Assessment): measures what was learnt
      and keeps the best.
    measure: (variables, EvalArrays) -> metrics by name.
  """

  model: models.Model
  init: Callable[[Array, Mapping[str, Any]], State]
  epoch: Callable[[State, dict[str, Any], Array, Array], tuple[State, Array]]
  assess: Callable[[State, evaluate.EvalArrays, Array], tuple[State, Assessment]]
  measure: Callable[[Any, evaluate.EvalArrays], dict[str, Array]]


def create_learner(
  config: Any, schema: data.Schema, steps: int, devices: int = 1, axis_name: str | None = None
) -> Learner:
  """Builds the pure functions of a run.

  Args:
    config: as configs/census.py gives it, checked by `check_config`; its floats may be traced.
    schema: features and tasks of the run.
    steps: how many an epoch has.
    devices, axis_name: how many devices share a batch, and the name of their axis.

  Raises:
    UserError: for settings that no model, optimizer or task weighting could have.
  """
  settings, tasks = config.train, schema.tasks
  tx = optimizer.create_optimizer(config.optimizer, steps, settings.epochs)
  model = models.create_model(config.model, schema, axis_name)
  # Initialised and evaluated without a device axis: batch norm has no other devices to ask there.
  plain = models.create_model(config.model, schema)
  decay = settings.average_decay
  averaged = isinstance(decay, Array) or decay > 0
  weighting = create_task_weighting(
    config.loss.weighting,
    task_weights(config.loss.task_weights, len(tasks)),
    [task.kind for task in tasks],
    steps,
  )
  loss_of = losses.elementwise(tasks)
  step = make_train_step(model, tx, weighting, loss_of, decay if averaged else None, axis_name)
  predict, measure = evaluate.make_predict_with_gates(plain), evaluate.make_metrics(tasks)

  def assess(state: State, held_out: evaluate.EvalArrays, epoch: Array) -> tuple[State, Assessment]:
    logits, gates_TxNxE = predict(state.variables, held_out.features)
    named = measure(logits, held_out)
    seen = None if gates_TxNxE is None else gates.statistics(gates_TxNxE, held_out.views[""])
    value = evaluate.selection(named, config.select, tasks)
    weights_T = weighting.weights(state.weighting)
    return keep_best(state, value, epoch), Assessment(named, seen, weights_T)

  return Learner(
    plain,
    lambda key, features: init_state(key, plain, tx, weighting, features, averaged),
    make_train_epoch(step, settings.batch_size, devices, settings.shuffle),
    assess,
    evaluate.make_evaluate(plain, tasks),
  )


def steps_per_epoch(config: Any, rows: int) -> int:
  """How many steps an epoch over that many rows takes."""
  return math.ceil(rows / config.train.batch_size)


def train_arrays(split: data.Split, config: Any) -> dict[str, Any]:
  """Host arrays that an epoch trains on."""
  weights = split.weights if config.loss.sample_weight else np.ones_like(split.weights)
  return {"features": split.features, "labels": split.labels, "weights": weights}


def task_weights(wanted: Sequence[float] | Array, tasks: int) -> Array | np.ndarray:
  """(T,) float32: what the config says, or 1 for each task when it is empty."""
  return wanted if isinstance(wanted, Array) else np.array(wanted or (1.0,) * tasks, np.float32)


def check_config(config: Any, schema: data.Schema) -> None:
  """Raises UserError for settings of training, loss and selection that cannot be meant."""
  settings = config.train
  require(
    settings.batch_size >= 1, f"config.train.batch_size is {settings.batch_size}; must be >= 1"
  )
  require(
    settings.batch_size < 2**30, f"config.train.batch_size is {settings.batch_size}; too large"
  )
  require(0 <= config.seed < 2**32, f"config.seed is {config.seed}; must be from 0 to 2^32 - 1")
  require(settings.epochs >= 0, f"config.train.epochs is {settings.epochs}; must be at least 0")
  memory = settings.memory_gib
  require(memory >= 0, f"config.train.memory_gib is {memory}; must be at least 0 (0: no limit)")
  decay = settings.average_decay
  require(0 <= decay < 1, f"config.train.average_decay is {decay}; must be in [0, 1)")
  every = config.checkpoint.every_epochs
  require(every >= 1, f"config.checkpoint.every_epochs is {every}; must be at least 1")
  _check_task_weights(config.loss.task_weights, len(schema.tasks))
  select = config.select
  evaluate.check_selection(select, schema.tasks)
  require(
    select.patience >= 0,
    f"config.select.patience is {select.patience}; must be at least 0 (0: never stop early)",
  )


def check_labels(config: Any, schema: data.Schema, labels_NxT: np.ndarray) -> None:
  """Raises UserError where a model takes each task to imply the one before, and a row says no."""
  if not models.MODELS[config.model.name].chained:
    return
  names = [task.name for task in schema.tasks]
  for t in range(1, len(names)):
    against = int(((labels_NxT[:, t] == 1) & (labels_NxT[:, t - 1] == 0)).sum())
    require(
      not against,
      f"config.data.tasks: '{config.model.name}' needs tasks that each imply the one before, but "
      f"{against:,} train rows have '{names[t]}' without '{names[t - 1]}'; try "
      "('education', 'bachelors')",
    )


def _check_task_weights(wanted: Sequence[float], tasks: int) -> None:
  require(
    len(wanted) in (0, tasks),
    f"config.loss.task_weights has {len(wanted)} numbers for {tasks} tasks; give one each, or none",
  )
  numbers = all(isinstance(w, int | float) and math.isfinite(w) for w in wanted)
  require(
    numbers and all(w >= 0 for w in wanted) and (any(wanted) or not wanted),
    f"config.loss.task_weights is {tuple(wanted)}; weights are numbers >= 0 and not all 0",
  )
