"""Docstrings of this project as reStructuredText, before napoleon reads their sections.

They are plain text with `code` in single backquotes and indented drawings, and formulas have
characters with a meaning in reStructuredText. Here these are escaped.
"""

import re
from collections.abc import Iterator
from typing import Any

_SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|References):$")
_CODE = re.compile(r"`+([^`]+)`+")
_SPECIAL = re.compile(r"[*|\\]|(?<=\w)_(?!\w)")
_ITEM = re.compile(r"\s*([-*]|\d+\.) ")


def to_restructured_text(
  app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
  """Rewrites the lines of a docstring in place."""
  del app, what, name, obj, options
  lines[:] = convert(lines)


def convert(lines: list[str]) -> list[str]:
  """Returns the lines as reStructuredText: code as literals, other special characters escaped."""
  converted: list[str] = []
  lines = list(_list_hanging(lines))
  in_section = in_drawing = in_list = False
  for i, line in enumerate(lines):
    is_indented, is_blank = line.startswith(" "), not line.strip()
    if not is_blank and not is_indented:
      in_section, in_drawing = bool(_SECTION.match(line)), False
      in_list = bool(_ITEM.match(line))
    follows_blank = i > 0 and not lines[i - 1].strip()
    if is_indented and follows_blank and not (in_section or in_list or in_drawing):
      in_drawing = True
      converted += ["::", ""]
    converted.append(line if in_drawing or is_blank else _escape(line))
  return converted


def _list_hanging(lines: list[str]) -> Iterator[str]:
  """Makes a paragraph of entries with hanging indents, outside of sections, a list."""
  in_section = False
  for i, line in enumerate(lines):
    if line.strip() and not line.startswith(" "):
      in_section = bool(_SECTION.match(line))
    paragraph = _paragraph(lines, i)
    hangs = not paragraph[0].startswith(" ") and any(p.startswith(" ") for p in paragraph)
    if in_section or not line.strip() or _ITEM.match(paragraph[0]) or not hangs:
      yield line
    else:
      yield f"  {line.strip()}" if line.startswith(" ") else f"- {line}"


def _paragraph(lines: list[str], i: int) -> list[str]:
  """Returns the lines around line i, up to blank ones; it alone if it is blank."""
  start = end = i
  while start > 0 and lines[i].strip() and lines[start - 1].strip():
    start -= 1
  while end + 1 < len(lines) and lines[i].strip() and lines[end + 1].strip():
    end += 1
  return lines[start : end + 1]


def _escape(line: str) -> str:
  """Escapes a line of text; code becomes a literal."""
  head = item[0] if (item := _ITEM.match(line)) else ""
  parts, end = [], len(head)
  for code in _CODE.finditer(line, end):
    parts += [_SPECIAL.sub(r"\\\g<0>", line[end : code.start()]), f"``{code[1]}``"]
    end = code.end()
    if line[end : end + 1].isalnum():
      parts.append("\\ ")
  return head + "".join(parts) + _SPECIAL.sub(r"\\\g<0>", line[end:])


def is_skipped(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
  """Skips members that libraries add: fields of tuples, methods of data classes."""
  del app, what, skip, options
  is_field = type(obj).__name__ == "_tuplegetter"
  module = getattr(obj, "__module__", "") or ""
  is_foreign = name == "__new__" or module.split(".")[0] in ("flax", "dataclasses")
  return True if is_field or is_foreign else None
