"""Names of what differs between two runs: for refusals that say why."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmoe_jax.data import Schema

_NAMED = 3  # Differences that a message names; the others are counted.
_LENGTH = 60  # Characters of a value in a message.


def of_settings(before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str]) -> str:
  """Returns how settings differ, such as `config.seed=0, not 1`; empty if they do not.

  Args:
    before: dotted key -> value of the run that exists.
    now: the same of this one.
    free: keys that may differ.
  """
  keys = [k for k in {**before, **now} if before.get(k) != now.get(k) and k not in free]
  found = [f"config.{k}={_short(before.get(k))}, not {_short(now.get(k))}" for k in keys]
  return _join(found)


def of_schemas(before: Schema, now: Schema, parts: Sequence[str] = ()) -> str:
  """Returns how schemas differ, such as `the id feature 'age' differs in its values`.

  Args:
    before: schema of the run that exists.
    now: that of this one.
    parts: fields to compare; all by default.
  """
  found = []
  for part in parts or [field.name for field in dataclasses.fields(Schema)]:
    old, new = getattr(before, part), getattr(now, part)
    if old != new:
      named = part in _NAMES
      found += _of_named(_NAMES[part], old, new) if named else [f"its {part.replace('_', ' ')}"]
  return _join(found)


_NAMES = {"id_features": "id feature", "numeric": "number", "tasks": "task", "slices": "slice"}


def _of_named(what: str, old: Sequence[Any], new: Sequence[Any]) -> list[str]:
  before, now = ({each.name: each for each in parts} for parts in (old, new))
  found = [f"the {what} '{name}' is missing" for name in before if name not in now]
  found += [f"the {what} '{name}' is new" for name in now if name not in before]
  for name in before:
    if name in now and before[name] != now[name]:
      fields = [f.name for f in dataclasses.fields(before[name])]
      own = [f for f in fields if getattr(before[name], f) != getattr(now[name], f)]
      found.append(f"the {what} '{name}' differs in its {', '.join(own)}")
  return found or [f"the order of the {what}s"]


def _short(value: Any) -> str:
  text = str(value)
  return text if len(text) <= _LENGTH else f"{text[:_LENGTH]}…"


def _join(found: Sequence[str]) -> str:
  more = [f"{len(found) - _NAMED} more"] if len(found) > _NAMED else []
  return "; ".join([*found[:_NAMED], *more])
