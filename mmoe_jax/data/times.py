"""Times in raw rows: texts in ISO 8601, seconds since 1970, or Arrow's times.

Shape letters: N rows.
"""

import re

import numpy as np
import pandas as pd

from mmoe_jax.data.columns import MISSING, Table

# Times in ISO 8601, as far as pandas and the encoder of exports read them alike. Of others, pandas
# reads `now`, and `-1` as a year.
_ISO_TIME = re.compile(
  r"(?!0000)(\d{4}(-\d{2}(-\d{2})?)?|"
  r"(\d{4}-\d{2}-\d{2}|\d{8})[T ]"
  r"(\d{2}(:\d{2}(:\d{2}(\.\d{1,9})?)?)?|\d{4}(\d{2}(\.\d{1,9})?)?)"
  r"(Z|[+-]([01]\d|2[0-3])(:?[0-5]\d)?)?)",
  re.ASCII,
)
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799  # Of the years 1 to 9999.


def times_of(table: Table, column: str) -> np.ndarray:
  """Parses timestamps as (N,) datetime64[s], NaT where missing.

  Texts are in ISO 8601, or whole numbers of seconds since 1970; times with a zone are in UTC.

  Raises:
    UserError: naming the line of another value.
  """
  typed = table.times(column)
  if typed is not None:
    return typed
  factor = table.factor(column)
  texts = factor.texts()
  is_number = [text.removeprefix("-").isdecimal() and len(text) > 4 for text in texts]
  parsed = pd.to_datetime(
    pd.Series([_in_whole_seconds(text) for text in texts], dtype=object),
    format="ISO8601",
    utc=True,
    errors="coerce",
  )
  values = parsed.dt.tz_convert(None).to_numpy().astype("datetime64[s]")
  for i, (text, number) in enumerate(zip(texts, is_number, strict=True)):
    if number and _FIRST_SECOND <= int(text) <= _LAST_SECOND:
      values[i] = np.datetime64(int(text), "s")
  is_bad = np.isnat(values) & np.array([text != MISSING for text in texts], bool)
  if is_bad[factor.codes].any():
    table.refuse(
      column,
      is_bad[factor.codes],
      lambda row: (
        f"'{texts[factor.codes[row]]:.80}' is not a time; must be in ISO 8601, such as 2026-01-31 "
        "or 2026-01-31 18:30:00, or seconds since 1970"
      ),
    )
  return values[factor.codes]


def _in_whole_seconds(text: str) -> str | None:
  """Returns a time in ISO 8601 without its fraction; None for another text."""
  return re.sub(r"\.\d+", "", text) if _ISO_TIME.fullmatch(text) else None
