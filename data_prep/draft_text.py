"""Text of a drafted spec: TOML with comments.

Shape letters: N rows of the sample.
"""

import dataclasses
import json
import re
from collections.abc import Sequence

import numpy as np

from mmoe_jax.data.columns import MISSING, Factor

_GROUP_NAMES = re.compile(r"(user|customer|member|visitor|uid)(_?id)?", re.IGNORECASE)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclasses.dataclass
class Column:
  """Column of the sample, and what the draft says about it."""

  name: str
  factor: Factor
  texts: list[str]
  counts: np.ndarray
  is_list: bool = False
  role: str = ""
  settings: dict[str, object] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)
  numbers: np.ndarray | None = None

  @property
  def known(self) -> int:
    """Number of distinct values."""
    return sum(text != MISSING for text in self.texts)


def quoted(name: str) -> str:
  """Returns a column's name in the form of conditions."""
  is_plain = re.fullmatch(r"[^\W\d][\w.]*", name) and name not in ("and", "or", "not", "in", "is")
  return name if is_plain else f"`{name}`"


def quoted_text(value: str) -> str:
  """Returns a text in the form of conditions."""
  return f'"{value}"' if '"' not in value else f"'{value}'"


def format_spec(
  columns: dict[str, Column],
  tasks: dict[str, dict[str, object]],
  inputs: Sequence[str],
  separator: str,
  rows: int,
) -> str:
  """Formats a draft.

  Args:
    columns: the columns, with their roles.
    tasks: name -> keys of each task.
    inputs: files that the sample is from.
    separator: separator of values.
    rows: rows of the sample.
  """
  lines = [
    f"# Draft from {rows:,} rows of {inputs[0]}{' …' if len(inputs) > 1 else ''}.",
    "# Correct it where it is wrong; docs/spec.md has every key. Roles: category, hash, number,",
    "# list, time, weight, label (used by tasks only), keep (copied to the scores), ignore.",
  ]
  if separator != ",":
    lines.append(f"separator = {json.dumps(separator)}")
  lines += ["", "[columns]"]
  for column in columns.values():
    settings = {"role": column.role, **column.settings}
    inner = ", ".join(f"{key} = {_value(value)}" for key, value in settings.items())
    shown = f"  # {_example(column)}"
    lines += [f"# {note}" for note in column.notes]
    lines.append(f"{_key(column.name)} = {{ {inner} }}{shown}")
  lines += [
    "",
    "# A binary task has a condition, such as 'rating >= 4' or 'click == 1 and buy == 1'. A row",
    "# without a label is left out of that task; labelled = 'CONDITION' leaves out others.",
    "[tasks]",
  ]
  for name, settings in tasks.items():
    inner = ", ".join(f"{key} = {_value(value)}" for key, value in settings.items())
    lines.append(f"{_key(_task_name(name))} = {{ {inner} }}")
  lines += ["", *_split_lines(columns), ""]
  return "\n".join(lines)


def _split_lines(columns: dict[str, Column]) -> list[str]:
  group = next(
    (
      c.name
      for c in columns.values()
      if _GROUP_NAMES.fullmatch(c.name)
      and c.role in ("category", "hash", "number", "keep")
      and c.known < 0.9 * len(c.factor.codes)
    ),
    None,
  )
  lines = [
    "# method: random (by row), group (no value of a column in two splits), time (validation_from,",
    "# test_from), or files (--train, --validation and --test).",
    "[split]",
  ]
  if group:
    lines += ['method = "group"', f"column = {json.dumps(group)}"]
  else:
    lines.append('method = "random"')
  return [*lines, "validation = 0.1", "test = 0.1", "seed = 0"]


def _example(column: Column) -> str:
  """Returns a comment with the number of values and the most frequent ones."""
  order = np.argsort(-column.counts, kind="stable")[:3]
  shown = ", ".join((column.texts[i] or "(missing)")[:24] for i in order)
  shown = "".join(c if c.isprintable() else " " for c in shown)
  if column.role == "number":
    low, high = np.nanmin(column.numbers), np.nanmax(column.numbers)
    missing = float(np.isnan(column.numbers).mean())
    return f"{low:g} to {high:g}" + (f", {missing:.1%} missing" if missing else "")
  return f"{column.known:,} values: {shown}{', …' if len(column.texts) > 3 else ''}"


def _key(name: str) -> str:
  return name if _BARE_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _task_name(name: str) -> str:
  return re.sub(r"[/\\#=+,:\[\]]", "_", name)


def _value(value: object) -> str:
  if isinstance(value, str) and '"' in value and "'" not in value:
    return f"'{value}'"
  return json.dumps(value, ensure_ascii=False)
