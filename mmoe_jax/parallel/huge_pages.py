"""Huge pages for large arrays on a CPU, whose rows are read and written in random order.

With pages of 4 KiB nearly each access to a row also misses the processor's address cache.
"""

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax

_PAGE = 1 << 21
_HUGEPAGE, _COLLAPSE = 14, 25  # Linux: MADV_HUGEPAGE, MADV_COLLAPSE (since 6.1).
_AT_ONCE = 8 * _PAGE  # Collapsing stops at the first page that fails; the next part continues.


def use_huge_pages(tree: Any, tried: set[tuple[int, int]]) -> None:
  """Moves arrays of a tree to huge pages, as far as the operating system provides them.

  Values and addresses stay. Does nothing for arrays of accelerators, and outside Linux. Each place
  in memory is tried once: where memory is fragmented, an attempt that fails is slow.

  Args:
    tree: arrays that are computed and on devices.
    tried: addresses and sizes of arrays that were tried before; those of this call are added.
  """
  madvise = _madvise()
  if madvise is None:
    return
  for array in jax.tree.leaves(tree):
    for shard in array.addressable_shards:
      if shard.device.platform == "cpu" and shard.data.nbytes >= 2 * _PAGE:
        jax.block_until_ready(shard.data)
        start = shard.data.unsafe_buffer_pointer()
        if (start, shard.data.nbytes) in tried:
          continue
        tried.add((start, shard.data.nbytes))
        first, end = -(-start // _PAGE) * _PAGE, (start + shard.data.nbytes) // _PAGE * _PAGE
        madvise(first, end - first, _HUGEPAGE)
        for part in range(first, end, _AT_ONCE):
          madvise(part, min(_AT_ONCE, end - part), _COLLAPSE)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
  """Returns the C library's madvise; None outside Linux."""
  if not sys.platform.startswith("linux"):
    return None
  function = ctypes.CDLL(None).madvise
  function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
  return function
