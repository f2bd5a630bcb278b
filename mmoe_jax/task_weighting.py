"""How the losses of several tasks become one gradient: fixed weights, or weights that adapt.

  weighting = create_task_weighting(config.loss.weighting, task_weights, kinds, steps_per_epoch)
  state = weighting.init(params)
  grads, losses_T, aux, state = weighting.gradient(losses_fn, params, state, key, axis_name)

All methods minimise sum_k w_k L_k + penalty and differ in where w comes from. States have fixed
shapes and dtypes, so that `gradient` can be scanned over steps and mapped over members.

Shape letters: T tasks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmoe_jax.errors import UserError, did_you_mean, require, require_known

Array = jax.Array
# params -> (losses_T, (penalty, aux)).
LossesFn = Callable[[Any], tuple[Array, tuple[Array | float, Any]]]


class TaskWeighting(NamedTuple):
  """A way to weigh tasks, as pure functions.

  Attributes:
    init: params -> state, a tree of arrays; () without state.
    gradient: (losses_fn, params, state, key, axis_name=None) -> (grads, losses_T, aux, state).
      `losses_fn(params)` gives (losses_T, (penalty, aux)). Under a device axis each device gives
      its share, so that the mean over devices is the whole loss; `key` must then be the same on
      all devices. Gradients and losses_T, as `losses_fn` gave them, are means over devices; aux
      is each device's own.
    weights: state -> (T,), the weight of each loss at the next step, for logs.
  """

  init: Callable[[Any], Any]
  gradient: Callable[..., tuple[Any, Array, Any, Any]]
  weights: Callable[[Any], Array]


def create_task_weighting(
  settings: Mapping[str, Any],
  task_weights: Sequence[float] | Array,
  kinds: Sequence[str],
  steps_per_epoch: int,
) -> TaskWeighting:
  """Builds the task weighting of a run.

  Args:
    settings: config.loss.weighting: `name`, a key of METHODS, and the settings that are the
      arguments of its function, all of them.
    task_weights: (T,) factors that every loss is multiplied by beforehand, in every method.
    kinds: (T,) what each task is: binary, multiclass or regression.
    steps_per_epoch: steps of an epoch.

  Raises:
    UserError: for an unknown name or setting, one that is missing, or an impossible value.
  """
  settings = dict(settings)
  where = "config.loss.weighting"
  require("name" in settings, f"{where} has no name; known: {', '.join(METHODS)}")
  name = settings.pop("name")
  require_known(name, METHODS, f"{where}.name")
  method, keys = METHODS[name]
  for key, value in settings.items():
    if key not in keys:
      raise UserError(f"{where}.{key} is no setting of '{name}'; {did_you_mean(key, keys)}")
    _check(f"{where}.{key}", key, value)
  for key in keys:
    require(key in settings, f"{where}.{key} is missing; '{name}' needs {', '.join(keys)}")
  traced = isinstance(task_weights, jax.core.Tracer)
  require(
    traced or name not in _BALANCING or bool((np.asarray(task_weights) > 0).all()),
    f"config.loss.task_weights is {task_weights}; '{name}' balances tasks, each of which needs a "
    "weight above 0 (or leave the task out of config.data.tasks)",
  )
  base_T = jnp.asarray(task_weights, jnp.float32)
  return method(base_T, tuple(kinds), steps_per_epoch, **settings)


def _check(what: str, key: str, value: Any) -> None:
  if isinstance(value, jax.Array):
    return  # It differs between members, and was checked before it became part of a program.
  number = isinstance(value, int | float) and math.isfinite(value)
  if key == "alpha":
    require(number and value >= 0, f"{what} is {value}; must be a number of at least 0")
  else:
    require(number and value > 0, f"{what} is {value}; must be a number above 0")


def static(base_T: Array, kinds: tuple[str, ...], steps_per_epoch: int) -> TaskWeighting:
  """The task weights of the config, as they are."""
  del kinds, steps_per_epoch

  def gradient(
    losses_fn: LossesFn, params: Any, state: Any, key: Array, axis_name: str | None = None
  ) -> tuple[Any, Array, Any, Any]:
    del key
    return *_gradient_of_sum(losses_fn, params, base_T, axis_name), state

  return TaskWeighting(lambda params: (), gradient, lambda state: base_T)


class UncertaintyState(NamedTuple):
  """s_k = log σ_k², and its optimizer's state."""

  log_variances: Array
  opt_state: Any


