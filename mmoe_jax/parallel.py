"""Devices and hosts: `jax.pmap`, one program per device, `jax.distributed`.

Models, losses and the training step are written for one device. Where several make a difference,
they take an `axis_name`; None means one device and no collectives. Callers place arrays through the
classes here.
"""

import collections
import concurrent.futures
import contextlib
import functools
import glob
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmoe_jax.errors import UserError, require

Array = jax.Array

AXIS = "devices"
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
# Small matrices: threads cost more than they gain, Eigen's products are faster than YNNPACK's, and
# AVX-512 is off by default. Measured in benchmarks/README.md.
_CPU_OPTIONS = {
  "xla_cpu_multi_thread_eigen": False,
  "xla_cpu_experimental_ynn_fusion_type": "",
  "xla_cpu_prefer_vector_width": 512,
}


def initialize() -> None:
  """Joins the hosts of a job, if the environment names several. Call it before any use of JAX.

  Reads `JAX_COORDINATOR_ADDRESS` with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or
  `MMOE_MULTIHOST=1` on TPU pods and Slurm, where JAX finds the rest.

  Raises:
    UserError: for variables that are missing or wrong, and for hosts that cannot be joined.
  """
  _require_jit()
  if os.environ.get("JAX_COORDINATOR_ADDRESS"):
    numbers = {name: os.environ.get(name, "") for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")}
    for name, value in numbers.items():
      require(
        value.isdigit(),
        f"${name} = '{value}': must be a number, because $JAX_COORDINATOR_ADDRESS is set",
      )
    _join(
      num_processes=int(numbers["JAX_NUM_PROCESSES"]), process_id=int(numbers["JAX_PROCESS_ID"])
    )
  elif os.environ.get("MMOE_MULTIHOST") == "1":
    _join()


def _join(**numbers: int) -> None:
  """Joins the hosts of a job."""
  try:
    jax.distributed.initialize(**numbers)
  # jax raises errors of these types for wrong addresses and numbers, and without a cluster.
  except (ValueError, IndexError, RuntimeError) as error:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise UserError(
      f"cannot join the hosts of this job ({reason}); set $JAX_COORDINATOR_ADDRESS to HOST:PORT, "
      "$JAX_NUM_PROCESSES and $JAX_PROCESS_ID, or $MMOE_MULTIHOST=1 on a TPU pod or in Slurm only"
    ) from error


def _require_jit() -> None:
  require(
    not jax.config.jax_disable_jit,
    "$JAX_DISABLE_JIT is set: training without compilation is not supported; unset it",
  )


def use_all_cores() -> None:
  """Makes every CPU core a device, if JAX runs on the CPU. Call it before any use of JAX.

  A population then trains on all cores, each with a share of the members. It has no effect once
  JAX has started, or if XLA_FLAGS sets the number of devices.
  """
  _require_jit()
  if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
    return
  with contextlib.suppress(RuntimeError):  # JAX has started already.
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def is_first_host() -> bool:
  """Returns whether this process writes files and prints."""
  return jax.process_index() == 0


def describe_devices(devices: Sequence[Any]) -> str:
  """Returns a description such as `2 x cpu` or `8 x NVIDIA H100`."""
  kinds = collections.Counter(device.device_kind for device in devices)
  return ", ".join(f"{count} x {kind}" for kind, count in kinds.items())


def warn_of_unused_accelerator() -> None:
  """Warns on standard error if JAX runs on the CPU of a machine with an accelerator.

  JAX falls back to the CPU silently if the accelerator's plugin is missing or cannot start. Nothing
  is printed if $JAX_PLATFORMS asks for the CPU.
  """
  if os.environ.get("JAX_PLATFORMS") or jax.default_backend() != "cpu":
    return
  if device := next((path for path in _ACCELERATORS if glob.glob(path)), None):
    print(
      f"warning: this machine has an accelerator ({device}), but JAX runs on the CPU; install its "
      'build of jax, such as pip install "jax[cuda13]" or "jax[tpu]", or set JAX_PLATFORMS=cpu',
      file=sys.stderr,
    )


def device_count(wanted: int, batch_size: int) -> int:
  """Returns the number of devices of a run.

  Args:
    wanted: config.train.devices; 0 for all devices.
    batch_size: rows of a step over all devices.

  Raises:
    UserError: if there are fewer devices, or if they do not divide the batch.
  """
  available = jax.device_count()
  require(
    0 <= wanted <= available,
    f"config.train.devices = {wanted}: must be from 0 to {available}, the number of devices",
  )
  count = wanted or available
  require(
    jax.process_count() == 1 or count == available,
    f"config.train.devices = {wanted}: several hosts train on all their {available} devices; set 0",
  )
  require(
    batch_size % count == 0,
    f"config.train.batch_size = {batch_size}: must be a multiple of {count}, the number of devices",
  )
  return count


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
      spec: tree like the state, with whether each leaf is sharded on its first axis; None for none.

    Returns:
      A function of (state, rows, key) with the results of `epoch`.
    """
    if self.count == 1:
      return _compile(jax.jit(epoch, donate_argnums=0), state, rows, key)
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
    compiled = _compile(mapped, state, rows, key, device)
    return lambda state, rows, key: compiled(state, rows, key, device)

  def _compile_sharded(
    self, epoch: Callable[..., Any], state: Any, rows: Any, key: Any, specs: Any
  ) -> Callable:
    """Compiles an epoch for a state whose tables are sharded: `shard_map` for `pmap`."""
    every = PartitionSpec()
    mapped = jax.shard_map(
      epoch,
      mesh=self._mesh,
      in_specs=(specs, every, every),
      out_specs=(specs, every),
      check_vma=False,  # Collectives make the results equal, which it cannot see.
    )
    return _compile(jax.jit(mapped, donate_argnums=0), state, rows, self.replicate(key))


class Members:
  """Members of a population, sharded over devices: several per device, one after another.

  A tree of (M, …) arrays becomes one of (padded, …) arrays, sharded over the first axis. Padding
  repeats the last member.

  Attributes:
    count: number of members M.
    devices: number of devices that they are sharded over.
    used: those devices.
    padded: M, rounded up to a multiple of `devices`.
  """

  def __init__(self, count: int, devices: int = 0):
    """Shards `count` members over at most `devices` devices (0: all of this process).

    Raises:
      UserError: with several hosts, or if there are fewer devices.
    """
    require(
      jax.process_count() == 1, "a population trains on a single host; start one on each host"
    )
    available = jax.local_device_count()
    require(
      0 <= devices <= available,
      f"config.train.devices = {devices}: must be from 0 to {available}, the number of devices",
    )
    self.count = count
    self.devices = min(count, devices or available)
    self._per_device = math.ceil(count / self.devices)
    self.padded = self._per_device * self.devices
    self.used = jax.local_devices()[: self.devices]
    self._mesh = Mesh(np.array(self.used), (AXIS,))

  def shard(self, tree: Any) -> Any:
    """Places (M, …) arrays on the devices of their members."""
    padding = self.padded - self.count

    def pad(a: Any) -> np.ndarray:
      a = np.asarray(a)
      return np.concatenate([a, np.repeat(a[-1:], padding, 0)]) if padding else a

    return jax.device_put(jax.tree.map(pad, tree), NamedSharding(self._mesh, PartitionSpec(AXIS)))

  def unshard(self, tree: Any) -> Any:
    """Fetches (M, …) arrays to the host: the inverse of `shard`."""
    return jax.tree.map(lambda a: a[: self.count], jax.device_get(tree))

  def replicate(self, tree: Any) -> Any:
    """Places arrays that all members use on every device."""
    return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

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
      limit = (self.used[0].memory_stats() or {}).get("bytes_limit")
      if limit:
        program = _compile(self._mapped(function, 1), *arguments[0])
        at_once = members_at_once(program.memory_analysis(), limit, self._per_device)
    # One program per device: XLA rounds a joint program differently from that of a single run,
    # and members would not be bitwise identical to it.
    mapped = self._mapped(function, at_once)
    lowered = [mapped.lower(*part) for part in arguments]
    options = cpu_options() or None
    with concurrent.futures.ThreadPoolExecutor(self.devices) as pool:
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
    return [structure.unflatten(part[d] for part in shards) for d in range(self.devices)]

  def _join(self, *parts: Array) -> Array:
    """Returns the sharded array whose parts (members per device, …) the devices hold."""
    shape = (self.padded, *parts[0].shape[1:])
    sharding = NamedSharding(self._mesh, PartitionSpec(AXIS))
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
  """Compiles a function for one device like `jax.jit`, with the CPU's faster options."""
  return jax.jit(function, compiler_options={**options, **cpu_options()} or None)


def jit_once(function: Callable[..., Any]) -> Callable[..., Any]:
  """Compiles a function that runs once: like `jit`, without optimisation, which costs seconds."""
  return jit(function, xla_backend_optimization_level=0)


@functools.cache
def cpu_options() -> dict[str, Any]:
  """Returns XLA's options for our programs on a CPU, as far as this version supports them."""
  if jax.devices()[0].platform != "cpu":
    return {}
  lowered = jax.jit(lambda x: x).lower(np.float32(0))
  supported = {}
  for name, value in _CPU_OPTIONS.items():
    # They are not part of JAX's interface; other versions may not have them.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      lowered.compile(compiler_options={name: value})
      supported[name] = value
  return supported


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


def _partition(spec: Any) -> Any:
  """Returns the PartitionSpec of each leaf, from whether its first axis is sharded."""
  return jax.tree.map(lambda sharded: PartitionSpec(AXIS) if sharded else PartitionSpec(), spec)


def _compile(mapped: Any, *arguments: Any) -> Any:
  return mapped.lower(*arguments).compile(compiler_options=cpu_options() or None)
