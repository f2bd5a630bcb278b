"""Validation of settings and labels, before anything is built or compiled.

Builders take validated settings and contain no checks, because their values may be traced.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmoe_jax import data, models
from mmoe_jax.config import check_structure, is_number, override
from mmoe_jax.errors import UserError, did_you_mean, require, require_known
from mmoe_jax.evaluation import evaluate
from mmoe_jax.training.optimizer import (
  DIRECTIONS,
  GROUPS,
  OPTIMIZERS,
  ROWWISE_ONLY,
  SCHEDULES,
  UPDATES,
  ftrl,
)
from mmoe_jax.training.row_optimizer import rowwise_adagrad
from mmoe_jax.training.task_weighting import BALANCING, METHODS
from mmoe_jax.workdir import tracking

Override = Mapping[str, Any]
_MAX_EPOCHS = 1_000_000
_MEMBER_GROUPS = ("model", "loss", "optimizer")  # Their floats may differ between members.


def check_config(config: Any, schema: data.Schema) -> None:
  """Validates the settings of a run.

  Args:
    config: settings as in configs/census.py, with concrete values.
    schema: features and tasks of the run.

  Raises:
    UserError: for a value that no run can have, by key.
  """
  check_structure(config)
  seed, train = config.seed, config.train
  batch_size, decay, memory = train.batch_size, train.average_decay, train.memory_gib
  every, patience = config.checkpoint.every_epochs, config.select.patience
  require(0 <= seed < 2**32, f"config.seed = {seed}: must be from 0 to 2^32 - 1")
  require(
    1 <= batch_size < 2**30, f"config.train.batch_size = {batch_size}: must be from 1 to 2^30 - 1"
  )
  require(
    0 <= train.epochs <= _MAX_EPOCHS,
    f"config.train.epochs = {train.epochs}: must be from 0 to {_MAX_EPOCHS:,}",
  )
  require(memory >= 0, f"config.train.memory_gib = {memory}: must be at least 0 (0: no limit)")
  require(0 <= decay < 1, f"config.train.average_decay = {decay}: must be in [0, 1)")
  require(every >= 1, f"config.checkpoint.every_epochs = {every}: must be at least 1")
  require(
    patience >= 0,
    f"config.select.patience = {patience}: must be at least 0 (0 disables early stopping)",
  )
  tracking.check(train.trackers)
  _check_task_weights(config.loss.task_weights, len(schema.tasks))
  check_task_weighting(config.loss.weighting, config.loss.task_weights)
  check_optimizer(config.optimizer, train.epochs)
  models.check_model(config.model, schema)
  evaluate.check_selection(config.select, schema.tasks)


def check_labels(config: Any, schema: data.Schema, labels_NxT: np.ndarray) -> None:
  """Validates that each task implies the task before it, for models that assume so.

  Args:
    config: settings of the run.
    schema: features and tasks of the run.
    labels_NxT: labels of train rows.

  Raises:
    UserError: where rows contradict it.
  """
  if not models.find_model(config.model.name).chained:
    return
  names = [task.name for task in schema.tasks]
  for t in range(1, len(names)):
    rows = int(((labels_NxT[:, t] == 1) & (labels_NxT[:, t - 1] == 0)).sum())
    require(
      not rows,
      f"config.data.tasks = {tuple(names)}: for '{config.model.name}' each task must imply the one "
      f"before, but {rows:,} train rows have '{names[t]}' without '{names[t - 1]}'; use "
      "('education', 'bachelors')",
    )


def check_optimizer(settings: Mapping[str, Any], epochs: int) -> None:
  """Validates config.optimizer.

  Args:
    settings: see optimizer.create_optimizer.
    epochs: config.train.epochs.

  Raises:
    UserError: for an unknown, missing or impossible setting.
  """
  clip_norm = settings["clip_norm"]
  require(
    is_number(clip_norm) and clip_norm >= 0,
    f"config.optimizer.clip_norm = {clip_norm!r}: must be a number >= 0 (0 disables clipping)",
  )
  for group in GROUPS:
    _check_group(dict(settings[group]), f"config.optimizer.{group}", epochs)


def _check_group(settings: dict[str, Any], where: str, epochs: int) -> None:
  require("name" in settings, f"{where}.name is missing; known: {', '.join(OPTIMIZERS)}")
  name = settings.pop("name")
  is_table = where.endswith(".embedding")
  require_known(name, (*OPTIMIZERS, *ROWWISE_ONLY) if is_table else OPTIMIZERS, f"{where}.name")
  if is_table:
    require_known(settings.pop("updates", "dense"), UPDATES, f"{where}.updates")
  is_ftrl = name == "ftrl"
  needed = () if is_ftrl else ("weight_decay", "schedule", "warmup_epochs")
  needed = ("learning_rate", *needed)
  for key in needed:
    require(key in settings, f"{where}.{key} is missing; '{name}' needs {', '.join(needed)}")
  function = ftrl if is_ftrl else DIRECTIONS.get(name, rowwise_adagrad)
  optional = [k for k in inspect.signature(function).parameters if is_ftrl or k != "schedule"]
  known = list(dict.fromkeys([*needed, *optional]))
  for key, value in settings.items():
    if key not in known:
      raise UserError(f"{where}.{key}: not a setting of '{name}'; {did_you_mean(key, known)}")
    if key == "schedule":
      require_known(value, SCHEDULES, f"{where}.schedule")
      continue
    require(is_number(value) and value >= 0, f"{where}.{key} = {value!r}: must be a number >= 0")
    require(value < 3e38, f"{where}.{key} = {value!r}: must be a number below 3e38")
    if key in ("b1", "b2", "momentum"):
      require(value < 1, f"{where}.{key} = {value}: must be in [0, 1)")
  rate, warmup = settings["learning_rate"], settings.get("warmup_epochs", 0)
  require(rate > 0, f"{where}.learning_rate = {rate}: must be above 0")
  require(
    warmup < max(1, epochs),
    f"{where}.warmup_epochs = {warmup}: must be below config.train.epochs = {epochs}",
  )


def check_task_weighting(settings: Mapping[str, Any], base_weights: Sequence[float]) -> None:
  """Validates config.loss.weighting.

  Args:
    settings: `name`, a key of METHODS, and exactly the settings of that method.
    base_weights: config.loss.task_weights; empty for 1 each.

  Raises:
    UserError: for an unknown, missing or impossible setting.
  """
  settings, where = dict(settings), "config.loss.weighting"
  require("name" in settings, f"{where}.name is missing; known: {', '.join(METHODS)}")
  name = settings.pop("name")
  require_known(name, METHODS, f"{where}.name")
  _, keys = METHODS[name]
  for key, value in settings.items():
    if key not in keys:
      raise UserError(f"{where}.{key}: not a setting of '{name}'; {did_you_mean(key, keys)}")
    if key == "alpha":
      require(is_number(value) and value >= 0, f"{where}.{key} = {value}: must be a number >= 0")
    else:
      require(is_number(value) and value > 0, f"{where}.{key} = {value}: must be a number above 0")
  for key in keys:
    require(key in settings, f"{where}.{key} is missing; '{name}' needs {', '.join(keys)}")
  require(
    name not in BALANCING or all(weight > 0 for weight in base_weights),
    f"config.loss.task_weights = {tuple(base_weights)}: '{name}' needs weights above 0; remove "
    "tasks of weight 0 from config.data.tasks",
  )


def check_members(
  config: Any,
  members: Sequence[Override],
  schema: data.Schema,
  splits: Sequence[Mapping[str, data.Split]],
) -> None:
  """Validates that each member of a population is a valid run and that all share one program.

  Args:
    config: settings that members share.
    members: settings of each member, by dotted key.
    schema: features and tasks of the runs.
    splits: data of all members, or of each.

  Raises:
    UserError: naming the member's setting.
  """
  require(len(members) > 0, "a population needs at least one member")
  require(
    not config.train.warm_start,
    f"config.train.warm_start = {config.train.warm_start}: populations start from scratch",
  )
  for member in members:
    require(
      member.keys() == members[0].keys(),
      f"members must set the same keys, not {sorted(member)} and {sorted(members[0])}",
    )
    for key, value in member.items():
      override(config, {key: value})  # Raises UserError for an unknown key.
      require(
        key in ("seed", "train.average_decay") or key.split(".")[0] in _MEMBER_GROUPS,
        f"config.{key}: members share it; they may differ in the seed, train.average_decay and "
        f"floats of {', '.join(_MEMBER_GROUPS)}",
      )
      values = value if isinstance(value, tuple) else (value,)
      is_float = all(isinstance(v, float) for v in values)
      is_seed = key == "seed" and isinstance(value, int)
      is_integer_setting = isinstance(_value(config, key), int)
      require(
        is_seed or (is_float and not is_integer_setting),
        f"config.{key} = {value!r}: members may differ in the seed, in floats and in tuples of "
        "floats; other settings need a separate population",
      )
    check_config(override(config, member), schema)
  for split in splits:
    if isinstance(split["train"], data.Split):  # Of streamed rows, blocks are checked.
      check_labels(config, schema, split["train"].labels)


def _check_task_weights(weights: Sequence[float], tasks: int) -> None:
  require(
    len(weights) in (0, tasks),
    f"config.loss.task_weights = {tuple(weights)}: must be empty or have {tasks} numbers, one per "
    "task",
  )
  require(
    all(map(is_number, weights)) and all(w >= 0 for w in weights) and (any(weights) or not weights),
    f"config.loss.task_weights = {tuple(weights)}: must be numbers >= 0, not all 0",
  )


def _value(config: Any, key: str) -> Any:
  for name in key.split("."):
    config = config[name]
  return config