def uncertainty(
  base_T: Array,
  kinds: tuple[str, ...],
  steps_per_epoch: int,
  learning_rate: float | Array,
) -> TaskWeighting:
  """Homoscedastic uncertainty: sum_k c_k exp(−s_k) L_k + s_k / 2, with trained s_k = log σ_k².

  c_k is 1/2 for regression, whose loss is a squared error (equation 7), and 1 for classification
  (equation 10). s starts at 0 and has an Adam of its own.

  Kendall, Gal, Cipolla: Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry
  and Semantics. CVPR 2018. https://arxiv.org/abs/1705.07115

  Args:
    base_T: factors of the losses beforehand.
    kinds: what each task is.
    steps_per_epoch: not used.
    learning_rate: Adam's, of s.
  """
  del steps_per_epoch
  factors_T = jnp.array([0.5 if kind == "regression" else 1.0 for kind in kinds], jnp.float32)
  tx = optax.adam(learning_rate)

  def init(params: Any) -> UncertaintyState:
    del params
    start_T = jnp.zeros(len(base_T), jnp.float32)
    return UncertaintyState(start_T, tx.init(start_T))

  def weights(state: UncertaintyState) -> Array:
    return base_T * factors_T * jnp.exp(-state.log_variances)

  def gradient(
    losses_fn: LossesFn,
    params: Any,
    state: UncertaintyState,
    key: Array,
    axis_name: str | None = None,
  ) -> tuple[Any, Array, Any, Any]:
    del key
    weights_T = weights(state)
    grads, losses_T, aux = _gradient_of_sum(losses_fn, params, weights_T, axis_name)
    slopes_T = 0.5 - weights_T * losses_T
    updates_T, opt_state = tx.update(slopes_T, state.opt_state)
    return grads, losses_T, aux, UncertaintyState(state.log_variances + updates_T, opt_state)

  return TaskWeighting(init, gradient, weights)


class DwaState(NamedTuple):
  """Steps taken, the losses of this epoch so far, and mean losses of the last two epochs.

  Those that have not been yet are 0.
  """

  step: Array
  sums: Array
  last: Array
  before_last: Array


def dwa(
  base_T: Array, kinds: tuple[str, ...], steps_per_epoch: int, temperature: float | Array
) -> TaskWeighting:
  """Dynamic weight average: w = T · softmax(r / temperature), r_k = L_k(e − 1) / L_k(e − 2).

  L_k(e) is the mean loss of task k over the steps of epoch e (equation 7); r is 1 in the first
  two epochs, and so are the weights. A task whose loss falls more slowly gets more weight.

  Liu, Johns, Davison: End-to-End Multi-Task Learning with Attention. CVPR 2019.
  https://arxiv.org/abs/1803.10704

  Args:
    base_T: factors of the losses beforehand; they leave r as it is.
    kinds: not used.
    steps_per_epoch: how many steps make an epoch.
    temperature: the higher, the more even the weights; the paper has 2.
  """
  del kinds
  tasks = len(base_T)

  def init(params: Any) -> DwaState:
    del params
    # Arrays of their own, because training gives each away.
    return DwaState(jnp.int32(0), *(jnp.zeros(tasks, jnp.float32) for _ in range(3)))

  def weights(state: DwaState) -> Array:
    known_T = state.before_last > 0
    ratios_T = jnp.where(known_T, state.last / jnp.where(known_T, state.before_last, 1.0), 1.0)
    return base_T * tasks * jax.nn.softmax(ratios_T / temperature)

  def gradient(
    losses_fn: LossesFn, params: Any, state: DwaState, key: Array, axis_name: str | None = None
  ) -> tuple[Any, Array, Any, Any]:
    del key
    grads, losses_T, aux = _gradient_of_sum(losses_fn, params, weights(state), axis_name)
    step, sums_T = state.step + 1, state.sums + losses_T
    ends = step % steps_per_epoch == 0
    state = DwaState(
      step,
      jnp.where(ends, 0.0, sums_T),
      jnp.where(ends, sums_T / steps_per_epoch, state.last),
      jnp.where(ends, state.last, state.before_last),
    )
    return grads, losses_T, aux, state

  return TaskWeighting(init, gradient, weights)


