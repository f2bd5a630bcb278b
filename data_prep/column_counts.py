"""Mergeable statistics of columns: the same for any number of parts, in any order.

Values are counted, and everything else (vocabularies, bins, means) is computed from the counts.
Numbers with more than _EXACT distinct values are counted in buckets of relative width 2^-10, as in
DDSketch (Masson et al., VLDB 2019, https://doi.org/10.14778/3352063.3352135). Sketches that
depend on the order of merging, such as KLL and t-digest, would make the schema depend on the parts.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmoe_jax.data.columns import MISSING, Factor
from mmoe_jax.data.vocabularies import hash_texts

_EXACT = 1 << 16  # Distinct numbers that are counted exactly.
_GROUP_BITS = 14  # Of a hash, that choose a group of a DistinctCounts.
_KEPT_BITS = 10  # Of the mantissa of a bucket.
_MASK = np.int64(-1) << np.int64(52 - _KEPT_BITS)


@dataclasses.dataclass(frozen=True)
class TextCounts:
  """Counts of texts.

  Attributes:
    values: distinct texts.
    counts: their counts.
  """

  values: pa.LargeStringArray
  counts: np.ndarray

  def sorted(self) -> tuple[list[str], np.ndarray]:
    """Returns the texts in ascending order, and their counts."""
    values, counts = self.sorted_array()
    return values.to_pylist(), counts

  def sorted_array(self) -> tuple[pa.Array, np.ndarray]:
    """Returns the texts in ascending order as an Arrow array, and their counts."""
    order = pc.sort_indices(self.values)  # The order of UTF-8 is that of code points.
    return self.values.take(order), self.counts[np.asarray(order)]


@dataclasses.dataclass(frozen=True)
class NumberCounts:
  """Counts of numbers.

  Attributes:
    values: ascending distinct numbers, or the ends nearest to 0 of their buckets.
    counts: their counts.
    missing: number of missing numbers.
    least: least number, infinity if there is none.
    most: largest number.
    is_exact: whether values are numbers, not buckets.
  """

  values: np.ndarray
  counts: np.ndarray
  missing: int
  least: float
  most: float
  is_exact: bool

  def moments(self, transformed: np.ndarray) -> tuple[float, float]:
    """Returns mean and standard deviation of a function of the numbers, given at `values`.

    Sums are exact before the last rounding, and so do not depend on the parts.
    """
    total = int(self.counts.sum())
    mean = math.fsum(transformed * self.counts) / total
    variance = math.fsum((transformed - mean) ** 2 * self.counts) / total
    return mean, math.sqrt(variance)

  def quantiles(self, intervals: int) -> np.ndarray:
    """Returns the quantiles i / intervals, i from 0 to `intervals`."""
    ends = np.cumsum(self.counts)
    ranks = np.linspace(0, ends[-1] - 1, intervals + 1)
    found = self.values[np.searchsorted(ends, np.floor(ranks), side="right")].copy()
    found[0], found[-1] = self.least, self.most
    return np.maximum.accumulate(found)


def count_texts(factor: Factor, rows: np.ndarray | None = None) -> TextCounts:
  """Counts the texts of a column.

  Args:
    factor: the column.
    rows: (N,) bool, the rows that count; None for all.
  """
  codes = factor.codes if rows is None else factor.codes[rows]
  counts = np.bincount(codes, minlength=len(factor.values))
  occurring = np.flatnonzero(counts)
  values = pa.array(factor.values, pa.string()).cast(pa.large_string())
  return TextCounts(values.take(pa.array(occurring)), counts[occurring])


def count_values(texts: pa.Array) -> TextCounts:
  """Counts the texts of an Arrow array."""
  counted = pc.value_counts(texts.cast(pa.large_string()))
  return TextCounts(counted.field("values"), np.asarray(counted.field("counts")))


def merge_texts(parts: Sequence[TextCounts]) -> TextCounts:
  """Adds counts of texts."""
  if len(parts) == 1:
    return parts[0]
  table = pa.table(
    {
      "value": pa.concat_arrays([part.values for part in parts]),
      "count": np.concatenate([part.counts for part in parts]),
    }
  )
  merged = table.group_by("value").aggregate([("count", "sum")])
  values = merged["value"].combine_chunks()
  values = values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
  return TextCounts(values, np.asarray(merged["count_sum"]))


@dataclasses.dataclass(frozen=True)
class DistinctCounts:
  """Estimate of the number of distinct texts, in memory that does not depend on it.

  HyperLogLog (Flajolet et al., AofA 2007), with a standard error of 0.8 %.

  Attributes:
    registers: (2^14,) uint8: of the hashes of each group, the most leading zeros plus 1.
  """

  registers: np.ndarray

  def estimate(self) -> float:
    """Returns the estimated number of distinct texts."""
    groups = len(self.registers)
    alpha = 0.7213 / (1 + 1.079 / groups)
    raw = alpha * groups**2 / np.sum(2.0 ** -self.registers.astype(np.float64))
    empty = np.count_nonzero(self.registers == 0)
    return groups * math.log(groups / empty) if raw <= 2.5 * groups and empty else float(raw)

  def shared(self, buckets: int) -> float:
    """Returns the expected share of texts whose bucket, of `buckets`, also has another text."""
    others = max(0.0, self.estimate() - 1)
    return 1.0 - (1.0 - 1.0 / buckets) ** others


def count_distinct(factor: Factor, rows: np.ndarray | None = None) -> DistinctCounts:
  """Counts the distinct texts of a column approximately; see count_texts."""
  registers = np.zeros(1 << _GROUP_BITS, np.uint8)
  values = count_texts(factor, rows).values
  hashed = hash_texts(values.filter(pc.not_equal(values, MISSING)))
  group = (hashed >> np.uint64(64 - _GROUP_BITS)).astype(np.int64)
  rest = hashed << np.uint64(_GROUP_BITS) | np.uint64(1 << (_GROUP_BITS - 1))
  # The exponent of a float is the position of its highest bit; 53 bits are not rounded.
  _, exponent = np.frexp((rest >> np.uint64(11)).astype(np.float64))
  np.maximum.at(registers, group, (54 - exponent).astype(np.uint8))
  return DistinctCounts(registers)


def merge_distinct(parts: Sequence[DistinctCounts]) -> DistinctCounts:
  """Adds estimates: that of all texts together."""
  return DistinctCounts(np.max([part.registers for part in parts], axis=0))


def count_numbers(x_N: np.ndarray) -> NumberCounts:
  """Counts numbers; NaN is missing."""
  is_missing = np.isnan(x_N)
  known = x_N[~is_missing] if is_missing.any() else x_N
  counted = pc.value_counts(pa.array(known + 0.0))  # -0.0 becomes 0.0.
  values = np.asarray(counted.field("values"))
  counts = np.asarray(counted.field("counts"))
  return _make(
    values,
    counts,
    int(is_missing.sum()),
    float(known.min(initial=math.inf)),
    float(known.max(initial=-math.inf)),
    True,
  )


def merge_numbers(parts: Sequence[NumberCounts]) -> NumberCounts:
  """Adds counts of numbers."""
  if len(parts) == 1:
    return parts[0]
  return _make(
    np.concatenate([part.values for part in parts]),
    np.concatenate([part.counts for part in parts]),
    sum(part.missing for part in parts),
    min(part.least for part in parts),
    max(part.most for part in parts),
    all(part.is_exact for part in parts),
  )


def _make(
  values: np.ndarray, counts: np.ndarray, missing: int, least: float, most: float, is_exact: bool
) -> NumberCounts:
  if is_exact:
    values, counts = _add_up(values, counts)
    is_exact = len(values) <= _EXACT
  if not is_exact:
    values, counts = _add_up((values.view(np.int64) & _MASK).view(np.float64) + 0.0, counts)
  return NumberCounts(values, counts, missing, least, most, is_exact)


def _add_up(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  distinct, codes = np.unique(values, return_inverse=True)
  return distinct, np.bincount(codes, weights=counts, minlength=len(distinct)).astype(np.int64)
