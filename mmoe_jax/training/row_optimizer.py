"""Optimizers of table rows: each updates only the rows that a batch reads.

They take the rows' values and state as (N, …) arrays and return new ones; row_updates.py reads and
writes them. Their settings are those of their dense forms in optimizer.py.

Shape letters: V rows of a table, D its width, N rows that are updated.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmoe_jax.models.kernels import scramble
from mmoe_jax.models.layers import is_enabled
from mmoe_jax.training.optimizer import create_group_schedule, ftrl_init, ftrl_weights

Array = jax.Array
State = dict[str, Array]


class RowOptimizer(NamedTuple):
  """Optimizer of table rows as pure functions.

  Attributes:
    init: table (V, D) -> its state, arrays (V, …).
    update: (gradients (N, D), rows (N, D), their state (N, …), step) -> (rows, state). Rows with a
      gradient of 0 stay as they are, except by lazy Adam.
    has_l1: whether a penalty sets rows to zero.
  """

  init: Callable[[Array], State]
  update: Callable[[Array, Array, State, Array], tuple[Array, State]]
  has_l1: bool = False


Schedule = Callable[[Array], Array]


def sgd(schedule: Schedule) -> RowOptimizer:
  """Creates stochastic gradient descent; equal to its dense form.

  Momentum is not supported: its dense form moves every row in every step.
  """
  return RowOptimizer(
    init=lambda table_VxD: {},
    update=lambda grads_NxD, rows_NxD, state, step: (rows_NxD - schedule(step) * grads_NxD, {}),
  )


def adagrad(schedule: Schedule, initial: float = 0.1, eps: float = 1e-7) -> RowOptimizer:
  """Creates Adagrad, with an accumulator for every coordinate; equal to its dense form.

  n ← n + g²,  w ← w − rate · g / sqrt(n + eps).

  Args:
    schedule: learning rate by step.
    initial: initial n.
    eps: keeps the quotient finite.

  References:
    Duchi, Hazan, Singer: Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization. JMLR 12, 2011.
  """

  def update(grads_NxD: Array, rows_NxD: Array, state: State, step: Array) -> tuple[Array, State]:
    sums_NxD = state["squares"] + grads_NxD**2
    scale_NxD = jnp.where(sums_NxD > 0, jax.lax.rsqrt(sums_NxD + eps), 0.0)
    return rows_NxD - schedule(step) * grads_NxD * scale_NxD, {"squares": sums_NxD}

  return RowOptimizer(lambda table: {"squares": jnp.full(table.shape, initial)}, update)


def rowwise_adagrad(schedule: Schedule, initial: float = 0.0, eps: float = 1e-8) -> RowOptimizer:
  """Creates Adagrad with one accumulator per row: the mean of its coordinates' squares.

  n ← n + mean over d of g_d²,  w ← w − rate · g / (sqrt(n) + eps). It has no dense form here. Its
  state is 1 / D of Adagrad's. Gradients of the mean loss of a batch are small for a row that occurs
  once; so n starts at 0, where Adagrad's usual 0.1 would outweigh them for long.

  Args:
    schedule: learning rate by step.
    initial: initial n.
    eps: keeps the quotient finite.

  References:
    Mudigere et al.: Software-Hardware Co-design for Fast and Scalable Training of Deep Learning
    Recommendation Models. ISCA 2022, section 4.1.4. https://arxiv.org/abs/2104.05158
  """

  def update(grads_NxD: Array, rows_NxD: Array, state: State, step: Array) -> tuple[Array, State]:
    sums_N = state["squares"] + (grads_NxD**2).mean(1)
    # A row whose gradient was always 0 stays, also without eps.
    scale_N = jnp.where(sums_N > 0, schedule(step) / (jnp.sqrt(sums_N) + eps), 0.0)
    return rows_NxD - grads_NxD * scale_N[:, None], {"squares": sums_N}

  def init(table_VxD: Array) -> State:
    return {"squares": jnp.full(table_VxD.shape[0], initial, jnp.float32)}

  return RowOptimizer(init, update)


def lazy_adam(
  schedule: Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> RowOptimizer:
  """Creates Adam whose moments decay only in steps that read a row.

  m ← b1 m + (1 − b1) g,  v ← b2 v + (1 − b2) g²,
  w ← w − rate · (m / (1 − b1^t)) / (sqrt(v / (1 − b2^t)) + eps), t the number of all steps.

  Its dense form decays the moments of every row in every step, and so moves also rows that a batch
  does not read. A rare row gets larger steps from the lazy form.

  Args:
    schedule: learning rate by step.
    b1: decay of m.
    b2: decay of v.
    eps: keeps the quotient finite.

  References:
    Kingma, Ba: Adam: A Method for Stochastic Optimization. ICLR 2015. https://arxiv.org/abs/1412.6980
  """

  def update(grads_NxD: Array, rows_NxD: Array, state: State, step: Array) -> tuple[Array, State]:
    means_NxD = b1 * state["means"] + (1 - b1) * grads_NxD
    squares_NxD = b2 * state["squares"] + (1 - b2) * grads_NxD**2
    count = step + 1
    mean_NxD = means_NxD / (1 - jnp.float32(b1) ** count)
    square_NxD = squares_NxD / (1 - jnp.float32(b2) ** count)
    moved_NxD = rows_NxD - schedule(step) * mean_NxD / (jnp.sqrt(square_NxD) + eps)
    return moved_NxD, {"means": means_NxD, "squares": squares_NxD}

  return RowOptimizer(
    lambda table: {"means": jnp.zeros(table.shape), "squares": jnp.zeros(table.shape)}, update
  )


def ftrl(
  learning_rate: float = 0.5, beta: float = 1.0, l1: float = 0.0, l2: float = 0.0
) -> RowOptimizer:
  """Creates FTRL-proximal, see optimizer.ftrl; equal to its dense form.

  A row all of whose coordinates have |z| <= l1 is zero: L1 removes features that are rare or
  useless.
  """

  def update(grads_NxD: Array, rows_NxD: Array, state: State, step: Array) -> tuple[Array, State]:
    del step
    n = state["n"] + grads_NxD**2
    shift = (jnp.sqrt(n) - jnp.sqrt(state["n"])) / learning_rate
    z = state["z"] + grads_NxD - shift * rows_NxD
    return ftrl_weights(z, n, learning_rate, beta, l1, l2), {"z": z, "n": n}

  def init(table_VxD: Array) -> State:
    return {
      "z": ftrl_init(table_VxD.astype(jnp.float32), learning_rate, beta, l1, l2),
      "n": jnp.zeros(table_VxD.shape),
    }

  return RowOptimizer(init, update, has_l1=l1 > 0)


_OF_NAME: dict[str, Callable[..., RowOptimizer]] = {
  "sgd": sgd,
  "adagrad": adagrad,
  "rowwise_adagrad": rowwise_adagrad,
  "adam": lazy_adam,
}


def create_row_optimizer(
  settings: Mapping[str, Any], steps_per_epoch: int, epochs: int
) -> RowOptimizer:
  """Creates the optimizer of table rows.

  Args:
    settings: config.optimizer.embedding, validated by checks.check_optimizer: those of its dense
      form, without weight decay and momentum.
    steps_per_epoch: number of steps per epoch, for schedules.
    epochs: number of epochs, for schedules.
  """
  arguments = {k: v for k, v in settings.items() if k not in ("name", "updates")}
  if settings["name"] == "ftrl":
    return ftrl(**arguments)
  schedule = create_group_schedule(arguments, steps_per_epoch, epochs)
  for key in ("learning_rate", "weight_decay", "schedule", "warmup_epochs", "momentum"):
    arguments.pop(key, None)
  return _OF_NAME[settings["name"]](schedule, **arguments)


def find_unsupported(settings: Mapping[str, Any]) -> str | None:
  """Returns the setting of config.optimizer.embedding that excludes row-wise updates, and why."""
  for key in ("weight_decay", "momentum"):
    if is_enabled(settings.get(key, 0.0)):
      return f"{key} = {settings[key]}: changes every row of a table in every step"
  return None


def round_at_random(values_NxD: Array, rows_N: Array, step: Array) -> Array:
  """Rounds float32 to bfloat16, up or down with probabilities that keep the mean.

  To the nearest, most updates would be lost: bfloat16 has 8 bits, and an update is often less than
  1/256 of its number (Zhang et al., Training with Low-Precision Embedding Tables, 2018).

  Args:
    values_NxD: finite numbers; those of bfloat16 stay as they are.
    rows_N: their rows in the table, from which the random bits are hashed.
    step: number of steps taken before.
  """
  column_D = jnp.arange(values_NxD.shape[1], dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
  seed_N = scramble(scramble(rows_N.astype(jnp.uint32)) ^ step.astype(jnp.uint32))
  random_NxD = scramble(seed_N[:, None] + column_D[None, :]) >> 16
  # Adding to the bits moves away from zero, so both signs are rounded alike.
  bits_NxD = jax.lax.bitcast_convert_type(values_NxD, jnp.uint32) + random_NxD
  rounded = jax.lax.bitcast_convert_type(bits_NxD & jnp.uint32(0xFFFF0000), jnp.float32)
  return rounded.astype(jnp.bfloat16)
