"""Scales of charts: from values to lengths, with ticks."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mmoe_jax.evaluation.tables import MINUS


class Scale(NamedTuple):
  """Scale of an axis.

  Attributes:
    place: function from a value to its position, 0 at the low end and 1 at the high end.
    ticks: values that are marked.
    texts: their texts.
  """

  place: Callable[[float], float]
  ticks: Sequence[float]
  texts: Sequence[str]


def linear(low: float, high: float, count: int = 5, percent: bool = False) -> Scale:
  """Returns a linear scale that contains both ends, with about `count` round ticks."""
  if not high > low:
    margin = abs(low) * 0.05 or 0.5
    low, high = low - margin, high + margin
  step = _round_step((high - low) / count)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  ticks = [i * step for i in range(first, last + 1)]
  digits = max(0, -math.floor(math.log10(step) + 1e-9))
  if percent:
    texts = [f"{100 * t:.{max(0, digits - 2)}f}%" for t in ticks]
  else:
    texts = [f"{t:,.{digits}f}" for t in ticks]
  span = ticks[-1] - ticks[0]
  return Scale(lambda v: (v - ticks[0]) / span, ticks, [text.replace("-", MINUS) for text in texts])


def fixed(low: float, high: float, ticks: Sequence[float], texts: Sequence[str]) -> Scale:
  """Returns a linear scale with given ends and ticks."""
  return Scale(lambda v: (v - low) / (high - low), ticks, texts)


def log(low: float, high: float) -> Scale:
  """Returns a logarithmic scale between round ends; values must be above 0."""
  decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
  known = [m * 10.0**e for e in decades for m in (1, 2, 5)]
  first = max(t for t in known if t <= low * (1 + 1e-9))
  last = min(t for t in known if t >= high * (1 - 1e-9) and t > first * 1.5)
  ticks = [t for t in known if first <= t <= last]
  if len(ticks) > 8:
    ticks = [t for t in ticks if f"{t:e}".startswith("1.")]
  span = math.log10(last / first)
  return Scale(lambda v: math.log10(v / first) / span, ticks, [f"{t:g}" for t in ticks])


def log_odds(low: float, high: float) -> Scale:
  """Returns a scale of probabilities by their log-odds; values outside are placed at its ends."""
  known = (1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
  below = [k for k in known if k <= max(low, known[0])]
  above = [k for k in known if k >= min(high, known[-1])]
  ends = below[-1], above[0]
  if ends[0] >= ends[1]:
    ends = known[0], known[-1]
  odds = lambda p: math.log(p / (1 - p))
  least, most = map(odds, ends)
  place = lambda p: (odds(min(max(p, ends[0]), ends[1])) - least) / (most - least)
  ticks = [k for k in known if ends[0] <= k <= ends[1]]
  return Scale(place, ticks, [f"{100 * t:g}%" for t in ticks])


def _round_step(step: float) -> float:
  """Returns 1, 2 or 5 times a power of ten, at least `step`."""
  power = 10.0 ** math.floor(math.log10(step))
  return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))
