"""The only room that knows devices and hosts: `jax.pmap`, a jit a device, `jax.distributed`.

The rest of the code is written for one device. What must differ under several takes an
`axis_name`, and None means one device: a plain gradient, no collective.
"""

import concurrent.futures
import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmoe_jax.errors import require

Array = jax.Array

AXIS = "devices"
# What makes a CPU faster at these sizes (benchmarks/README.md): a thread pool costs more than it
# gives, YNNPACK's matrix products are slower than Eigen's, and AVX-512 is not used by default.
_CPU_OPTIONS = {
  "xla_cpu_multi_thread_eigen": False,
  "xla_cpu_experimental_ynn_fusion_type": "",
  "xla_cpu_prefer_vector_width": 512,
}


def initialize() -> None:
  """Joins the hosts of a job, where the environment says that there are several.

  It reads the variables that JAX and cluster managers set (`JAX_COORDINATOR_ADDRESS` with
  `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; TPU pods and Slurm say `MMOE_MULTIHOST=1` and let
  JAX find out the rest). Must come before any other use of JAX.
  """
  if os.environ.get("JAX_COORDINATOR_ADDRESS"):
    numbers = {name: os.environ.get(name, "") for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")}
    for name, value in numbers.items():
      require(
        value.isdigit(), f"${name} is '{value}'; $JAX_COORDINATOR_ADDRESS needs a number there"
      )
    jax.distributed.initialize(
      num_processes=int(numbers["JAX_NUM_PROCESSES"]), process_id=int(numbers["JAX_PROCESS_ID"])
    )
  elif os.environ.get("MMOE_MULTIHOST") == "1":
    jax.distributed.initialize()


def use_all_cores() -> None:
  """Makes a device of every CPU core, where the CPU is what JAX runs on.

  A population then trains on all of them, a share of the members on each. It must come before any
  other use of JAX; later it changes nothing, and there are as many devices as there are.
  """
  if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
    return
  with contextlib.suppress(RuntimeError):  # JAX has started already.
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def is_first_host() -> bool:
  """Whether this process writes the files and speaks to the user."""
  return jax.process_index() == 0


def device_count(wanted: int, batch_size: int) -> int:
  """Checks the number of devices that a run asks for.

  Args:
    wanted: how many devices; 0 for all.
    batch_size: rows of a step, over all devices.

  Raises:
    UserError: when there are not as many, or when they do not divide the batch.
  """
  there = jax.device_count()
  require(0 <= wanted <= there, f"config.train.devices is {wanted}; there are {there}")
  count = wanted or there
  require(
    jax.process_count() == 1 or count == there,
    f"config.train.devices is {wanted}; several hosts train on all their {there} devices",
  )
  require(
    batch_size % count == 0,
    f"config.train.batch_size is {batch_size}, which {count} devices do not divide",
  )
  return count


class Devices:
  """The devices of a run: puts arrays on them and compiles an epoch for them.

  Attributes:
    count: number of devices.
    devices: the devices.
    axis_name: AXIS with several devices, None with one.
  """

  def __init__(self, count: int):
    self.count = count
    self.axis_name = AXIS if count > 1 else None
    self.devices = jax.devices()[:count]
    self._mesh = Mesh(np.array(self.devices), (AXIS,))

  def replicate(self, tree: Any) -> Any:
    """Puts a tree of arrays on every device."""
    return self._put(tree, PartitionSpec())

  def spread(self, tree: Any, axis: int = 0) -> Any:
    """Spreads an axis of every array over the devices, which must divide it."""
    return self._put(tree, PartitionSpec(*[None] * axis, AXIS))

  def _put(self, tree: Any, spec: PartitionSpec) -> Any:
    where = NamedSharding(self._mesh, spec) if self.count > 1 else self.devices[0]

    def put(a: Any) -> Any:
      if jax.process_count() > 1 and isinstance(a, np.ndarray):
        # device_put compares the hosts' arrays first, and a missing label, NaN, equals nothing.
        return jax.make_array_from_callback(a.shape, where, lambda index: a[index])
      return jax.device_put(a, where)

    return jax.tree.map(put, tree)

  def compile(self, epoch: Callable[..., Any], state: Any, data: Any, key: Any) -> Callable:
    """Compiles `epoch(state, data, key, shard)`, each device being a shard of every batch.

    Args:
      epoch: a pure function of one device's share; `shard` is its number.
      state: donated at each call, and returned anew.
      data, key: the same on all devices.

    Returns:
      A function of (state, data, key) giving what `epoch` gives.
    """
    if self.count == 1:
      mapped = jax.jit(epoch, donate_argnums=0)
      shard = np.int32(0)
    else:
      # State and data are replicated and so is what comes out (the gradient's mean makes it so).
      mapped = jax.pmap(
        epoch,
        axis_name=AXIS,
        in_axes=(None, None, None, 0),
        out_axes=None,
        donate_argnums=0,
        devices=self.devices,
      )
      shard = np.arange(self.count, dtype=np.int32)
    shard = jax.device_put(shard, self.devices[0]) if self.count == 1 else self.spread(shard)
    compiled = _compile(mapped, state, data, key, shard)
    return lambda state, data, key: compiled(state, data, key, shard)


class Members:
  """The members of a population, spread over devices: so many on each, one after another.

  A tree of (M, …) becomes one of (padded, …), its first axis spread over the devices; the last
  member stands in for those that are lacking.

  Attributes:
    count: number of members M.
    devices: how many devices share them.
    padded: M, rounded up to what the devices divide.
  """

  def __init__(self, count: int, devices: int = 0):
    """Spreads `count` members over at most `devices` devices (0: all of this process)."""
    require(jax.process_count() == 1, "a population trains on one host; give each host its own")
    there = jax.local_device_count()
    require(0 <= devices <= there, f"config.train.devices is {devices}; there are {there}")
    self.count = count
    self.devices = min(count, devices or there)
    self._each = math.ceil(count / self.devices)
    self.padded = self._each * self.devices
    self._devices = jax.local_devices()[: self.devices]
    self._mesh = Mesh(np.array(self._devices), (AXIS,))

  def spread(self, tree: Any) -> Any:
    """Puts (M, …) arrays on the devices of their members."""
    lacking = self.padded - self.count

    def pad(a: Any) -> np.ndarray:
      a = np.asarray(a)
      return np.concatenate([a, np.repeat(a[-1:], lacking, 0)]) if lacking else a

    return jax.device_put(jax.tree.map(pad, tree), NamedSharding(self._mesh, PartitionSpec(AXIS)))

  def share(self, tree: Any) -> Any:
    """Puts arrays that all members use on every device."""
    return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

  def start(self, init: Callable[..., Any], arguments: Iterable[tuple]) -> Any:
    """What `init` gives for the arguments of each member, spread.

    One after another, by the program that a run alone starts with: mapped over members, it would be
    rounded otherwise, and what training makes of a last bit is seen in the third digit of a loss.
    """
    init = jit_once(init)
    states = [jax.device_get(init(*each)) for each in arguments]
    return self.spread(jax.tree.map(lambda *a: np.stack(a), *states))

  def gather(self, tree: Any) -> Any:
    """The inverse of `spread`: (M, …) arrays on the host."""
    return jax.tree.map(lambda a: a[: self.count], jax.device_get(tree))

  def compile(
    self,
    function: Callable[..., Any],
    state: Any,
    member: Any,
    shared: Any,
    at_once: int = 0,
  ) -> Callable:
    """Compiles `function(state, member, shared)`, written for one member, for all of them.

    Args:
      function: pure; `shared` is the same for all members.
      state: spread over devices; donated at each call.
      member: further arrays of each member, spread too.
      shared: arrays on every device.
      at_once: how many members of a device share each operation (`vmap`), the others follow
        (`scan`); 0 chooses: on a CPU one, which is fastest there (benchmarks/README.md), on
        an accelerator as many as its memory holds.

    Returns:
      A function of (state, member, shared) giving what `function` gives, spread.
    """
    arguments = self._parts((state, member, shared))
    if at_once == 0:
      at_once = 1
      limit = (self._devices[0].memory_stats() or {}).get("bytes_limit")
      if limit:
        one = _compile(self._mapped(function, 1), *arguments[0])
        at_once = members_at_once(one.memory_analysis(), limit, self._each)
    # A program for each device and none for all together, which XLA would round in other places
    # than it does for a run alone: then a member would not be its run.
    mapped = self._mapped(function, at_once)
    lowered = [mapped.lower(*each) for each in arguments]
    options = cpu_options() or None
    with concurrent.futures.ThreadPoolExecutor(self.devices) as pool:
      programs = list(pool.map(lambda one: one.compile(compiler_options=options), lowered))

    def call(*arguments: Any) -> Any:
      # Calls return at once, so that the devices work side by side.
      outputs = [
        program(*part) for program, part in zip(programs, self._parts(arguments), strict=True)
      ]
      return jax.tree.map(self._join, *outputs)

    return call

  def _mapped(self, function: Callable[..., Any], at_once: int) -> Any:
    def every(state: Any, member: Any, shared: Any) -> Any:
      each = lambda pair: function(*pair, shared)
      batch = None if at_once == 1 else min(at_once, self._each)
      return jax.lax.map(each, (state, member), batch_size=batch)

    return jax.jit(every, donate_argnums=0)

  def _parts(self, tree: Any) -> list[Any]:
    """What each device holds of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    shards = [[shard.data for shard in a.addressable_shards] for a in leaves]
    return [structure.unflatten(part[d] for part in shards) for d in range(self.devices)]

  def _join(self, *parts: Array) -> Array:
    """The array whose parts, (members on a device, …), the devices hold."""
    shape = (self.padded, *parts[0].shape[1:])
    spread = NamedSharding(self._mesh, PartitionSpec(AXIS))
    return jax.make_array_from_single_device_arrays(shape, spread, parts)


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
  """`jax.jit` with what makes a CPU faster, for a program on one device."""
  return jax.jit(function, compiler_options={**options, **cpu_options()} or None)


def jit_once(function: Callable[..., Any]) -> Callable[..., Any]:
  """As `jit`, for a program that runs once: optimising it costs seconds and gains milliseconds."""
  return jit(function, xla_backend_optimization_level=0)


@functools.cache
def cpu_options() -> dict[str, Any]:
  """XLA's options for a program of ours on a CPU, those that this version knows; else none."""
  if jax.devices()[0].platform != "cpu":
    return {}
  lowered = jax.jit(lambda x: x).lower(np.float32(0))
  known = {}
  for name, value in _CPU_OPTIONS.items():
    # They are no part of JAX's interface: a version without one goes on without it.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      lowered.compile(compiler_options={name: value})
      known[name] = value
  return known


def members_at_once(analysis: Any, limit: int, members: int) -> int:
  """How many members can share an operation, so that a device's memory holds.

  Args:
    analysis: `memory_analysis()` of the program that takes one at a time: its temporary arrays
      are those of one member, its arguments those of all.
    limit: bytes of memory of the device.
    members: how many there are on it.

  Raises:
    UserError: when not even the members' states and data fit.
  """
  held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
  free = 0.8 * limit - held
  require(
    free > analysis.temp_size_in_bytes,
    f"{members} members on a device need {held + analysis.temp_size_in_bytes:,} bytes of its "
    f"{limit:,}; train fewer in one population",
  )
  return int(min(members, free // max(1, analysis.temp_size_in_bytes)))


def _compile(mapped: Any, *arguments: Any) -> Any:
  return mapped.lower(*arguments).compile(compiler_options=cpu_options() or None)