class GradNormState(NamedTuple):
  """The trained weights, each task's first loss (0 before it), and the weights' optimizer."""

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
  """GradNorm: weights trained until all tasks train at similar rates.

  With G_k = |∇_W w_k L_k|, G the mean of all G_k, and r_k = (L_k / L_k(0)) / mean_j (L_j / L_j(0)),
  the weights descend sum_k |G_k − G · r_k^alpha|, with G · r_k^alpha held fixed (equation 2), by an
  Adam of their own, and are then scaled to sum to T.

  The paper takes the last shared layer as W. Models here have no such layer in common, so W is
  every parameter without `towers` or `gating` in its path: embeddings, experts, a shared bottom.
  Weights are kept from falling below 0.001, so that no task is ever unlearnt.

  Chen, Badrinarayanan, Lee, Rabinovich: GradNorm: Gradient Normalization for Adaptive Loss
  Balancing in Deep Multitask Networks. ICML 2018. https://arxiv.org/abs/1711.02257

  Args:
    base_T: factors of the losses beforehand.
    kinds, steps_per_epoch: not used.
    alpha: how hard rates are pulled together; the paper has 0.12 to 1.5.
    learning_rate: Adam's, of the weights.
  """
  del kinds, steps_per_epoch
  tasks = len(base_T)
  tx = optax.adam(learning_rate)

  def init(params: Any) -> GradNormState:
    del params
    start_T = jnp.ones(tasks, jnp.float32)
    return GradNormState(start_T, jnp.zeros(tasks, jnp.float32), tx.init(start_T))

  def gradient(
    losses_fn: LossesFn, params: Any, state: GradNormState, key: Array, axis_name: str | None = None
  ) -> tuple[Any, Array, Any, Any]:
    del key
    each, of_penalty, losses_T, aux = _gradient_of_each(losses_fn, params, base_T, axis_name)
    norms_T = jnp.sqrt(jnp.diagonal(_products(_shared(each), tasks)))
    first_T = jnp.where(state.first > 0, state.first, losses_T)
    progress_T = jnp.where(first_T > 0, losses_T / jnp.where(first_T > 0, first_T, 1.0), 1.0)
    mean = progress_T.mean()
    rates_T = progress_T / jnp.where(mean > 0, mean, 1.0)
    weighted_T = state.weights * norms_T
    slopes_T = jnp.sign(weighted_T - weighted_T.mean() * rates_T**alpha) * norms_T
    updates_T, opt_state = tx.update(slopes_T, state.opt_state)
    weights_T = jnp.maximum(state.weights + updates_T, _LEAST_WEIGHT)
    new = GradNormState(weights_T * (tasks / weights_T.sum()), first_T, opt_state)
    return _combine(each, state.weights, of_penalty), losses_T, aux, new

  return TaskWeighting(init, gradient, lambda state: base_T * state.weights)


def pcgrad(base_T: Array, kinds: tuple[str, ...], steps_per_epoch: int) -> TaskWeighting:
  """PCGrad: where two tasks' gradients conflict, each gives up its part against the other.

  For each task i, g ← g_i; for the other tasks j in random order, where g · g_j < 0,
  g ← g − (g · g_j / |g_j|²) g_j; the sum of all g is followed (algorithm 1). Gradients count over
  all parameters.

  Every g is a combination of the g_i, and all that is asked of them are products: so coefficients
  are projected by the T×T products, and gradients are combined once.

  Yu, Kumar, Gupta, Levine, Hausman, Finn: Gradient Surgery for Multi-Task Learning. NeurIPS 2020.
  https://arxiv.org/abs/2001.06782

  Args:
    base_T: factors of the losses beforehand.
    kinds, steps_per_epoch: not used.
  """
  del kinds, steps_per_epoch
  tasks = len(base_T)

  def project(products_TxT: Array, i: Array, key: Array) -> Array:
    def against(own_T: Array, j: Array) -> tuple[Array, None]:
      product = own_T @ products_TxT[:, j]
      conflict = (product < 0) & (j != i)
      square = jnp.where(conflict, products_TxT[j, j], 1.0)
      return own_T.at[j].add(jnp.where(conflict, -product / square, 0.0)), None

    start_T = jax.nn.one_hot(i, tasks, dtype=jnp.float32)
    return jax.lax.scan(against, start_T, jax.random.permutation(key, tasks))[0]

  def gradient(
    losses_fn: LossesFn, params: Any, state: Any, key: Array, axis_name: str | None = None
  ) -> tuple[Any, Array, Any, Any]:
    each, of_penalty, losses_T, aux = _gradient_of_each(losses_fn, params, base_T, axis_name)
    projected_TxT = jax.vmap(project, (None, 0, 0))(
      _products(each, tasks), jnp.arange(tasks), jax.random.split(key, tasks)
    )
    return _combine(each, projected_TxT.sum(0), of_penalty), losses_T, aux, state

  return TaskWeighting(lambda params: (), gradient, lambda state: base_T)


