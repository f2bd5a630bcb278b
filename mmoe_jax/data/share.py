"""Share of the prepared files that one of several hosts reads."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Share(NamedTuple):
  """Share of the work of reading that a host has; all hosts do the same in the same order.

  Attributes:
    index: number of this host.
    count: number of hosts.
    gather: returns the rows of all hosts, first those of host 0, from an array of each host; the
      arrays have the same shape.
  """

  index: int
  count: int
  gather: Callable[[np.ndarray], np.ndarray]

  def rows(self, count: int, at_a_time: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yields ranges [start, end) of that many rows: of all hosts, and this host's part.

    Args:
      count: number of rows.
      at_a_time: number of rows that a host reads at a time.
    """
    for start in range(0, count, at_a_time * self.count):
      first = min(count, start + self.index * at_a_time)
      end = min(count, start + self.count * at_a_time)
      yield (start, end), (first, min(count, first + at_a_time))


WHOLE = Share(0, 1, lambda array: array)
