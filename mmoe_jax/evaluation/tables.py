"""Tables as Markdown and CSV, and the formats of their numbers."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

MINUS = "\u2212"
DASH = "\u2013"


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]], numeric: bool = True) -> str:
  """Formats a Markdown table.

  Args:
    header: names of the columns.
    rows: cells of each row.
    numeric: whether all columns but the first are aligned to the right.
  """
  rule = ["---", *["---:" if numeric else "---"] * (len(header) - 1)]
  escaped = [[str(cell).replace("|", r"\|") for cell in cells] for cells in (header, *rows)]
  lines = [escaped[0], rule, *escaped[1:]]
  return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
  """Formats rows as CSV, with the keys of the first row as header; None becomes an empty cell."""
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()


def number(value: float | None, digits: int = 4) -> str:
  """Formats a number with that many decimals; None becomes a dash."""
  return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 4) -> str:
  """Formats a difference with its sign; None becomes a dash."""
  return DASH if value is None else f"{value:+.{digits}f}".replace("-", MINUS)


def plus_minus(half: float | None, digits: int = 4) -> str:
  """Formats the half width of an interval: ` ± 0.0012`, ` ± <0.0001`; empty for None."""
  if half is None:
    return ""
  least = 10.0**-digits
  return f" ± <{least:.{digits}f}" if 0 < half < least / 2 else f" ± {half:.{digits}f}"


def half(value: float | None, digits: int = 5) -> str:
  """Formats the half width of an interval in a separate cell; None becomes a dash."""
  return plus_minus(value, digits).strip() or DASH
