"""From `config.optimizer` to one optax transformation: schedules, groups, FTRL-proximal.

Parameters fall into two groups, `embedding` (the tables) and `dense` (all else), each with an
optimizer of its own, as production systems train sparse and dense parameters differently.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmoe_jax.errors import UserError, did_you_mean, require, require_known

Array = jax.Array
Schedule = Callable[[Array], Array]
SCHEDULES = ("constant", "cosine", "linear")
GROUPS = ("dense", "embedding")


class FtrlState(NamedTuple):
  """Per coordinate: z, the shifted sum of gradients, and n, the sum of their squares."""

  z: optax.Updates
  n: optax.Updates


def ftrl(
  learning_rate: float = 0.5, beta: float = 1.0, l1: float = 0.0, l2: float = 0.0
) -> optax.GradientTransformation:
  """FTRL-proximal (McMahan et al.: Ad Click Prediction, KDD 2013, algorithm 1).

  With sigma = (sqrt(n + g²) − sqrt(n)) / alpha:  z ← z + g − sigma w,  n ← n + g²,
  w ← 0 where |z| <= l1, else −(z − sign(z) l1) / ((beta + sqrt(n)) / alpha + l2).

  The paper starts from w = 0. Here z starts where the formula gives back the initial weights,
  so that embeddings keep their random start.

  Args:
    learning_rate: alpha.
    beta: smooths the first steps.
    l1: pulls weights to exactly zero.
    l2: shrinks weights.

  Returns:
    A transformation whose updates are to be added; it needs `params`.
  """
  alpha = learning_rate

  def init(params: optax.Params) -> FtrlState:
    z = jax.tree.map(lambda w: -w * (beta / alpha + l2) - jnp.sign(w) * l1, params)
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
      new = -(z - jnp.sign(z) * l1) / ((beta + jnp.sqrt(n)) / alpha + l2)
      return jnp.where(jnp.abs(z) <= l1, 0.0, new) - w

    return jax.tree.map(step, params, z, n), FtrlState(z, n)

  return optax.GradientTransformation(init, update)


# Directions of descent, to be scaled by the learning rate; their arguments are config keys.
_DIRECTIONS: dict[str, Callable[..., optax.GradientTransformation]] = {
  "adam": lambda b1=0.9, b2=0.999, eps=1e-8: optax.scale_by_adam(b1, b2, eps),
  "adagrad": lambda initial=0.1, eps=1e-7: optax.scale_by_rss(initial, eps),
  "sgd": lambda momentum=0.0: (
    optax.trace(momentum) if _is_traced(momentum) or momentum else optax.identity()
  ),
}
OPTIMIZERS = (*_DIRECTIONS, "ftrl")
_COMMON = ("learning_rate", "weight_decay", "schedule", "warmup_epochs")


def create_optimizer(
  settings: Mapping[str, Any], steps_per_epoch: int, epochs: int
) -> optax.GradientTransformation:
  """Builds the optimizer of a run.

  Args:
    settings: `clip_norm` (0 for none), bounding the norm of the whole gradient, and a group of
      settings for each of GROUPS: `name`, one of OPTIMIZERS, `learning_rate`, and the
      optimizer's own; all but ftrl also `weight_decay` (decoupled; on kernels and tables only),
      `schedule` (one of SCHEDULES; the last two end at zero) and `warmup_epochs` (linear).
    steps_per_epoch, epochs: the length of training, for the schedules.

  Raises:
    UserError: for unknown names and impossible values, by key.
  """
  groups = {
    group: _create_group(settings[group], f"config.optimizer.{group}", steps_per_epoch, epochs)
    for group in GROUPS
  }
  optimizer = optax.partition(groups, _group_of_each)
  clip = settings["clip_norm"]
  require(
    _is_traced(clip) or (math.isfinite(clip) and clip >= 0),
    f"config.optimizer.clip_norm is {clip}; must be at least 0 (0: no clipping)",
  )
  if not _is_traced(clip):
    return optax.chain(optax.clip_by_global_norm(clip), optimizer) if clip else optimizer
  # Of members that differ in it, some may not clip.
  return optax.chain(optax.clip_by_global_norm(jnp.where(clip > 0, clip, jnp.inf)), optimizer)


def create_schedule(
  name: str, peak: float | Array, warmup_steps: int | Array, steps: int
) -> Schedule:
  """The learning rate by step: a linear warm-up to `peak`, then constant, or falling to zero."""
  fall = {
    "constant": lambda done: jnp.ones_like(done),
    "cosine": lambda done: (1 + jnp.cos(jnp.pi * done)) / 2,
    "linear": lambda done: 1 - done,
  }[name]

  def schedule(step: Array) -> Array:
    done = jnp.clip((step - warmup_steps) / jnp.maximum(steps - warmup_steps, 1), 0.0, 1.0)
    # The first step already moves: (step + 1) / warmup.
    return peak * jnp.minimum((step + 1) / jnp.maximum(warmup_steps, 1), 1.0) * fall(done)

  return schedule


def _create_group(
  settings: Mapping[str, Any], where: str, steps_per_epoch: int, epochs: int
) -> optax.GradientTransformation:
  settings = dict(settings)
  require("name" in settings, f"{where} has no name; known: {', '.join(OPTIMIZERS)}")
  name = settings.pop("name")
  require_known(name, OPTIMIZERS, f"{where}.name")
  for key, value in settings.items():
    if key != "schedule" and not _is_traced(value):
      number = isinstance(value, int | float) and math.isfinite(value)
      require(number and value >= 0, f"{where}.{key} is {value}; must be a number of at least 0")
  common = ("learning_rate",) if name == "ftrl" else _COMMON
  for key in common:
    require(key in settings, f"{where}.{key} is missing; '{name}' needs {', '.join(common)}")
  require(
    _is_traced(settings["learning_rate"]) or settings["learning_rate"] > 0,
    f"{where}.learning_rate must be above 0",
  )
  if name == "ftrl":
    _require_arguments(ftrl, settings, where, name)
    return ftrl(**settings)
  peak = settings.pop("learning_rate")
  decay = settings.pop("weight_decay")
  schedule = settings.pop("schedule")
  require_known(schedule, SCHEDULES, f"{where}.schedule")
  warmup = settings.pop("warmup_epochs")
  require(
    _is_traced(warmup) or warmup < max(1, epochs),
    f"{where}.warmup_epochs is {warmup}; training has {epochs}",
  )
  rounded = jnp.round if _is_traced(warmup) else round
  warmup_steps = rounded(warmup * steps_per_epoch)
  rate = create_schedule(schedule, peak, warmup_steps, epochs * steps_per_epoch)
  _require_arguments(_DIRECTIONS[name], settings, where, name)
  parts = [_DIRECTIONS[name](**settings)]
  if _is_traced(decay) or decay:
    parts.append(optax.add_decayed_weights(decay, mask=_is_decayed))
  return optax.chain(*parts, optax.scale_by_learning_rate(rate))


def _is_traced(value: Any) -> bool:
  """Whether a setting differs between members: a scalar of the program, checked before it."""
  return isinstance(value, jax.Array)


def _require_arguments(
  factory: Callable[..., Any], settings: Mapping[str, Any], where: str, name: str
) -> None:
  known = list(inspect.signature(factory).parameters)
  for key in settings:
    if key not in known:
      raise UserError(f"{where}.{key} is no setting of '{name}'; {did_you_mean(key, known)}")


def _group_of_each(params: Any) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, _: "embedding" if any(k.key == "embedding" for k in path) else "dense", params
  )


def _is_decayed(params: Any) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, _: str(path[-1].key).startswith(("kernel", "table")), params
  )
