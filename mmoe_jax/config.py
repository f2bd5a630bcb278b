"""Config arguments, `census.py:ple,tasks=education+marital_stat`, and overrides of config keys."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mmoe_jax.errors import UserError, did_you_mean


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
