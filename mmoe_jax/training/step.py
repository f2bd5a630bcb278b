"""Training step and epoch: pure functions of one run on one device.

    step  --lax.scan-->  epoch

Everything else is mapped from outside: members of a population (`vmap` or one after another) and
devices that share a batch (`pmap`, which gives the axis its name).

Shape letters: N train rows, S steps per epoch, B rows of a step on one device, T tasks, O outputs
of all tasks.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mmoe_jax.models import Model
from mmoe_jax.training import losses
from mmoe_jax.training.list_packing import ListColumns, pack_lists
from mmoe_jax.training.row_updates import DENSE_TABLES, DenseTables, RowWiseTables, Trained
from mmoe_jax.training.shuffle import permutation
from mmoe_jax.training.task_weighting import TaskWeighting

Array = jax.Array
Tables = DenseTables | RowWiseTables


class Batch(NamedTuple):
  """Rows to train on: those of one step, or all that an epoch scans over.

  Attributes:
    features: `ids` (B, F) unsigned integers and `numeric` (B, D) float32.
    labels: (B, T) float32, NaN where missing.
    weights: (B,) float32; 0 for rows that only fill up a batch.
  """

  features: Mapping[str, Any]
  labels: Any
  weights: Any


@flax.struct.dataclass
class DrawnRows:
  """Train rows that no array holds: every step draws new ones on the device.

  Attributes:
    arguments: arrays of their distribution, such as a member's own.
    draw: (arguments, key, number of rows) -> Batch, a pure function.
    count: rows per epoch.
  """

  arguments: Any
  draw: Callable[[Any, Array, int], Batch] = flax.struct.field(pytree_node=False)
  count: int = flax.struct.field(pytree_node=False)

  def __len__(self) -> int:
    """Returns the number of rows per epoch."""
    return self.count


class TaskLosses(NamedTuple):
  """Losses of one step, (T,), or of each step of an epoch, (S, T).

  Attributes:
    losses: weighted mean loss of each task; 0 for a task without a labelled row.
    weights: sum of the row weights of each task's labelled rows.
  """

  losses: Array
  weights: Array


@flax.struct.dataclass
class Best:
  """Variables with the best validation metric so far.

  Attributes:
    variables: the model's variables; with row-wise updates those without tables.
    value: their metric; higher is better.
    epoch: the epoch that they are from.
  """

  variables: Any
  value: Array
  epoch: Array


@flax.struct.dataclass
class State:
  """Everything that training carries from one step to the next.

  Attributes:
    step: number of steps taken.
    params: trained parameters.
    batch_stats: running statistics of batch norm; empty without it.
    average: exponential moving average of `params` and `batch_stats`, which is evaluated in their
      place; () if there is none. With row-wise updates it has no tables.
    opt_state: state of the optimizer; a RowState with row-wise updates.
    weighting: state of the task weighting; () if it has none.
    best: variables that are evaluated at the end.
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
    """Variables that the model is evaluated with."""
    if self.average == ():
      return {"params": self.params, "batch_stats": self.batch_stats}
    # Parameters without an average, tables with row-wise updates, are the current ones.
    return {**self.average, "params": {**self.params, **self.average["params"]}}


def fold_in(key: Array, purpose: str, *numbers: int | Array) -> Array:
  """Returns the random key of a named purpose at an epoch or step.

  Keys depend on their purpose and time and not on earlier draws, so that a resumed run draws the
  same numbers.
  """
  key = jax.random.fold_in(key, zlib.crc32(purpose.encode()))
  for number in numbers:
    key = jax.random.fold_in(key, number)
  return key


def init_state(
  key: Array,
  model: Model,
  tx: optax.GradientTransformation,
  weighting: TaskWeighting,
  features: Mapping[str, Any],
  has_average: bool,
  tables: Tables = DENSE_TABLES,
  variables: Any = None,
) -> State:
  """Initialises the state before the first step. Pure, so that it can be mapped over keys.

  Args:
    key: random key of the run.
    model: the model.
    tx: the optimizer.
    weighting: the task weighting.
    features: a batch of features, for its shapes.
    has_average: whether to keep a moving average of the parameters.
    tables: how embedding tables are trained.
    variables: variables to start from; None for random ones.
  """
  if variables is None:
    variables = model.init(fold_in(key, "init"), tables.with_vectors(features))
  dense, given = tables.split(variables["params"])
  batch_stats = variables.get("batch_stats", {})
  current = {"params": dense, "batch_stats": batch_stats}
  params, opt_state = tables.init(fold_in(key, "tables"), dense, tx.init(dense), given)
  return State(
    step=jnp.int32(0),
    params=params,
    batch_stats=batch_stats,
    average=current if has_average else (),
    opt_state=opt_state,
    weighting=weighting.init(dense),
    best=Best(variables=current, value=jnp.float32(-jnp.inf), epoch=jnp.int32(0)),
  )


