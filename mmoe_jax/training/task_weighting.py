"""Task weighting: how the losses of several tasks become one gradient.

Most methods minimise sum over k of w_k L_k + penalty and give the weights w before the backward
pass. GradNorm and PCGrad need one gradient per task and combine these after it.
States have fixed shapes and dtypes, so that they can be scanned over steps and mapped over members.

A task without a label in a batch has no loss there, not a loss of 0: its state stays as it is, and
it is left out of means over tasks.

Shape letters: T tasks.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


class TaskWeighting(NamedTuple):
  """Task weighting as pure functions.

  Attributes:
    init: params -> state, a tree of arrays; () if the method has no state.
    weights: state -> task_weights_T, the weight of each loss in the next step.
    update: (state, losses_T, label_weights_T) -> state after a step. `label_weights_T` is the sum
      of the row weights of each task's labelled rows in that step. All are the same on all devices.
    combine: None where `weights` is all that a gradient needs. Otherwise (task_grads, losses_T,
      label_weights_T, state, key) -> (grads, state), with the gradients of L_k stacked on a
      leading axis (T, …).
  """

  init: Callable[[Any], Any]
  weights: Callable[[Any], Array]
  update: Callable[[Any, Array, Array], Any]
  combine: Callable[[Any, Array, Array, Any, Array], tuple[Any, Any]] | None = None


def create_task_weighting(
  settings: Mapping[str, Any],
  base_weights: Sequence[float] | Array,
  kinds: Sequence[str],
  steps_per_epoch: int,
) -> TaskWeighting:
  """Creates the task weighting of a run.

  Args:
    settings: config.loss.weighting, see checks.check_task_weighting: `name`, a key of METHODS, and
      the arguments of its function.
    base_weights: (T,) factors of the losses, in every method.
    kinds: (T,) kind of each task: binary, multiclass or regression.
    steps_per_epoch: number of steps per epoch.
  """
  arguments = {key: value for key, value in settings.items() if key != "name"}
  method, _ = METHODS[settings["name"]]
  base_T = jnp.asarray(base_weights, jnp.float32)
  return method(base_T, tuple(kinds), steps_per_epoch, **arguments)


def static(base_T: Array, kinds: tuple[str, ...], steps_per_epoch: int) -> TaskWeighting:
  """Weights tasks by the constants of the config."""
  del kinds, steps_per_epoch
  return TaskWeighting(
    init=lambda params: (),
    weights=lambda state: base_T,
    update=lambda state, losses_T, label_weights_T: state,
  )


class UncertaintyState(NamedTuple):
  """State of `uncertainty`.

  Attributes:
    log_variances: (T,) s_k = log σ_k².
    opt_state: their optimizer's, (T, …).
  """

  log_variances: Array
  opt_state: Any


def uncertainty(
  base_T: Array,
  kinds: tuple[str, ...],
  steps_per_epoch: int,
  learning_rate: float | Array,
) -> TaskWeighting:
  """Weights tasks by homoscedastic uncertainty.

  Minimises sum over k of c_k exp(−s_k) L_k + s_k / 2 with trained s_k = log σ_k². c_k is 1/2 for
  regression, whose loss is a squared error (equation 7), and 1 for classification (equation 10).
  s starts at 0 and is trained by Adam.

  Args:
    base_T: factors of the losses.
    kinds: kind of each task.
    steps_per_epoch: not used.
    learning_rate: learning rate of s.

  References:
    Kendall, Gal, Cipolla: Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry
    and Semantics. CVPR 2018. https://arxiv.org/abs/1705.07115
  """
  del steps_per_epoch
  factors_T = jnp.array([0.5 if kind == "regression" else 1.0 for kind in kinds], jnp.float32)
  tx = optax.adam(learning_rate)

  def init(params: Any) -> UncertaintyState:
    del params
    start_T = jnp.zeros(len(base_T), jnp.float32)
    return UncertaintyState(start_T, jax.vmap(tx.init)(start_T))

  def weights(state: UncertaintyState) -> Array:
    return base_T * factors_T * jnp.exp(-state.log_variances)

  def update(state: UncertaintyState, losses_T: Array, label_weights_T: Array) -> UncertaintyState:
    slopes_T = 0.5 - weights(state) * losses_T
    updates_T, opt_state = jax.vmap(tx.update)(slopes_T, state.opt_state)
    new = UncertaintyState(state.log_variances + updates_T, opt_state)
    return _where_task(label_weights_T > 0, new, state)

  return TaskWeighting(init, weights, update)


class DwaState(NamedTuple):
  """State of `dwa`. Losses of epochs that are not complete are 0.

  Attributes:
    step: number of steps taken.
    sums: (T,) weighted losses of this epoch so far, summed.
    totals: (T,) their weights, summed.
    last: (T,) mean losses of the last epoch.
    before_last: (T,) mean losses of the epoch before it.
  """

  step: Array
  sums: Array
  totals: Array
  last: Array
  before_last: Array


def dwa(
  base_T: Array, kinds: tuple[str, ...], steps_per_epoch: int, temperature: float | Array
) -> TaskWeighting:
  """Weights tasks by the dynamic weight average of their losses.

  w = T · softmax(r / temperature), r_k = L_k(e − 1) / L_k(e − 2), with L_k(e) the mean loss of
  task k over the labelled rows of epoch e (equation 7). In the first two epochs r and all weights
  are 1. A task whose loss falls more slowly gets more weight.

  Args:
    base_T: factors of the losses; they do not change r.
    kinds: not used.
    steps_per_epoch: number of steps per epoch.
    temperature: the higher, the more even the weights; 2 in the paper.

  References:
    Liu, Johns, Davison: End-to-End Multi-Task Learning with Attention. CVPR 2019.
    https://arxiv.org/abs/1803.10704
  """
  del kinds
  tasks = len(base_T)

  def init(params: Any) -> DwaState:
    del params
    # Separate arrays, because training donates each of them.
    return DwaState(jnp.int32(0), *(jnp.zeros(tasks, jnp.float32) for _ in range(4)))

  def weights(state: DwaState) -> Array:
    is_known_T = state.before_last > 0
    ratios_T = jnp.where(
      is_known_T, state.last / jnp.where(is_known_T, state.before_last, 1.0), 1.0
    )
    return base_T * tasks * jax.nn.softmax(ratios_T / temperature)

  def update(state: DwaState, losses_T: Array, label_weights_T: Array) -> DwaState:
    step = state.step + 1
    sums_T = state.sums + losses_T * label_weights_T
    totals_T = state.totals + label_weights_T
    is_last_step = step % steps_per_epoch == 0
    # An epoch without a label of a task says nothing about it.
    has_ended_T = is_last_step & (totals_T > 0)
    means_T = sums_T / jnp.where(totals_T > 0, totals_T, 1.0)
    return DwaState(
      step=step,
      sums=jnp.where(is_last_step, 0.0, sums_T),
      totals=jnp.where(is_last_step, 0.0, totals_T),
      last=jnp.where(has_ended_T, means_T, state.last),
      before_last=jnp.where(has_ended_T, state.last, state.before_last),
    )

  return TaskWeighting(init, weights, update)


class GradNormState(NamedTuple):
  """State of `gradnorm`.

  Attributes:
    weights: (T,) trained weights.
    first: (T,) loss of each task in its first step; 0 until then.
    opt_state: the weights' optimizer's, (T, …).
  """

  weights: Array
  first: Array
  opt_state: Any


_LEAST_WEIGHT = 1e-3


def gradnorm(
  base_T: Array,
  kinds: tuple[str, ...],
  steps_per_epoch: int,
  alpha: float | Array,
  learning_rate: float | Array,
) -> TaskWeighting:
  """Trains weights until all tasks train at similar rates (GradNorm).

  With G_k = |∇_W w_k L_k|, G the mean of all G_k, and r_k = (L_k / L_k(0)) / mean_j (L_j / L_j(0)),
  the weights descend sum over k of |G_k − G · r_k^alpha|, with G · r_k^alpha held fixed (equation
  2), by Adam, and are then scaled to sum to T. Means run over the tasks that have labels in the
  batch.

  The paper takes the last shared layer as W. The models here have no such layer in common, so W is
  every parameter that at least two tasks have a gradient of in this step: embeddings, experts, a
  shared gate, but no tower. Without any, as in `single_task`, the weights stay 1. Weights are kept
  above 0.001, so that every task keeps a gradient.

  Args:
    base_T: factors of the losses.
    kinds: not used.
    steps_per_epoch: not used.
    alpha: strength with which training rates are pulled together; 0.12 to 1.5 in the paper.
    learning_rate: learning rate of the weights.

  References:
    Chen, Badrinarayanan, Lee, Rabinovich: GradNorm: Gradient Normalization for Adaptive Loss
    Balancing in Deep Multitask Networks. ICML 2018. https://arxiv.org/abs/1711.02257
  """
  del kinds, steps_per_epoch
  tasks = len(base_T)
  tx = optax.adam(learning_rate)

  def init(params: Any) -> GradNormState:
    del params
    start_T = jnp.ones(tasks, jnp.float32)
    return GradNormState(start_T, jnp.zeros(tasks, jnp.float32), jax.vmap(tx.init)(start_T))

  def update(
    state: GradNormState, losses_T: Array, norms_T: Array, is_labelled_T: Array
  ) -> GradNormState:
    mean = functools.partial(jnp.mean, where=is_labelled_T)
    first_T = jnp.where(state.first > 0, state.first, losses_T)
    progress_T = jnp.where(first_T > 0, losses_T / jnp.where(first_T > 0, first_T, 1.0), 1.0)
    mean_progress = mean(progress_T)
    rates_T = progress_T / jnp.where(mean_progress > 0, mean_progress, 1.0)
    weighted_T = state.weights * norms_T
    slopes_T = jnp.sign(weighted_T - mean(weighted_T) * rates_T**alpha) * norms_T
    updates_T, opt_state = jax.vmap(tx.update)(slopes_T, state.opt_state)
    weights_T = jnp.maximum(state.weights + updates_T, _LEAST_WEIGHT)
    # Labelled tasks share the sum T less the weights of the others, which stay.
    share = tasks - jnp.sum(state.weights, where=~is_labelled_T)
    weights_T = weights_T * (share / jnp.sum(weights_T, where=is_labelled_T))
    return _where_task(is_labelled_T, GradNormState(weights_T, first_T, opt_state), state)

  def combine(
    task_grads: Any, losses_T: Array, label_weights_T: Array, state: GradNormState, key: Array
  ) -> tuple[Any, GradNormState]:
    del key
    norms_T = base_T * jnp.sqrt(jnp.diagonal(_products(_shared(task_grads), tasks)))
    grads = _weighted_sum(task_grads, base_T * state.weights)
    return grads, update(state, losses_T, norms_T, label_weights_T > 0)

  return TaskWeighting(init, lambda state: base_T * state.weights, _no_update, combine)


def pcgrad(base_T: Array, kinds: tuple[str, ...], steps_per_epoch: int) -> TaskWeighting:
  """Projects conflicting gradients onto each other's normal planes (PCGrad).

  For each task i, g ← g_i; for the other tasks j in random order, where g · g_j < 0,
  g ← g − (g · g_j / |g_j|²) g_j; the sum of all g is the gradient (algorithm 1), over all
  parameters.

  Every g is a linear combination of the g_i. So coefficients are projected by the T×T products of
  the gradients, and the gradients are combined once.

  Args:
    base_T: factors of the losses.
    kinds: not used.
    steps_per_epoch: not used.

  References:
    Yu, Kumar, Gupta, Levine, Hausman, Finn: Gradient Surgery for Multi-Task Learning. NeurIPS
    2020. https://arxiv.org/abs/2001.06782
  """
  del kinds, steps_per_epoch
  tasks = len(base_T)

  def project(products_TxT: Array, i: Array, key: Array) -> Array:
    def against(coefficients_T: Array, j: Array) -> tuple[Array, None]:
      product = coefficients_T @ products_TxT[:, j]
      is_conflict = (product < 0) & (j != i)
      square = jnp.where(is_conflict, products_TxT[j, j], 1.0)
      step = jnp.where(is_conflict, -product / square, 0.0)
      return coefficients_T.at[j].add(step), None

    start_T = jax.nn.one_hot(i, tasks, dtype=jnp.float32)
    return jax.lax.scan(against, start_T, jax.random.permutation(key, tasks))[0]

  def combine(
    task_grads: Any, losses_T: Array, label_weights_T: Array, state: Any, key: Array
  ) -> tuple[Any, Any]:
    del losses_T, label_weights_T  # A task without labels has a gradient of 0.
    products_TxT = _products(jax.tree.leaves(task_grads), tasks) * base_T[:, None] * base_T[None]
    coefficients_TxT = jax.vmap(project, (None, 0, 0))(
      products_TxT, jnp.arange(tasks), jax.random.split(key, tasks)
    )
    return _weighted_sum(task_grads, coefficients_TxT.sum(0) * base_T), state

  return TaskWeighting(lambda params: (), lambda state: base_T, _no_update, combine)


# Each method, and the settings that it needs.
METHODS: dict[str, tuple[Callable[..., TaskWeighting], tuple[str, ...]]] = {
  "static": (static, ()),
  "uncertainty": (uncertainty, ("learning_rate",)),
  "dwa": (dwa, ("temperature",)),
  "gradnorm": (gradnorm, ("alpha", "learning_rate")),
  "pcgrad": (pcgrad, ()),
}
# Methods that fit each weight to the task's loss or gradient: a base weight of 0 has no solution.
BALANCING = ("uncertainty", "gradnorm")


def _no_update(state: Any, losses_T: Array, label_weights_T: Array) -> Any:
  """Returns the state: methods with `combine` update it there."""
  del losses_T, label_weights_T
  return state


def _where_task(condition_T: Array, new: Any, old: Any) -> Any:
  """Selects between two trees of (T, …) arrays by task."""

  def select(a: Array, b: Array) -> Array:
    return jnp.where(condition_T.reshape(-1, *[1] * (a.ndim - 1)), a, b)

  return jax.tree.map(select, new, old)


def _weighted_sum(task_grads: Any, weights_T: Array) -> Any:
  """Returns sum over k of weight_k g_k."""
  return jax.tree.map(lambda g: jnp.tensordot(weights_T, g, 1, precision="highest"), task_grads)


def _products(leaves: Sequence[Array], tasks: int) -> Array:
  """Returns the inner products (T, T) of gradients that are given as leaves (T, …)."""
  flat = [leaf.reshape(tasks, -1) for leaf in leaves]
  products = [jnp.matmul(leaf, leaf.T, precision="highest") for leaf in flat]
  return sum(products, jnp.zeros((tasks, tasks), jnp.float32))


def _shared(task_grads: Any) -> list[Array]:
  """Returns the leaves (T, …), with 0 for parameters of which one task alone has a gradient."""

  def select(leaf: Array) -> Array:
    return jnp.where((leaf != 0).sum(0) > 1, leaf, 0.0)

  return [select(leaf) for leaf in jax.tree.leaves(task_grads)]
