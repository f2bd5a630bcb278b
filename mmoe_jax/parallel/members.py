"""Members of a population on devices: one program per device."""

import concurrent.futures
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmoe_jax.errors import require
from mmoe_jax.parallel.devices import AXIS
from mmoe_jax.parallel.hosts import max_over_hosts
from mmoe_jax.parallel.programs import compile_for, cpu_options, jit_once

Array = jax.Array


class Members:
  """Members of a population, sharded over devices: several per device, one after another.

  A tree of (M, …) arrays becomes one of (padded, …) arrays, sharded over the first axis. Padding
  repeats the last member. Of several hosts, all use the same number of devices, and each trains the
  members on its devices; all hosts must call `shard`, `unshard` and `init` in the same order.

  Attributes:
    count: number of members M.
    devices: number of devices that they are sharded over.
    used: those devices, of all hosts.
    padded: M, rounded up to a multiple of `devices`.
  """

  def __init__(self, count: int, devices: int = 0):
    """Shards `count` members over at most `devices` devices (0: all).

    Raises:
      UserError: if there are fewer devices, or for fewer than all devices of several hosts.
    """
    hosts = jax.process_count()
    available = -int(max_over_hosts(np.array(-jax.local_device_count())))
    require(
      hosts == 1 or devices == 0,
      f"config.train.devices = {devices}: several hosts train on all their devices; set 0",
    )
    require(
      0 <= devices <= available,
      f"config.train.devices = {devices}: must be from 0 to {available}, the number of devices",
    )
    self.count = count
    per_host = min(math.ceil(count / hosts), devices or available)
    self.devices = hosts * per_host
    self._per_device = math.ceil(count / self.devices)
    self.padded = self._per_device * self.devices
    self.used = [d for host in range(hosts) for d in jax.local_devices(host)[:per_host]]
    self._local = jax.local_devices()[:per_host]
    self._mesh = Mesh(np.array(self.used), (AXIS,))

  def shard(self, tree: Any) -> Any:
    """Places (M, …) arrays on the devices of their members."""
    padding = self.padded - self.count

    def pad(a: Any) -> np.ndarray:
      a = np.asarray(a)
      return np.concatenate([a, np.repeat(a[-1:], padding, 0)]) if padding else a

    where = NamedSharding(self._mesh, PartitionSpec(AXIS))
    if jax.process_count() == 1:
      return jax.device_put(jax.tree.map(pad, tree), where)
    put = lambda a: jax.make_array_from_callback(a.shape, where, lambda index: a[index])
    return jax.tree.map(lambda a: put(pad(a)), tree)

  def unshard(self, tree: Any) -> Any:
    """Fetches (M, …) arrays of all hosts to each of them: the inverse of `shard`."""
    if jax.process_count() > 1:
      tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(lambda a: a[: self.count], jax.device_get(tree))

  def replicate(self, tree: Any) -> Any:
    """Places arrays that all members use on every device."""
    mesh = Mesh(np.array(self._local), (AXIS,))  # Each host places the arrays on its devices.
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))

  def local_ranges(self, rows: int) -> list[tuple[int, int]]:
    """Returns the ranges of that many rows that this host reads: all, for any of its members."""
    return [(0, rows)]

  def gather(self, tree: Any, rows: int) -> Any:
    """Places arrays of that many rows, which `local_ranges` names, on every device."""
    del rows
    return self.replicate(tree)

  def init(self, init: Callable[..., Any], arguments: Iterable[tuple]) -> Any:
    """Returns the results of `init` for each member's arguments, sharded.

    Members are initialised one after another, by the program of a single run. A vmapped init rounds
    differently; training amplifies that to the third digit of the loss.
    """
    init = jit_once(init)
    states = [jax.device_get(init(*each)) for each in arguments]
    return self.shard(jax.tree.map(lambda *a: np.stack(a), *states))

  def compile(
    self,
    function: Callable[..., Any],
    state: Any,
    member: Any,
    shared: Any,
    at_once: int = 0,
  ) -> Callable:
    """Compiles `function(state, member, shared)`, written for one member, for all members.

    Args:
      function: a pure function.
      state: sharded arrays (padded, …), donated in each call.
      member: further sharded arrays.
      shared: arrays on every device, the same for all members.
      at_once: number of members per device that share each operation (`vmap`), before the next
        ones follow (`scan`). 0 chooses: 1 on a CPU, which is fastest there, and on an accelerator
        as many as its memory holds.

    Returns:
      A function of (state, member, shared) with the results of `function`, sharded.
    """
    arguments = self._parts((state, member, shared))
    if at_once == 0:
      at_once = 1
      limit = (self._local[0].memory_stats() or {}).get("bytes_limit")
      if limit:
        program = compile_for(self._mapped(function, 1), *arguments[0])
        at_once = members_at_once(program.memory_analysis(), limit, self._per_device)
    # One program per device: XLA rounds a joint program differently from that of a single run,
    # and members would not be bitwise identical to it.
    mapped = self._mapped(function, at_once)
    lowered = [mapped.lower(*part) for part in arguments]
    options = cpu_options() or None
    with concurrent.futures.ThreadPoolExecutor(len(self._local)) as pool:
      programs = list(pool.map(lambda one: one.compile(compiler_options=options), lowered))

    def call(*arguments: Any) -> Any:
      # Calls are asynchronous, so the devices work in parallel.
      outputs = [
        program(*part) for program, part in zip(programs, self._parts(arguments), strict=True)
      ]
      return jax.tree.map(self._join, *outputs)

    return call

  def _mapped(self, function: Callable[..., Any], at_once: int) -> Any:
    def all_members(state: Any, member: Any, shared: Any) -> Any:
      batch_size = None if at_once == 1 else min(at_once, self._per_device)
      one_member = lambda pair: function(*pair, shared)
      return jax.lax.map(one_member, (state, member), batch_size=batch_size)

    return jax.jit(all_members, donate_argnums=0)

  def _parts(self, tree: Any) -> list[Any]:
    """Returns the part of a tree that each device holds."""
    leaves, structure = jax.tree.flatten(tree)
    shards = [[shard.data for shard in a.addressable_shards] for a in leaves]
    return [structure.unflatten(part[d] for part in shards) for d in range(len(self._local))]

  def _join(self, *parts: Array) -> Array:
    """Returns the sharded array whose parts (members per device, …) the devices hold."""
    shape = (self.padded, *parts[0].shape[1:])
    sharding = NamedSharding(self._mesh, PartitionSpec(AXIS))
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def members_at_once(analysis: Any, limit: int, members: int) -> int:
  """Returns how many members of a device can share an operation within its memory.

  Args:
    analysis: `memory_analysis()` of the program that takes one member at a time: its temporary
      arrays are those of one member, its arguments those of all.
    limit: memory of the device, bytes.
    members: number of members on the device.

  Raises:
    UserError: if not even the members' states and data fit.
  """
  held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
  free = 0.8 * limit - held
  require(
    free > analysis.temp_size_in_bytes,
    f"{members} members per device need {held + analysis.temp_size_in_bytes:,} of its {limit:,} "
    "bytes; train fewer in one population",
  )
  return int(min(members, free // max(1, analysis.temp_size_in_bytes)))
