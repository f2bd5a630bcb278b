"""Tables as Markdown and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

MINUS = "\u2212"
NOTHING = "\u2013"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table; its first column is of words, the others are of numbers."""
  rule = ["---", *["---:"] * (len(header) - 1)]
  return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
  """Rows as CSV, the keys of the first as header; what is None stays empty."""
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()


def number(value: float | None, digits: int = 4) -> str:
  """A number with so many decimals; a dash for none."""
  return NOTHING if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 4) -> str:
  """A difference with its sign; a dash for none."""
  return NOTHING if value is None else f"{value:+.{digits}f}".replace("-", MINUS)


def plus_minus(half: float | None, digits: int = 4) -> str:
  """The half width of an interval: ` ± 0.0012`, ` ± <0.0001`, or nothing where it is not known."""
  if half is None:
    return ""
  least = 10.0**-digits
  return f" ± <{least:.{digits}f}" if 0 < half < least / 2 else f" ± {half:.{digits}f}"


def half(value: float | None, digits: int = 5) -> str:
  """The half width of an interval in a cell of its own; a dash for none."""
  return plus_minus(value, digits).strip() or NOTHING
