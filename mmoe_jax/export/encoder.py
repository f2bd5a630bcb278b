"""Encoder of raw rows for an exported model; it needs NumPy alone, and is copied into each export.

  from encoder import Encoder

  encoder = Encoder("FOLDER")
  features = encoder([{"age": 39, "education": "Bachelors degree", ...}])

The arrays are bitwise those that the model was trained on. A value is a text, a number, a boolean,
None for a missing one, or, in a multi-valued column, a list. A ValueError names row and column of
a value that cannot be encoded.

Shape letters: N rows, F columns of ids, D inputs of numbers.
"""

import datetime
import json
import math
import os
import re

import numpy as np

MISSING = ""
_LARGEST = 1e30
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SPACES = " \t\r\n\v\f\xa0"
_TIME_PARTS = ("month", "day", "weekday", "hour", "minute")
# Times in ISO 8601, as training reads them.
_ISO_TIME = re.compile(
  r"(?!0000)(\d{4}(-\d{2}(-\d{2})?)?|"
  r"(\d{4}-\d{2}-\d{2}|\d{8})[T ]"
  r"(\d{2}(:\d{2}(:\d{2}(\.\d{1,9})?)?)?|\d{4}(\d{2}(\.\d{1,9})?)?)"
  r"(Z|[+-]([01]\d|2[0-3])(:?[0-5]\d)?)?)",
  re.ASCII,
)
_EPOCH = datetime.datetime(1970, 1, 1)
_MASK = (1 << 64) - 1


