"""Search space: keys of the config to vary, and their ranges.

  {
    "optimizer.dense.learning_rate+optimizer.embedding.learning_rate": ("log", 1e-3, 2e-2),
    "model.expert_dropout": ("uniform", 0.0, 0.5),
    "model.experts": ("int", 2, 16),
    "model.expert_hidden": ("choice", ((16,), (32,), (64, 32))),
  }

Keys joined by `+` take the same value.
"""

import ast
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optuna

from mmoe_jax.config import is_number, override
from mmoe_jax.errors import UserError, require, require_known

_EXAMPLE = '("model.expert_dropout", ("uniform", 0.0, 0.5))'
KINDS = ("log", "uniform", "int", "choice")
# Keys that must be the same for results to be comparable.
_FIXED = ("select.", "search", "data_dir", "data.tasks", "train.warm_start")


class Dimension(NamedTuple):
  """One line of a space. A choice may have options such as tuples, which Optuna cannot store.

  Attributes:
    name: keys joined by `+`, as in the space.
    keys: keys that take the value.
    kind: one of KINDS.
    bounds: (low, high), both included; () for a choice.
    options: options of a choice, in the types of the config; () for other kinds.
  """

  name: str
  keys: tuple[str, ...]
  kind: str
  bounds: tuple[Any, ...]
  options: tuple[Any, ...]


def create_space(config: Any, space: Any) -> list[Dimension]:
  """Creates the dimensions of a space and validates them against the config.

  Args:
    config: the config.
    space: key, or keys joined by `+` -> (kind, …); a mapping or pairs. `log` and `uniform`, for
      floats, and `int` are followed by the least and greatest value; `choice` by a tuple of values.

  Raises:
    UserError: for unknown keys and kinds, and values that do not fit the setting.
  """
  pairs = list(space.items()) if isinstance(space, Mapping) else list(space)
  for pair in pairs:
    is_pair = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
    require(is_pair, f"the search space holds {pair!r}: must be pairs such as {_EXAMPLE}")
  dimensions, used_keys = [], set()
  for name, spec in pairs:
    keys = tuple(name.split("+"))
    for key in keys:
      require(key not in used_keys, f"the search space repeats config.{key}")
      used_keys.add(key)
    dimensions.append(_dimension(config, name, keys, spec))
  require(
    len(dimensions) > 0,
    "the search space is empty; fill config.search or give --space KEY=KIND,…, such as "
    "--space model.expert_dropout=uniform,0.0,0.5",
  )
  return dimensions


def suggest(trial: optuna.Trial, space: Sequence[Dimension]) -> dict[str, Any]:
  """Returns a trial's settings as overrides of the config; stored values are reused."""
  settings = {}
  for dimension in space:
    if dimension.kind == "choice":
      texts = [repr(option) for option in dimension.options]
      value = dimension.options[texts.index(trial.suggest_categorical(dimension.name, texts))]
    elif dimension.kind == "int":
      value = trial.suggest_int(dimension.name, *dimension.bounds)
    else:
      value = trial.suggest_float(dimension.name, *dimension.bounds, log=dimension.kind == "log")
    settings |= dict.fromkeys(dimension.keys, value)
  return settings


def parse_space(texts: Sequence[str]) -> dict[str, Any]:
  """Parses `--space KEY[+KEY]=KIND,…`, such as `log,1e-3,1e-2` or `choice,relu,silu`.

  Raises:
    UserError: for another form.
  """
  space = {}
  for text in texts:
    name, _, rest = text.partition("=")
    kind, comma, values = rest.partition(",")
    require(
      bool(name and kind and comma and values), f"--space={text}: must be KEY=KIND,VALUE,VALUE"
    )
    require(name not in space, f"--space={text}: must not repeat {name}")
    items = _items(values)
    space[name] = (kind, items) if kind == "choice" else (kind, *items)
  return space


def _items(text: str) -> tuple[Any, ...]:
  """Parses comma-separated literals; words without quotes are strings."""
  try:
    return ast.literal_eval(f"({text},)")
  except (ValueError, SyntaxError):
    items = []
    for word in text.split(","):
      try:
        items.append(ast.literal_eval(word))
      except (ValueError, SyntaxError):
        items.append(word.strip())
    return tuple(items)


def _dimension(config: Any, name: str, keys: tuple[str, ...], spec: Any) -> Dimension:
  where = f"the search space's '{name}'"
  require(
    isinstance(spec, tuple | list) and len(spec) > 0,
    f"{where} = {spec!r}: must be a tuple such as ('log', 1e-3, 1e-2)",
  )
  kind, *rest = spec
  require_known(str(kind), KINDS, f"the kind of {where}")
  current = {key: _value(config, key) for key in keys}
  for key in keys:
    require(not key.startswith(_FIXED), f"{where}: config.{key} must not vary in a search")
  if kind == "choice":
    require(
      len(rest) == 1 and isinstance(rest[0], tuple | list) and len(rest[0]) > 0,
      f"{where} = {spec!r}: must be ('choice', (VALUE, VALUE, …))",
    )
    options = tuple(_as_in_config(where, current, option) for option in rest[0])
    require(
      len({repr(option) for option in options}) == len(options),
      f"{where}: must not repeat an option",
    )
    return Dimension(name, keys, kind, (), options)
  require(
    len(rest) == 2 and all(is_number(v) for v in rest) and rest[0] <= rest[1],
    f"{where} = {spec!r}: must be ('{kind}', LEAST, GREATEST)",
  )
  is_integer = kind == "int"
  for key, value in current.items():
    require(
      isinstance(value, int if is_integer else float) and not isinstance(value, bool),
      f"{where}: '{kind}' does not fit config.{key} = {value!r}; "
      f"use {_KIND_FOR.get(type(value), 'choice')}",
    )
  require(
    not is_integer or all(isinstance(v, int) for v in rest),
    f"{where} = {spec!r}: bounds must be whole numbers",
  )
  require(kind != "log" or rest[0] > 0, f"{where} = {spec!r}: the least value must be above 0")
  return Dimension(name, keys, kind, tuple(rest) if is_integer else tuple(map(float, rest)), ())


_KIND_FOR = {float: "uniform, log or choice", int: "int or choice"}


def _value(config: Any, key: str) -> Any:
  override(config, {key: None})  # Raises UserError for an unknown key.
  for name in key.split("."):
    config = config[name]
  return config


def _as_in_config(where: str, current: Mapping[str, Any], option: Any) -> Any:
  """Returns an option in the type of the settings."""
  for key, value in current.items():
    if isinstance(value, float) and is_number(option):
      option = float(option)
    elif isinstance(value, tuple) and isinstance(option, list):
      option = tuple(option)
    if type(option) is not type(value):
      raise UserError(
        f"{where}: {option!r} does not fit config.{key} = {value!r} ({type(value).__name__})"
      )
  return option