# Each method, and the settings that it needs.
METHODS: dict[str, tuple[Callable[..., TaskWeighting], tuple[str, ...]]] = {
  "static": (static, ()),
  "uncertainty": (uncertainty, ("learning_rate",)),
  "dwa": (dwa, ("temperature",)),
  "gradnorm": (gradnorm, ("alpha", "learning_rate")),
  "pcgrad": (pcgrad, ()),
}
# Methods that would drive a task of weight 0 to an end of the scale, or measure others by it.
_BALANCING = ("uncertainty", "gradnorm")


def _mean_over_devices(tree: Any, axis_name: str | None) -> Any:
  return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def _gradient_of_sum(
  losses_fn: LossesFn, params: Any, weights_T: Array, axis_name: str | None
) -> tuple[Any, Array, Any]:
  """The gradient of sum_k weight_k L_k + penalty in one pass; losses_T; aux."""

  def total(params: Any) -> tuple[Array, tuple[Array, Any]]:
    losses_T, (penalty, aux) = losses_fn(params)
    return losses_T @ weights_T + penalty, (losses_T, aux)

  grads, (losses_T, aux) = jax.grad(total, has_aux=True)(params)
  grads, losses_T = _mean_over_devices((grads, losses_T), axis_name)
  return grads, losses_T, aux


def _gradient_of_each(
  losses_fn: LossesFn, params: Any, base_T: Array, axis_name: str | None
) -> tuple[Any, Any, Array, Any]:
  """Per task the gradient of base_k L_k, stacked on a leading axis (T, …); the penalty's; …

  One forward pass serves all tasks. The penalty's gradient is written as one of its own, which is
  nothing without a penalty; of its forward pass the compiler keeps what is not there already.
  """

  def tasks_losses(params: Any) -> tuple[Array, Any]:
    losses_T, (_, aux) = losses_fn(params)
    return losses_T, aux

  losses_T, pull_back, aux = jax.vjp(tasks_losses, params, has_aux=True)
  (each,) = jax.vmap(pull_back)(jnp.diag(base_T))
  of_penalty = jax.grad(lambda p: jnp.asarray(losses_fn(p)[1][0], jnp.float32))(params)
  each, of_penalty, losses_T = _mean_over_devices((each, of_penalty, losses_T), axis_name)
  return each, of_penalty, losses_T, aux


def _combine(each: Any, weights_T: Array, of_penalty: Any) -> Any:
  """sum_k weight_k g_k + the penalty's gradient."""
  return jax.tree.map(lambda g, p: jnp.tensordot(weights_T, g, 1) + p, each, of_penalty)


def _products(each: Any, tasks: int) -> Array:
  """The inner products (T, T) of gradients, over all leaves of (T, …)."""
  flat = [leaf.reshape(tasks, -1) for leaf in jax.tree.leaves(each)]
  products = [jnp.matmul(leaf, leaf.T, precision="highest") for leaf in flat]
  return sum(products, jnp.zeros((tasks, tasks), jnp.float32))


def _shared(each: Any) -> list[Array]:
  """The leaves that belong to no task alone."""
  return [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(each)
    if not any(word in jax.tree_util.keystr(path) for word in ("towers", "gating"))
  ]