class Encoder:
  """Encoder of an exported model.

  Attributes:
    columns: raw columns that it reads; others are ignored.
    list_columns: those of them that are multi-valued.
  """

  def __init__(self, folder):
    """Reads `schema.json` and the vocabularies in the folder of an export."""
    with open(os.path.join(folder, "schema.json"), encoding="utf-8") as file:
      schema = json.load(file)
    self._features = schema["id_features"]
    self._numeric = schema["numeric"]
    self._missing = schema.get("missing", {})
    self._sizes, self._lookups = {}, {}
    opened = {}
    for feature in self._features:
      values = feature.get("values", ())
      if "vocabulary" in feature:
        path = feature["vocabulary"]
        if path not in opened:
          opened[path] = _LargeVocabulary(os.path.join(folder, *path.split("/")))
        lookup = opened[path]
      else:
        lookup = {value: i for i, value in enumerate(values, 1)}
      self._lookups[feature["name"]] = lookup
      count = feature.get("buckets", 0) or len(lookup)
      self._sizes[feature["name"]] = 1 + count + feature.get("has_missing", False)
    found = [c for f in self._features if f["kind"] != "cross" for c in f["sources"]]
    self.columns = list(dict.fromkeys(found + [n["name"] for n in self._numeric]))
    self.list_columns = {f["sources"][0] for f in self._features if f["kind"] == "list"}

  def __call__(self, rows):
    """Encodes rows, a list of dicts from column to value; an absent key is a missing value.

    Returns:
      `ids` (N, F) int32 and `numeric` (N, D) float32, the inputs of the exported model.
    """
    ids, numbers = {}, {}
    for feature in self._features:
      name, kind = feature["name"], feature["kind"]
      if kind == "cross":
        first, second = (ids[source][:, 0] for source in feature["sources"])
        pairs = first * self._sizes[feature["sources"][1]] + second
        found = _find(feature.get("values", ()), pairs)
      elif kind in ("bins", "log_int"):
        found = _ids_of_numbers(feature, self._numbers(rows, feature["sources"][0], numbers))
      else:
        column = feature["sources"][0]
        of_row = lambda at, f=feature, c=column: self._ids_of(f, rows[at].get(c), at)
        found = np.array([of_row(at) for at in range(len(rows))], np.int64)
      ids[name] = found.reshape(len(rows), feature.get("length", 1))
    parts = [ids[feature["name"]] for feature in self._features]
    empty = [np.zeros((len(rows), 0), np.int64)]
    return {
      "ids": np.concatenate(empty + parts, axis=1).astype(np.int32),
      "numeric": self._inputs(rows, numbers),
    }

  def _ids_of(self, feature, value, row):
    """Returns the id of a value; of a list, `length` ids, 0 for absent values."""
    kind, column = feature["kind"], feature["sources"][0]
    lookup = self._lookups[feature["name"]]
    buckets = feature.get("buckets", 0)

    def id_of(text):
      if buckets:
        return 0 if text == MISSING else _bucket_hash(text.encode()) % buckets + 1
      return lookup.get(text, 0)

    if kind in _TIME_PARTS:
      return self._id_of_time(feature, value, row)
    if kind != "list":
      return id_of(self._text(column, value))
    texts = _split(value, feature["separator"], self._missing.get(column, ()))
    known = [number for number in map(id_of, texts) if number]
    length = feature.get("length", 1)
    return (known + [0] * length)[:length]

  def _text(self, column, value):
    text = _text_of(value)
    return MISSING if text in self._missing.get(column, ()) else text

  def _id_of_time(self, feature, value, row):
    column = feature["sources"][0]
    text = self._text(column, value)
    if text == MISSING:
      return 0
    try:
      time = _parse_time(text)
    except (ValueError, OverflowError) as error:
      raise ValueError(f"row {row}, column '{column}': '{text:.80}' is not a time") from error
    part = {
      "month": time.month,
      "day": time.day,
      "weekday": time.weekday(),
      "hour": time.hour,
      "minute": time.minute,
    }[feature["kind"]]
    return self._lookups[feature["name"]].get(part, 0)

  def _numbers(self, rows, column, known):
    """Returns the numbers (N,) float64 of a column, NaN where missing."""
    if column not in known:
      known[column] = np.array(
        [self._number(row.get(column), column, at) for at, row in enumerate(rows)], np.float64
      )
    return known[column]

  def _number(self, value, column, row):
    numeric = [n for n in self._numeric if n["name"] == column]
    features = [f for f in self._features if f["sources"] == [column]]
    allows_missing = any(item.get("has_missing", False) for item in numeric + features)
    is_log = any(n.get("transform", "log1p") == "log1p" for n in numeric)
    is_log = is_log or any(f["kind"] == "log_int" for f in features)
    text = self._text(column, value)
    where = f"row {row}, column '{column}'"
    if text == MISSING:
      if allows_missing:
        return math.nan
      raise ValueError(f"{where}: must not be missing")
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not -_LARGEST <= number <= _LARGEST or (is_log and number < 0):
      bound = " >= 0" if is_log else f" up to {_LARGEST:g}"
      raise ValueError(f"{where}: '{text:.80}' is not a number{bound}")
    return number

  def _inputs(self, rows, numbers):
    """Returns the inputs (N, D): standardised, missing, and piecewise-linear."""
    raw = np.empty((len(rows), len(self._numeric)), np.float64)
    for d, feature in enumerate(self._numeric):
      raw[:, d] = self._numbers(rows, feature["name"], numbers)
    transforms = [n.get("transform", "log1p") for n in self._numeric]
    x = raw.copy()
    np.log1p(x, out=x, where=np.array([t == "log1p" for t in transforms], bool))
    for d, feature in enumerate(self._numeric):
      if transforms[d] == "quantile":
        x[:, d] = _quantiles(raw[:, d], feature["points"])
    mean = np.array([n["mean"] for n in self._numeric])
    std = np.array([n["std"] for n in self._numeric])
    standardised = ((x - mean) / std).astype(np.float32)
    has_missing = [n.get("has_missing", False) for n in self._numeric]
    edges = [n.get("edges", ()) for n in self._numeric]
    if not any(has_missing) and not any(len(e) > 1 for e in edges):
      return standardised
    is_missing = np.isnan(raw)
    standardised[is_missing] = 0.0
    inputs = [standardised, is_missing[:, has_missing].astype(np.float32)]
    inputs += [_pieces(raw[:, d], e) for d, e in enumerate(edges) if e]
    return np.concatenate(inputs, axis=1)


class _LargeVocabulary:
  """Vocabulary in arrays: a binary search for the hash of a text, then a comparison of bytes."""

  def __init__(self, path):
    with np.load(path) as arrays:
      self._hashes, self._ids = arrays["hash"], arrays["id"]
      self._ends, self._bytes = arrays["ends"], arrays["bytes"].tobytes()

  def __len__(self):
    return len(self._ids)

  def get(self, text, default):
    content = text.encode()
    hashed = _vocabulary_hash(content)
    at = int(np.searchsorted(self._hashes, np.uint64(hashed)))
    while at < len(self._hashes) and int(self._hashes[at]) == hashed:
      number = int(self._ids[at])
      if self._bytes[self._ends[number - 1] : self._ends[number]] == content:
        return number
      at += 1
    return default


def _text_of(value):
  """Returns a value as text: shortest digits of numbers, no spaces around texts."""
  if isinstance(value, str):
    if not value.isascii():
      value = value.encode("utf-8", "replace").decode()  # JSON may hold half of a character.
    return value.strip(_SPACES)
  if value is None or type(value).__name__ in ("NaTType", "NAType"):
    return MISSING
  if isinstance(value, np.floating):
    if np.isnan(value):
      return MISSING
    return repr(float(str(value))) if math.isfinite(value) else repr(float(value))
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, float):
    return MISSING if math.isnan(value) else repr(value)
  if isinstance(value, bytes):
    return value.decode("utf-8", "replace").strip(_SPACES)
  if isinstance(value, datetime.datetime):
    return value.isoformat(sep=" ")
  return str(value)


