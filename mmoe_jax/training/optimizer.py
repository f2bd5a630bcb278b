"""Optimizer: one optax transformation from config.optimizer, with schedules, groups and FTRL.

Parameters have two groups, `embedding` (the tables) and `dense` (all others), with separate
optimizers, because production systems train sparse and dense parameters differently.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmoe_jax.models.layers import is_enabled

Array = jax.Array
Schedule = Callable[[Array], Array]
SCHEDULES = ("constant", "cosine", "linear")
GROUPS = ("dense", "embedding")


class FtrlState(NamedTuple):
  """State of FTRL, per coordinate.

  Attributes:
    z: shifted sum of gradients.
    n: sum of their squares.
  """

  z: optax.Updates
  n: optax.Updates


def ftrl(
  learning_rate: float = 0.5, beta: float = 1.0, l1: float = 0.0, l2: float = 0.0
) -> optax.GradientTransformation:
  """Creates FTRL-proximal.

  With sigma = (sqrt(n + g²) − sqrt(n)) / alpha:  z ← z + g − sigma w,  n ← n + g²,
  w ← 0 where |z| <= l1, else −(z − sign(z) l1) / ((beta + sqrt(n)) / alpha + l2).

  The paper starts from w = 0. Here z starts where the formula returns the initial weights, so that
  embeddings keep their random start.

  Args:
    learning_rate: alpha.
    beta: smooths the first steps.
    l1: strength of the penalty that sets weights to exactly zero.
    l2: strength of the penalty that shrinks weights.

  Returns:
    A transformation whose update needs `params`.

  References:
    McMahan et al.: Ad Click Prediction: a View from the Trenches. KDD 2013, algorithm 1.
  """
  alpha = learning_rate

  def init(params: optax.Params) -> FtrlState:
    z = jax.tree.map(lambda w: ftrl_init(w, alpha, beta, l1, l2), params)
    return FtrlState(z=z, n=jax.tree.map(jnp.zeros_like, params))

  def update(
    updates: optax.Updates, state: FtrlState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, FtrlState]:
    if params is None:
      raise ValueError(optax.NO_PARAMS_MSG)
    n = jax.tree.map(lambda n, g: n + g * g, state.n, updates)
    z = jax.tree.map(
      lambda z, g, w, old, new: z + g - (jnp.sqrt(new) - jnp.sqrt(old)) / alpha * w,
      *(state.z, updates, params, state.n, n),
    )

    def step(w: Array, z: Array, n: Array) -> Array:
      return ftrl_weights(z, n, alpha, beta, l1, l2) - w

    return jax.tree.map(step, params, z, n), FtrlState(z, n)

  return optax.GradientTransformation(init, update)


def ftrl_init(w: Array, alpha: float, beta: float, l1: float, l2: float) -> Array:
  """Returns the z at which `ftrl_weights` gives the weights w, with n = 0."""
  return -w * (beta / alpha + l2) - jnp.sign(w) * l1


def ftrl_weights(z: Array, n: Array, alpha: float, beta: float, l1: float, l2: float) -> Array:
  """Returns the weights of FTRL's state; see `ftrl`."""
  w = -(z - jnp.sign(z) * l1) / ((beta + jnp.sqrt(n)) / alpha + l2)
  return jnp.where(jnp.abs(z) <= l1, 0.0, w)


# Directions of descent, which the learning rate scales; their arguments are keys of the config.
DIRECTIONS: dict[str, Callable[..., optax.GradientTransformation]] = {
  "adam": lambda b1=0.9, b2=0.999, eps=1e-8: optax.scale_by_adam(b1, b2, eps),
  "adagrad": lambda initial=0.1, eps=1e-7: optax.scale_by_rss(initial, eps),
  "sgd": lambda momentum=0.0: optax.trace(momentum) if is_enabled(momentum) else optax.identity(),
}
OPTIMIZERS = (*DIRECTIONS, "ftrl")
ROWWISE_ONLY = ("rowwise_adagrad",)  # Of tables, without a dense form.
UPDATES = ("auto", "dense", "rows")  # Which rows of the tables a step updates.