def make_train_step(
  model: Model,
  tx: optax.GradientTransformation,
  weighting: TaskWeighting,
  loss_fn: Callable[[Array, Array], Array],
  average_decay: float | Array | None = None,
  axis_name: str | None = None,
  tables: Tables = DENSE_TABLES,
) -> Callable[[State, Batch, Array], tuple[State, TaskLosses]]:
  """Returns step(state, batch, key) -> (state, TaskLosses).

  The loss of a task is the weighted mean of its elementwise loss over the rows that have its
  label. Penalties that the model sows into `losses` are added to the weighted sum of the tasks'
  losses, see losses.penalty.

  Args:
    model: the model.
    tx: the optimizer.
    weighting: the task weighting, which turns the tasks' losses into one gradient.
    loss_fn: (logits_BxO, labels_BxT) -> loss_BxT, see losses.elementwise.
    average_decay: decay of the moving average of the parameters; None for no average.
    axis_name: device axis that the rows of a batch are sharded over, if any.
    tables: how embedding tables are trained.
  """
  mean_over_devices = lambda tree: tree if axis_name is None else jax.lax.pmean(tree, axis_name)
  sum_over_devices = lambda tree: tree if axis_name is None else jax.lax.psum(tree, axis_name)

  def step(state: State, batch: Batch, key: Array) -> tuple[State, TaskLosses]:
    # The same on all devices: models draw by a row's place in the batch. 0 keeps earlier draws.
    dropout_key = fold_in(key, "dropout", state.step, 0)
    rngs = {"dropout": dropout_key, "shared": fold_in(key, "shared", state.step)}
    weights_BxT = losses.label_weights(batch.labels, batch.weights)
    label_weights_T = sum_over_devices(weights_BxT.sum(0))
    rows, opt_state = tables.locate(state.opt_state, batch.features, batch.weights)

    def task_losses(trained: Trained) -> tuple[Array, tuple[Array, Any]]:
      logits_BxO, updates = model.apply(
        {"params": trained.params, "batch_stats": state.batch_stats},
        {**batch.features, "vectors": trained.vectors},
        train=True,
        rngs=rngs,
        mutable=["batch_stats", "losses"],
      )
      loss_BxT = loss_fn(logits_BxO, batch.labels)
      losses_T = losses.weighted_mean(loss_BxT, weights_BxT, axis_name)
      penalty = losses.penalty(updates.get("losses", {}), batch.weights, axis_name)
      return losses_T, (penalty, updates.get("batch_stats", {}))

    def total_loss(trained: Trained) -> tuple[Array, tuple[Array, Any]]:
      losses_T, (penalty, batch_stats) = task_losses(trained)
      return losses_T @ weighting.weights(state.weighting) + penalty, (losses_T, batch_stats)

    def over_devices(grads: Trained) -> Trained:
      return Trained(mean_over_devices(grads.params), tables.sum_equal(grads.vectors, rows))

    trained = tables.read(state.params, rows)
    if weighting.combine is None:
      grad_fn = jax.value_and_grad(total_loss, has_aux=True)
      (_, (losses_T, batch_stats)), grads = grad_fn(trained)
      grads, losses_T = over_devices(grads), mean_over_devices(losses_T)
      weighting_state = weighting.update(state.weighting, losses_T, label_weights_T)
    else:
      task_grads, penalty_grads, losses_T, batch_stats = _grads_by_task(task_losses, trained)
      task_grads, penalty_grads = jax.vmap(over_devices)(task_grads), over_devices(penalty_grads)
      losses_T = mean_over_devices(losses_T)
      # Same key on all devices, so that PCGrad's task order matches.
      order_key = fold_in(key, "weighting", state.step)
      grads, weighting_state = weighting.combine(
        task_grads, losses_T, label_weights_T, state.weighting, order_key
      )
      grads = jax.tree.map(jnp.add, grads, penalty_grads)

    params, opt_state = tables.update(tx, state.params, opt_state, trained, grads, rows, state.step)
    current = {"params": params, "batch_stats": batch_stats}
    average = _update_average(state.average, current, average_decay, state.step)
    new_state = state.replace(step=state.step + 1, params=params, batch_stats=batch_stats)
    new_state = new_state.replace(average=average, opt_state=opt_state, weighting=weighting_state)
    return new_state, TaskLosses(losses_T, label_weights_T)

  return step


def _update_average(average: Any, current: Any, decay: float | Array | None, step: Array) -> Any:
  """Moves the average of the variables towards the current ones, unless there is no decay."""
  if decay is None:
    return average
  # A short memory at first, so that the average soon leaves the random start.
  decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  current = {**current, "params": _parts_of(average["params"], current["params"])}
  return optax.incremental_update(current, average, 1 - decay)