def _split(value, separator, missing):
  """Returns the texts of a multi-valued column, without missing ones."""
  if isinstance(value, (list, tuple, set, np.ndarray)):
    parts = list(value)
  else:
    text = _text_of(value)
    parts = [] if text in missing else text.split(separator)
  return [text for text in map(_text_of, parts) if text != MISSING]


def _parse_time(text):
  """Parses a time in ISO 8601, or whole seconds since 1970, as a datetime in UTC."""
  if text.removeprefix("-").isdecimal() and len(text) > 4:
    return _EPOCH + datetime.timedelta(seconds=int(text))
  if not _ISO_TIME.fullmatch(text):
    raise ValueError("must be in ISO 8601")
  if re.fullmatch(r"\d{4}(-\d{2})?", text):
    text = f"{text}-01" if "-" in text else f"{text}-01-01"
  time = datetime.datetime.fromisoformat(text)
  if time.tzinfo is not None:
    time = time.astimezone(datetime.UTC).replace(tzinfo=None)
  return time


def _ids_of_numbers(feature, x):
  values = np.asarray(feature.get("values", ()), np.float64)
  if feature["kind"] == "bins":
    found = np.searchsorted(values, x, side="right")
    missing = len(values) + 1 if feature.get("has_missing", False) else 0
    return np.where(np.isnan(x), missing, found)
  return _find(values, np.floor(np.log1p(x)))


def _find(values, x):
  """Returns the ids of numbers among sorted values, 0 for others."""
  values = np.asarray(values)
  if not len(values):
    return np.zeros(len(x), np.int64)
  at = np.minimum(np.searchsorted(values, x), len(values) - 1)
  return np.where(values[at] == x, at + 1, 0)


def _quantiles(x, points):
  points = np.asarray(points)
  distinct, first, counts = np.unique(points, return_index=True, return_counts=True)
  middle = (first + (counts - 1) / 2) / (len(points) - 1)
  return np.where(np.isnan(x), np.nan, np.interp(x, distinct, middle))


def _pieces(x, edges):
  edges = np.asarray(edges)
  share = (x[:, None] - edges[:-1]) / np.diff(edges)
  return np.nan_to_num(np.clip(share, 0, 1)).astype(np.float32)


def _bucket_hash(content):
  """Returns the hash of a text's bytes that chooses its bucket, that of pandas.util.hash_array."""
  return _scramble(_siphash(content))


def _scramble(x):
  """Returns the last steps of SplitMix64 (Steele et al., OOPSLA 2014)."""
  x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
  x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
  return x ^ (x >> 31)


def _siphash(content, key=b"0123456789123456"):
  """Returns SipHash-2-4 (Aumasson and Bernstein, 2012, https://131002.net/siphash/)."""
  k0, k1 = (int.from_bytes(key[at : at + 8], "little") for at in (0, 8))
  v = [k ^ c for k, c in zip((k0, k1, k0, k1), _SIP_CONSTANTS, strict=True)]

  def rounds(count):
    for _ in range(count):
      v[0] = (v[0] + v[1]) & _MASK
      v[2] = (v[2] + v[3]) & _MASK
      v[1] = _rotate(v[1], 13) ^ v[0]
      v[3] = _rotate(v[3], 16) ^ v[2]
      v[0] = _rotate(v[0], 32)
      v[2] = (v[2] + v[1]) & _MASK
      v[0] = (v[0] + v[3]) & _MASK
      v[1] = _rotate(v[1], 17) ^ v[2]
      v[3] = _rotate(v[3], 21) ^ v[0]
      v[2] = _rotate(v[2], 32)

  whole = len(content) // 8 * 8
  last = content[whole:].ljust(7, b"\0") + bytes([len(content) % 256])
  for at in range(0, whole + 8, 8):
    word = int.from_bytes(content[at : at + 8] if at < whole else last, "little")
    v[3] ^= word
    rounds(2)
    v[0] ^= word
  v[2] ^= 0xFF
  rounds(4)
  return v[0] ^ v[1] ^ v[2] ^ v[3]


_SIP_CONSTANTS = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)


def _rotate(x, bits):
  return ((x << bits) | (x >> (64 - bits))) & _MASK


def _vocabulary_hash(content):
  """Returns the hash of a text in a large vocabulary, from its bytes."""
  mix = lambda x: _scramble((x + 0x9E3779B97F4A7C15) & _MASK)
  hashed = mix(len(content))
  for at in range(0, len(content), 8):
    hashed = mix(hashed ^ int.from_bytes(content[at : at + 8], "little"))
  return hashed