def create_optimizer(
  settings: Mapping[str, Any],
  steps_per_epoch: int,
  epochs: int,
  groups: Sequence[str] = GROUPS,
) -> optax.GradientTransformation:
  """Creates the optimizer of a run.

  Args:
    settings: config.optimizer, see checks.check_optimizer: `clip_norm`, the bound on the norm of
      the whole gradient (0 for none), and settings for each of GROUPS: `name`, one of OPTIMIZERS,
      `learning_rate`, and the optimizer's arguments; except for ftrl also `weight_decay`
      (decoupled; on kernels and tables only), `schedule` (one of SCHEDULES; the last two end at
      zero) and `warmup_epochs` (linear). Floats may be traced. `updates`, of `embedding`, is for
      row_updates.choose_updates.
    steps_per_epoch: number of steps per epoch, for schedules.
    epochs: number of epochs, for schedules.
    groups: groups of the parameters that the transformation is for.
  """
  optimizers = {
    group: _create_group_optimizer(settings[group], steps_per_epoch, epochs) for group in groups
  }
  optimizer = optax.partition(optimizers, _group_of_each)
  clip_norm = settings["clip_norm"]
  if not is_enabled(clip_norm):
    return optimizer
  if isinstance(clip_norm, Array):
    # Some members of a population may not clip.
    clip_norm = jnp.where(clip_norm > 0, clip_norm, jnp.inf)
  return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)


def create_schedule(
  name: str, peak: float | Array, warmup_steps: int | Array, steps: int
) -> Schedule:
  """Returns the learning rate by step: linear warm-up to `peak`, then constant, or down to zero."""
  decay = {
    "constant": lambda share: jnp.ones_like(share),
    "cosine": lambda share: (1 + jnp.cos(jnp.pi * share)) / 2,
    "linear": lambda share: 1 - share,
  }[name]

  def schedule(step: Array) -> Array:
    share = jnp.clip((step - warmup_steps) / jnp.maximum(steps - warmup_steps, 1), 0.0, 1.0)
    # (step + 1) / warmup, so that the first step has a learning rate above 0.
    return peak * jnp.minimum((step + 1) / jnp.maximum(warmup_steps, 1), 1.0) * decay(share)

  return schedule


def create_group_schedule(
  settings: Mapping[str, Any], steps_per_epoch: int, epochs: int
) -> Schedule:
  """Returns the learning rate by step of a group's settings, see `create_optimizer`."""
  warmup_epochs = settings["warmup_epochs"]
  round_ = jnp.round if isinstance(warmup_epochs, Array) else round
  warmup_steps = round_(warmup_epochs * steps_per_epoch)
  steps = epochs * steps_per_epoch
  return create_schedule(settings["schedule"], settings["learning_rate"], warmup_steps, steps)


def _create_group_optimizer(
  settings: Mapping[str, Any], steps_per_epoch: int, epochs: int
) -> optax.GradientTransformation:
  settings = {key: value for key, value in settings.items() if key != "updates"}
  name = settings.pop("name")
  if name == "ftrl":
    return ftrl(**settings)
  learning_rate = create_group_schedule(settings, steps_per_epoch, epochs)
  weight_decay = settings.pop("weight_decay")
  for key in ("learning_rate", "schedule", "warmup_epochs"):
    settings.pop(key)
  parts = [DIRECTIONS[name](**settings)]
  if is_enabled(weight_decay):
    parts.append(optax.add_decayed_weights(weight_decay, mask=_is_decayed))
  return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))


def _group_of_each(params: Any) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, _: "embedding" if any(k.key == "embedding" for k in path) else "dense", params
  )


def _is_decayed(params: Any) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, _: str(path[-1].key).startswith(("kernel", "table")), params
  )