def _parts_of(like: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the parts of the parameters that `like` has, too: without tables, if it has none."""
  return {name: params[name] for name in like}


def _grads_by_task(
  task_losses: Callable[[Trained], tuple[Array, tuple[Array, Any]]], trained: Trained
) -> tuple[Any, Any, Array, Any]:
  """Returns each task's gradient (T, …), the penalty's gradient, losses_T and batch statistics.

  One forward pass serves all tasks. The penalty has a separate gradient; the compiler merges its
  forward pass with the first.
  """

  def without_penalty(trained: Trained) -> tuple[Array, Any]:
    losses_T, (_, batch_stats) = task_losses(trained)
    return losses_T, batch_stats

  losses_T, pull_back, batch_stats = jax.vjp(without_penalty, trained, has_aux=True)
  (task_grads,) = jax.vmap(pull_back)(jnp.eye(len(losses_T)))
  penalty_grads = jax.grad(lambda t: jnp.asarray(task_losses(t)[1][0], jnp.float32))(trained)
  return task_grads, penalty_grads, losses_T, batch_stats


def make_train_epoch(
  step: Callable[[State, Batch, Array], tuple[State, TaskLosses]],
  batch_size: int,
  devices: int = 1,
  axis_name: str | None = None,
  shuffle: bool = True,
  lists: Sequence[ListColumns] = (),
) -> Callable[..., tuple[State, TaskLosses]]:
  """Returns epoch(state, rows, key) -> (state, TaskLosses): a scan of steps over all rows.

  Further arguments: `capacities` has the places of each list, see list_packing; by default lists
  are padded. With `first` and `steps` it takes these steps of the same epoch, from number `first`,
  so that an epoch can be several calls.

  Row numbers are shuffled on the device. The last batch is filled up with rows from the beginning
  of the order, at weight 0: every row counts once in the loss, and shapes stay the same. Batch
  norm includes the filler rows, which are real rows, where zeros would distort it. `rows` may also
  be DrawnRows, of which each step draws a batch by a key of its place in the epoch.

  Args:
    step: a training step, see `make_train_step`.
    batch_size: rows of a step over all devices.
    devices: number of devices that share a batch.
    axis_name: their axis, if there are several.
    shuffle: whether to draw a new order in each epoch.
    lists: the list features.
  """
  share = batch_size // devices

  def epoch(
    state: State,
    rows: Batch | DrawnRows,
    key: Array,
    capacities: Sequence[int] = (),
    first: int | Array = 0,
    steps: int | None = None,
  ) -> tuple[State, TaskLosses]:
    is_drawn = isinstance(rows, DrawnRows)
    count = rows.count if is_drawn else rows.labels.shape[0]
    steps = math.ceil(count / batch_size) if steps is None else steps
    shard = 0 if axis_name is None else jax.lax.axis_index(axis_name)
    steps_S = first + jnp.arange(steps)
    slots_SxB = shard * share + batch_size * steps_S[:, None] + jnp.arange(share)[None]
    rows_SxB = slots_SxB if is_drawn else order_rows(key, count, shuffle, slots_SxB % count)
    is_real_SxB = slots_SxB < count

    def body(state: State, slots: tuple[Array, Array]) -> tuple[State, TaskLosses]:
      rows_B, is_real_B = slots
      if is_drawn:
        batch = rows.draw(rows.arguments, fold_in(key, "rows", rows_B[0]), share)
      else:
        batch = jax.tree.map(lambda a: a[rows_B], rows)
      features = pack_lists(batch.features, lists, capacities)
      weights = batch.weights * is_real_B
      return step(state, batch._replace(features=features, weights=weights), key)

    return jax.lax.scan(body, state, (rows_SxB, is_real_SxB))

  return epoch


def order_rows(key: Array, count: int, shuffle: bool, places: Array | None = None) -> Array:
  """Returns the numbers of `count` rows in the order of an epoch with this key.

  Args:
    key: key of the epoch.
    count: number of rows.
    shuffle: whether the order is random.
    places: places of the order, of any shape; None for all.
  """
  if shuffle:
    return permutation(fold_in(key, "shuffle"), count, places)
  return jnp.arange(count) if places is None else places


def keep_best(state: State, value: Array, epoch: Array) -> State:
  """Makes the current variables the best ones if `value` is above the best so far."""
  is_better = value > state.best.value
  current, kept = state.variables, state.best.variables
  variables = {**current, "params": _parts_of(kept["params"], current["params"])}
  new = Best(variables=variables, value=value, epoch=epoch)
  return state.replace(best=jax.tree.map(lambda a, b: jnp.where(is_better, a, b), new, state.best))
