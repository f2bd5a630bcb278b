"""Devices of a run: they share each batch (`jax.pmap`), and maybe tables (`jax.shard_map`)."""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmoe_jax.parallel.huge_pages import use_huge_pages
from mmoe_jax.parallel.programs import compile_for, cpu_options, jit, jit_once

AXIS = "devices"


class Devices:
  """Devices of a run: places arrays on them and compiles an epoch for them.

  Attributes:
    count: number of devices.
    devices: the devices.
    axis_name: AXIS for several devices, None for one.
  """

  def __init__(self, count: int):
    """Takes the first `count` devices of the job."""
    self.count = count
    self.axis_name = AXIS if count > 1 else None
    self.devices = jax.devices()[:count]
    self._mesh = Mesh(np.array(self.devices), (AXIS,))

  def memory(self) -> int:
    """Returns the memory of a device in bytes; 0 if it is not known."""
    if self.devices[0].platform == "cpu":  # Devices of a CPU share the machine's.
      return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // self.count
    return (self.devices[0].memory_stats() or {}).get("bytes_limit", 0)

  def replicate(self, tree: Any) -> Any:
    """Places a tree of arrays on every device."""
    return self._put(tree, PartitionSpec())

  def shard(self, tree: Any, axis: int = 0) -> Any:
    """Shards one axis of every array over the devices, which must divide it."""
    return self._put(tree, PartitionSpec(*[None] * axis, AXIS))

  def _put(self, tree: Any, spec: PartitionSpec) -> Any:
    where = NamedSharding(self._mesh, spec) if self.count > 1 else self.devices[0]

    def put(a: Any) -> Any:
      if jax.process_count() > 1 and isinstance(a, np.ndarray):
        # device_put requires equal arrays on all hosts, and NaN labels are unequal.
        return jax.make_array_from_callback(a.shape, where, lambda index: a[index])
      return jax.device_put(a, where)

    return jax.tree.map(put, tree)

  def local_ranges(self, rows: int) -> list[tuple[int, int]]:
    """Returns the ranges [start, end) of that many rows that this host reads, for `gather`."""
    if jax.process_count() == 1:
      return [(0, rows)]
    share = math.ceil(rows / self.count)
    here = jax.process_index()
    numbers = [i for i, device in enumerate(self.devices) if device.process_index == here]
    return [(min(rows, i * share), min(rows, (i + 1) * share)) for i in numbers]

  def gather(self, tree: Any, rows: int) -> Any:
    """Places arrays of that many rows on every device, from each host's rows.

    All hosts must call it in the same order.

    Args:
      tree: arrays of the rows in `local_ranges`, one range after another.
      rows: number of rows of all hosts.
    """
    if jax.process_count() == 1:
      return self.replicate(tree)
    share, ranges = math.ceil(rows / self.count), self.local_ranges(rows)
    where = NamedSharding(self._mesh, PartitionSpec(AXIS))
    local = [device for device in self.devices if device.process_index == jax.process_index()]

    def shard(a: np.ndarray) -> jax.Array:
      parts, start = [], 0
      for device, (first, end) in zip(local, ranges, strict=True):
        part = np.zeros((share, *a.shape[1:]), a.dtype)
        part[: end - first] = a[start : start + end - first]
        parts.append(jax.device_put(part, device))
        start += end - first
      shape = (share * self.count, *a.shape[1:])
      return jax.make_array_from_single_device_arrays(shape, where, parts)

    everywhere = NamedSharding(self._mesh, PartitionSpec())
    first_rows = jax.jit(lambda t: jax.tree.map(lambda a: a[:rows], t), out_shardings=everywhere)
    return first_rows(jax.tree.map(shard, tree))

  def init(self, init: Callable[..., Any], spec: Any, *arguments: Any) -> Any:
    """Returns the results of `init`, on every device or sharded.

    Args:
      init: a pure function.
      spec: None to place all results on every device; otherwise a tree like the results, with
        whether each leaf is sharded on its first axis. Each device then computes its shard.
      *arguments: of `init`.
    """
    if spec is None:
      return self.replicate(jit_once(init)(*arguments))
    # Optimised: large tables are one operation then, without further arrays of their size.
    if self.count == 1:
      return self.replicate(jit(init)(*arguments))
    where = jax.tree.map(lambda p: NamedSharding(self._mesh, p), _partition(spec))
    compiler_options = cpu_options() or None
    return jax.jit(init, out_shardings=where, compiler_options=compiler_options)(*arguments)

  def compile(
    self, epoch: Callable[..., Any], state: Any, rows: Any, key: Any, spec: Any = None
  ) -> Callable:
    """Compiles `epoch(state, rows, key)` for all devices, which share each batch.

    Args:
      epoch: pure function of one device; under several, AXIS is its device axis.
      state: arguments or their shapes; the state is donated in each call.
      rows: the same on all devices.
      key: the same on all devices.
      spec: None, or, for a state with large tables, a tree like it, with whether each leaf is
        sharded on its first axis.

    Returns:
      A function of (state, rows, key) with the results of `epoch`.
    """
    if self.count == 1:
      compiled = compile_for(jax.jit(epoch, donate_argnums=0), state, rows, key)
      return compiled if spec is None else _with_huge_pages(compiled)
    if spec is not None and any(jax.tree.leaves(spec)):
      return self._compile_sharded(epoch, state, rows, key, _partition(spec))
    # The mean of gradients makes results equal on all devices, so out_axes is None.
    mapped = jax.pmap(
      lambda state, rows, key, device: epoch(state, rows, key),
      axis_name=AXIS,
      in_axes=(None, None, None, 0),  # pmap needs one mapped argument.
      out_axes=None,
      donate_argnums=0,
      devices=self.devices,
    )
    device = self.shard(np.arange(self.count, dtype=np.int32))
    compiled = compile_for(mapped, state, rows, key, device)
    train = lambda state, rows, key: compiled(state, rows, key, device)
    return train if spec is None else _with_huge_pages(train)

  def _compile_sharded(
    self, epoch: Callable[..., Any], state: Any, rows: Any, key: Any, specs: Any
  ) -> Callable:
    """Compiles an epoch for a state whose tables are sharded: `shard_map` for `pmap`."""
    every = PartitionSpec()
    # Several hosts place arrays of numbers, but no keys.
    place_key = lambda key: self.replicate(np.asarray(jax.random.key_data(key)))
    mapped = jax.shard_map(
      lambda state, rows, key_data: epoch(state, rows, jax.random.wrap_key_data(key_data)),
      mesh=self._mesh,
      in_specs=(specs, every, every),
      out_specs=(specs, every),
      check_vma=False,  # Collectives make the results equal, which it cannot see.
    )
    program = compile_for(jax.jit(mapped, donate_argnums=0), state, rows, place_key(key))
    return _with_huge_pages(lambda state, rows, key: program(state, rows, place_key(key)))


def _with_huge_pages(epoch: Callable[..., Any]) -> Callable[..., Any]:
  """Returns an epoch that first moves its state to huge pages; later calls find it there."""
  tried: set[tuple[int, int]] = set()

  def train(state: Any, rows: Any, key: Any) -> Any:
    use_huge_pages(state, tried)
    return epoch(state, rows, key)

  return train


def _partition(spec: Any) -> Any:
  """Returns the PartitionSpec of each leaf, from whether its first axis is sharded."""
  return jax.tree.map(lambda sharded: PartitionSpec(AXIS) if sharded else PartitionSpec(), spec)
