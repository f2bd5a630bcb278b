"""Raw values: their text, and their number.

See columns.py for the rules.
"""

import datetime
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

MISSING = ""
LARGEST = 1e30  # Models compute in float32, where much larger numbers are infinite.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
SPACES = " \t\r\n\v\f\xa0"


def text_of(value: Any) -> str:
  """Returns a value as text, see the module's docstring."""
  if isinstance(value, str):
    if not value.isascii():
      value = value.encode("utf-8", "replace").decode()  # JSON may hold half of a character.
    return value.strip(SPACES)
  if value is None or value is pd.NaT or value is pd.NA:
    return MISSING
  if isinstance(value, np.generic):
    if isinstance(value, np.floating):
      return MISSING if np.isnan(value) else _float_text(str(value), float(value))
    value = value.item()
  if isinstance(value, float):
    return MISSING if math.isnan(value) else repr(value)
  if isinstance(value, bytes):
    return value.decode("utf-8", "replace").strip(SPACES)
  if isinstance(value, datetime.datetime):
    return value.isoformat(sep=" ")
  return str(value)


def _float_text(shortest: str, value: float) -> str:
  """Returns the text of a float32: its shortest digits in the notation of Python's floats."""
  return repr(float(shortest)) if math.isfinite(value) else repr(value)


def parse_texts(texts: list[str] | pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
  """Parses texts as float64, correctly rounded.

  Returns:
    The numbers, NaN for missing ones, and whether each text is a finite number or missing.
  """
  if not isinstance(texts, list):
    try:
      known = pc.if_else(pc.equal(texts, MISSING), pa.scalar(None, pa.string()), texts)
      parsed = known.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
      good = np.isfinite(parsed) | np.asarray(pc.is_null(known))
      return parsed, good
    except pa.ArrowInvalid:
      texts = texts.to_pylist()
  is_number = [bool(_NUMBER.fullmatch(text)) for text in texts]
  parsed = np.array(
    [float(t) if is_one else math.nan for t, is_one in zip(texts, is_number, strict=True)]
  )
  good = np.array([one or t == MISSING for t, one in zip(texts, is_number, strict=True)], bool)
  return parsed, good & ~np.isinf(parsed)


def numbers_of_array(array: pa.Array) -> np.ndarray:
  """Converts an array of numbers or booleans to float64, NaN where null.

  Raises:
    ArrowException: for an array of anything else.
  """
  if pa.types.is_dictionary(array.type):
    array = array.dictionary_decode()
  if pa.types.is_float32(array.type) or pa.types.is_float16(array.type):
    # The decimals that the number was most likely written with, as a CSV file would hold them.
    values = array.to_numpy(zero_copy_only=False)
    distinct, codes = np.unique(values, return_inverse=True)
    parsed = np.array([float(str(v)) for v in distinct], np.float64)
    return parsed[codes]
  if pa.types.is_boolean(array.type):
    array = array.cast(pa.int8())
  if pa.types.is_temporal(array.type):
    raise pa.ArrowInvalid("a time is not a number")
  array = array.cast(pa.float64(), safe=False)
  return array.to_numpy(zero_copy_only=False).astype(np.float64)
