"""Config arguments, `census.py:ple,tasks=education+marital_stat`, and overrides of config keys."""

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mmoe_jax.errors import UserError, did_you_mean, require


def is_number(value: Any) -> bool:
  """Returns whether a setting is a finite number that a float can hold; booleans are none."""
  is_real = isinstance(value, int | float) and not isinstance(value, bool)
  return is_real and abs(value) <= sys.float_info.max


def _is_integer(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_string(value: Any) -> bool:
  return isinstance(value, str)


def _tuple_of(is_item: Callable[[Any], bool]) -> Callable[[Any], bool]:
  return lambda value: isinstance(value, tuple | list) and all(map(is_item, value))


# Kind of value -> whether a value is one.
_KINDS: dict[str, Callable[[Any], bool]] = {
  "a whole number": _is_integer,
  "a number": is_number,
  "a string": _is_string,
  "True or False": lambda value: isinstance(value, bool),
  "a tuple of strings": _tuple_of(_is_string),
  "a tuple of numbers": _tuple_of(is_number),
  # Their keys depend on the model, the optimizer or the method, and are validated with it.
  "a ConfigDict of settings": lambda value: isinstance(value, ConfigDict),
  "a tuple of (key, range)": lambda value: isinstance(value, tuple | list | Mapping),
}

# Every key of a config.
KEYS = {
  "seed": "a whole number",
  "data_dir": "a string",
  "data": {
    "tasks": "a tuple of strings",
    "protocol": "a string",
    "numeric": "a string",
    "exclude": "a tuple of strings",
    "crosses": "a tuple of strings",
  },
  "model": "a ConfigDict of settings",
  "loss": {
    "task_weights": "a tuple of numbers",
    "weighting": "a ConfigDict of settings",
    "sample_weight": "True or False",
  },
  "optimizer": {
    "clip_norm": "a number",
    "dense": "a ConfigDict of settings",
    "embedding": "a ConfigDict of settings",
  },
  "train": {
    "batch_size": "a whole number",
    "epochs": "a whole number",
    "shuffle": "True or False",
    "average_decay": "a number",
    "warm_start": "a string",
    "memory_gib": "a number",
    "devices": "a whole number",
    "trackers": "a string",
  },
  "select": {
    "metric": "a string",
    "tasks": "a tuple of strings",
    "patience": "a whole number",
  },
  "search": "a tuple of (key, range)",
  "checkpoint": {"every_epochs": "a whole number"},
}


def check_structure(config: Any) -> None:
  """Validates that a config has every key, no other, and values of the right kinds.

  Args:
    config: what a config file returned, with overrides.

  Raises:
    UserError: naming the key.
  """
  require(
    isinstance(config, ConfigDict),
    f"the config file's get_config() returned {type(config).__name__}: must be a ConfigDict",
  )
  _check_group(config, KEYS, "config")


def _check_group(group: ConfigDict, keys: Mapping[str, Any], where: str) -> None:
  # Messages are formatted for faults only: a group as text costs more than all checks.
  for key in group:
    if key not in keys:
      raise UserError(f"{where}.{key}: does not exist; {did_you_mean(key, keys)}")
  for key, kind in keys.items():
    path = f"{where}.{key}"
    require(key in group, f"{path} is missing; configs/census.py has every key")
    value, is_group = group[key], not isinstance(kind, str)
    expected = "a ConfigDict of settings" if is_group else kind
    if not _KINDS[expected](value):
      raise UserError(f"{path} = {_short(value)}: must be {expected}")
    if is_group:
      _check_group(value, kind, path)


def _short(value: Any) -> str:
  text = " ".join(repr(value).split())
  return text if len(text) <= 80 else f"{text[:77]}…"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns a nested mapping as dotted key -> value; an empty mapping is a value."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def override(config: Any, settings: Mapping[str, Any]) -> ConfigDict:
  """Returns a copy of a config with other values for some keys.

  Args:
    config: the config.
    settings: dotted key -> value, such as `{"optimizer.dense.learning_rate": 1e-3}`, of any type,
      traced scalars included.

  Raises:
    UserError: for an unknown key.
  """
  config = config.copy_and_resolve_references()
  for key, value in settings.items():
    *groups, last = key.split(".")
    group = config
    for name in groups:
      _require_key(group, name, key)
      group = group[name]
    _require_key(group, last, key)
    with group.unlocked(), group.ignore_type():
      group[last] = value
  return config


def _require_key(group: Any, name: str, key: str) -> None:
  if not isinstance(group, ConfigDict) or name not in group:
    known = list(group) if isinstance(group, ConfigDict) else []
    raise UserError(f"config has no key '{key}'; at '{name}': {did_you_mean(name, known)}")


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
  """Parses the argument of `--config FILE:ARG`.

  Args:
    arg: comma-separated `key=value`; the first may be a single value, for the first key. Items of a
      list are joined by `+`.
    **defaults: all keys with their default values, whose types (str, int, float, bool or tuple of
      str) the values take.

  Returns:
    All keys with their values.

  Raises:
    UserError: for an unknown key or a value of another type.
  """
  values = dict(defaults)
  for i, item in enumerate(filter(None, (arg or "").split(","))):
    key, equals, text = item.partition("=")
    if not equals:
      if i:
        raise UserError(
          f"config argument '{item}': must be key=value; {did_you_mean(item, defaults)}"
        )
      key, text = next(iter(defaults)), item
    if key not in defaults:
      raise UserError(f"config argument '{key}' does not exist; {did_you_mean(key, defaults)}")
    values[key] = _convert(key, text, defaults[key])
  return values


def _convert(key: str, text: str, default: Any) -> Any:
  if isinstance(default, tuple):
    return tuple(filter(None, text.split("+")))
  if isinstance(default, bool):
    if text.lower() in ("true", "false"):
      return text.lower() == "true"
    raise UserError(f"config argument {key}='{text}': must be true or false")
  try:
    return type(default)(text)
  except ValueError as error:
    kind = {int: "an integer", float: "a number"}[type(default)]
    raise UserError(f"config argument {key}='{text}': must be {kind}") from error


def parse_vary(texts: Sequence[str]) -> list[dict[str, Any]]:
  """Returns every combination of the values in `--vary KEY=VALUE,VALUE`, as overrides.

  Raises:
    UserError: for another form, or a value that is not a number.
  """
  axes = []
  for text in texts:
    key, equals, values = text.partition("=")
    require(bool(equals and values), f"--vary={text}: must be KEY=VALUE,VALUE")
    try:
      axes.append([(key, float(value)) for value in values.split(",")])
    except ValueError as error:
      raise UserError(f"--vary={text}: {error}") from error
  return [dict(pairs) for pairs in itertools.product(*axes)]
