"""Training: a step, an epoch as one compiled scan of it, and the rim that does I/O.

Shape letters: N rows, S steps of an epoch, B rows of a step on one device, T tasks.
"""

import functools
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmoe_jax import (
  checkpoint,
  data,
  evaluate,
  layers,
  logs,
  losses,
  models,
  optimizer,
  parallel,
  workdirs,
)
from mmoe_jax.errors import UserError, require, require_known
from mmoe_jax.shuffle import permutation

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
    best: what is evaluated in the end.
  """

  step: Array
  params: Any
  batch_stats: Any
  average: Any
  opt_state: Any
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
  features: Mapping[str, Any],
  averaged: bool,
) -> State:
  """The state before the first step. Pure, so that it can be mapped over keys.

  Args:
    key: the run's key.
    model: the model.
    tx: the optimizer.
    features: a batch, for its shapes.
    averaged: whether to keep a moving average of the parameters.
  """
  variables = model.init(fold_in(key, "init"), features)
  params, stats = variables["params"], variables.get("batch_stats", {})
  own = {"params": params, "batch_stats": stats}
  best = Best(own, jnp.float32(-jnp.inf), jnp.int32(0))
  average = own if averaged else ()
  return State(jnp.int32(0), params, stats, average, tx.init(params), best)


def make_train_step(
  model: models.Model,
  tx: optax.GradientTransformation,
  task_weights: Sequence[float],
  average_decay: float = 0.0,
  axis_name: str | None = None,
) -> Callable[[State, dict[str, Any], Array], tuple[State, Array]]:
  """Returns step(state, batch, key) -> (state, losses_T).

  The loss is sum over tasks of task_weight · weighted mean of the binary cross entropy over the
  rows that have the task's label.

  Args:
    model: the model.
    tx: the optimizer.
    task_weights: (T,) the weight of each task in the loss.
    average_decay: decay of the moving average of the parameters; 0 for none.
    axis_name: the device axis that the rows of a batch are spread over, if any.
  """
  weights_T = jnp.asarray(task_weights, jnp.float32)

  def step(state: State, batch: dict[str, Any], key: Array) -> tuple[State, Array]:
    def loss(params: Any) -> tuple[Array, tuple[Array, Any]]:
      logits_BxT, updated = model.apply(
        {"params": params, "batch_stats": state.batch_stats},
        batch["features"],
        train=True,
        rngs={"dropout": key},
        mutable=["batch_stats"],
      )
      loss_BxT = losses.binary_cross_entropy(logits_BxT, batch["labels"])
      weights_BxT = losses.label_weights(batch["labels"], batch["weights"])
      losses_T = losses.weighted_mean(loss_BxT, weights_BxT, axis_name)
      return losses_T @ weights_T, (losses_T, updated.get("batch_stats", {}))

    grads, (losses_T, stats) = jax.grad(loss, has_aux=True)(state.params)
    if axis_name is not None:
      grads, losses_T = jax.lax.pmean((grads, losses_T), axis_name)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average_decay:
      # Early on a short memory, so that the random start is soon forgotten.
      decay = jnp.minimum(average_decay, (1.0 + state.step) / (10.0 + state.step))
      own = {"params": params, "batch_stats": stats}
      average = optax.incremental_update(own, average, 1 - decay)
    return State(state.step + 1, params, stats, average, opt_state, state.best), losses_T

  return step


def make_train_epoch(
  step: Callable[[State, dict[str, Any], Array], tuple[State, Array]],
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
      return step(state, batch, fold_in(key, "dropout", state.step, shard))

    return jax.lax.scan(body, state, (rows_SxB, real_SxB))

  return epoch


@jax.jit
def keep_best(state: State, value: Array, epoch: Array) -> State:
  """Takes the current variables as the best ones if `value` is above the best so far."""
  better = value > state.best.value
  new = Best(state.variables, value, epoch)
  return state._replace(best=jax.tree.map(lambda a, b: jnp.where(better, a, b), new, state.best))


def train_and_evaluate(config: Any, workdir: str) -> dict[str, Any]:
  """Trains as the config says, then evaluates the best variables on every split.

  Started again in its work directory it goes on from the last checkpoint, and ends with the very
  parameters of a run that was never interrupted (bit for bit on a CPU).

  Args:
    config: as configs/census.py gives it.
    workdir: where config.json, schema.json, metrics.jsonl, TensorBoard events, checkpoints/ and
      results.json go.

  Returns:
    What results.json holds: per split the metrics by name, `best_epoch`, `epochs`,
    `rows_per_second`, `wall_seconds`, `parameters`, and `notes` on undefined metrics.

  Raises:
    UserError: for what the user can mend, and for a loss that is not finite.
  """
  start = time.perf_counter()
  schema, splits = data.load(config.data_dir, **config.data)
  tasks = [task.name for task in schema.tasks]
  run = _create_run(config, schema, splits["train"])
  if config.train.warm_start and not checkpoint.exists(workdir):
    run = run._replace(state=_warm_start(run.state, config.train.warm_start, schema))
  writes = parallel.is_first_host()
  with (
    workdirs.claim(workdir, config, schema, run.devices.count, writes),
    checkpoint.Checkpoints(workdir) as saver,
  ):
    state = saver.restore_state(run.state)
    state = run.state if state is None else state
    epoch = int(state.step) // run.steps_per_epoch
    measure = evaluate.make_evaluate(run.model, tasks)
    held_out = evaluate.place(evaluate.eval_arrays(splits["validation"], False), run.devices)
    with logs.RunLog(workdir, epoch, config.train.epochs, writes) as log:
      spent = log.records[-1].get("wall_seconds", 0.0) if log.records else 0.0
      while epoch < config.train.epochs and not _out_of_patience(state, epoch, config):
        epoch += 1
        began = time.perf_counter()
        state, losses_SxT = run.train_epoch(state, run.data, fold_in(run.key, "epoch", epoch))
        losses_SxT = jax.device_get(losses_SxT)
        seconds = time.perf_counter() - began
        _require_finite(losses_SxT, epoch, tasks)
        values, reasons = evaluate.report(jax.device_get(measure(state.variables, held_out)))
        _require_finite_output(reasons, epoch)
        value = _selection_value(values, reasons, config.select, tasks)
        state = keep_best(state, value, epoch)
        log.write(
          {"epoch": epoch, "loss": float(losses_SxT.mean(0) @ run.task_weights)}
          | {f"train/{t}/loss": float(x) for t, x in zip(tasks, losses_SxT.mean(0), strict=True)}
          | {f"validation/{name}": v for name, v in values.items()}
          | {"seconds": seconds, "rows_per_second": len(splits["train"]) / seconds}
          | {"wall_seconds": spent + time.perf_counter() - start}
        )
        if epoch % config.checkpoint.every_epochs == 0:
          saver.save(epoch, state, state.best.variables)
    saver.save(epoch, state, state.best.variables)
    results = {"notes": {}, "train_rows": len(splits["train"])}
    for name, split in splits.items():
      arrays = evaluate.place(evaluate.eval_arrays(split), run.devices)
      values, reasons = evaluate.report(jax.device_get(measure(state.best.variables, arrays)))
      results[name] = {k: None if math.isnan(v) else v for k, v in values.items()}
      results["notes"] |= {f"{name}/{k}": reason for k, reason in reasons.items()}
    results |= {
      "best_epoch": int(state.best.epoch),
      "epochs": epoch,
      "rows_per_second": float(
        np.median([r.get("rows_per_second", 0.0) for r in log.records] or [0.0])
      ),
      "wall_seconds": spent + time.perf_counter() - start,
      "parameters": layers.parameter_count(state.params),
    }
  if writes:
    workdirs.write_results(workdir, results)
  return results


class _Run(NamedTuple):
  """What a config builds: the compiled pieces of a run and the arrays on its devices."""

  model: models.Model
  state: State
  train_epoch: Callable[[State, Any, Array], tuple[State, Array]]
  data: dict[str, Any]
  key: Array
  task_weights: np.ndarray
  steps_per_epoch: int
  devices: parallel.Devices


def _create_run(config: Any, schema: data.Schema, split: data.Split) -> _Run:
  settings = config.train
  require(
    settings.batch_size >= 1, f"config.train.batch_size is {settings.batch_size}; must be >= 1"
  )
  require(
    settings.batch_size < 2**30, f"config.train.batch_size is {settings.batch_size}; too large"
  )
  require(0 <= config.seed < 2**32, f"config.seed is {config.seed}; must be from 0 to 2^32 - 1")
  require(settings.epochs >= 0, f"config.train.epochs is {settings.epochs}; must be at least 0")
  decay = settings.average_decay
  require(0 <= decay < 1, f"config.train.average_decay is {decay}; must be in [0, 1)")
  every = config.checkpoint.every_epochs
  require(every >= 1, f"config.checkpoint.every_epochs is {every}; must be at least 1")
  _check_selection(config.select, [t.name for t in schema.tasks])
  task_weights = _task_weights(config.loss.task_weights, schema)
  devices = parallel.Devices(parallel.device_count(settings.devices, settings.batch_size))
  model = models.create_model(config.model, schema, devices.axis_name)
  steps = math.ceil(len(split) / settings.batch_size)
  tx = optimizer.create_optimizer(config.optimizer, steps, settings.epochs)
  arrays = devices.replicate(
    {
      "features": split.features,
      "labels": split.labels,
      "weights": split.weights if config.loss.sample_weight else np.ones_like(split.weights),
    }
  )
  key = jax.random.key(config.seed)
  # Initialised without a device axis: batch norm has no other devices to ask here.
  plain = models.create_model(config.model, schema)
  init = functools.partial(init_state, model=plain, tx=tx, averaged=decay > 0)
  sample = {name: a[:1] for name, a in split.features.items()}
  state = devices.replicate(jax.jit(lambda key, sample: init(key, features=sample))(key, sample))
  step = make_train_step(model, tx, task_weights, decay, devices.axis_name)
  epoch = make_train_epoch(step, settings.batch_size, devices.count, settings.shuffle)
  compiled = devices.compile(epoch, state, arrays, key)
  return _Run(plain, state, compiled, arrays, key, task_weights, steps, devices)


def _warm_start(state: State, workdir: str, schema: data.Schema) -> State:
  other = workdirs.read_schema(workdir)
  for what in ("id_features", "numeric", "tasks"):
    require(
      getattr(other, what) == getattr(schema, what),
      f"config.train.warm_start: the run in {workdir} has other {what.replace('_', ' ')}",
    )
  with checkpoint.Checkpoints(workdir, read_only=True) as saver:
    variables = saver.restore_best(state.best.variables)
  require(variables is not None, f"config.train.warm_start: {workdir} holds no checkpoint")
  average = variables if state.average != () else ()
  # Copies, because training donates its state and each array may be given away only once.
  return jax.tree.map(
    jnp.copy,
    state._replace(
      params=variables["params"],
      batch_stats=variables["batch_stats"],
      average=average,
      best=state.best._replace(variables=variables),
    ),
  )


def _task_weights(wanted: Sequence[float], schema: data.Schema) -> np.ndarray:
  tasks = len(schema.tasks)
  require(
    len(wanted) in (0, tasks),
    f"config.loss.task_weights has {len(wanted)} numbers for {tasks} tasks; give one each, or none",
  )
  numbers = all(isinstance(w, int | float) and math.isfinite(w) for w in wanted)
  weights = np.array(wanted if wanted and numbers else [1.0] * tasks, np.float32)
  require(
    numbers and bool((weights >= 0).all() and weights.any()),
    f"config.loss.task_weights is {tuple(wanted)}; weights are numbers >= 0 and not all 0",
  )
  return weights


def _check_selection(select: Any, tasks: Sequence[str]) -> None:
  require_known(select.metric, [m for m in evaluate.METRICS if m != "pcoc"], "config.select.metric")
  for task in select.tasks:
    require_known(task, tasks, "a task in config.select.tasks")
  require(
    select.patience >= 0,
    f"config.select.patience is {select.patience}; must be at least 0 (0: never stop early)",
  )


def _selection_value(
  values: Mapping[str, float], reasons: Mapping[str, str], select: Any, tasks: Sequence[str]
) -> float:
  """The validation measure that picks the epoch, higher being better."""
  names = [f"{task}/{select.metric}" for task in select.tasks or tasks]
  for name in names:
    require(name not in reasons, f"validation {name} is undefined: {reasons.get(name)}")
  mean = float(np.mean([values[name] for name in names]))
  return -mean if select.metric in evaluate.LOWER_IS_BETTER else mean


def _out_of_patience(state: State, epoch: int, config: Any) -> bool:
  patience = config.select.patience
  return bool(patience) and epoch - int(state.best.epoch) >= patience


def _require_finite(losses_SxT: np.ndarray, epoch: int, tasks: Sequence[str]) -> None:
  bad = np.argwhere(~np.isfinite(losses_SxT))
  if len(bad):
    step, task = bad[0]
    raise UserError(
      f"the loss of task '{tasks[task]}' is not finite in epoch {epoch}, step {step + 1} of "
      f"{len(losses_SxT)}; {_REMEDY}"
    )


def _require_finite_output(reasons: Mapping[str, str], epoch: int) -> None:
  """The last step's update may be the one that breaks: no loss has seen it yet."""
  for name, reason in reasons.items():
    task = name.split("/")[0]
    require(
      reason != evaluate.NOT_FINITE,
      f"the output for task '{task}' is not finite after epoch {epoch}; {_REMEDY}",
    )


_REMEDY = (
  "lower config.optimizer.*.learning_rate or set config.optimizer.clip_norm. "
  "The last checkpoint is from before"
)
