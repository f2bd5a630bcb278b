"""The only room that knows devices and hosts: `jax.pmap` and `jax.distributed`.

The rest of the code is written for one device. What must differ under several takes an
`axis_name`, and None means one device: a plain gradient, no collective.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmoe_jax.errors import require

AXIS = "devices"
# At these sizes XLA's thread pool costs a CPU more than it gives (benchmarks/README.md).
_CPU_OPTIONS = {"xla_cpu_multi_thread_eigen": False}


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
    axis_name: AXIS with several devices, None with one.
  """

  def __init__(self, count: int):
    self.count = count
    self.axis_name = AXIS if count > 1 else None
    self._devices = jax.devices()[:count]
    self._mesh = Mesh(np.array(self._devices), (AXIS,))

  def replicate(self, tree: Any) -> Any:
    """Puts a tree of arrays on every device."""
    return self._put(tree, PartitionSpec())

  def spread(self, tree: Any, axis: int = 0) -> Any:
    """Spreads an axis of every array over the devices, which must divide it."""
    return self._put(tree, PartitionSpec(*[None] * axis, AXIS))

  def _put(self, tree: Any, spec: PartitionSpec) -> Any:
    where = NamedSharding(self._mesh, spec) if self.count > 1 else self._devices[0]
    return jax.tree.map(lambda a: jax.device_put(a, where), tree)

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
        devices=self._devices,
      )
      shard = np.arange(self.count, dtype=np.int32)
    on_cpu = self._devices[0].platform == "cpu"
    options = _CPU_OPTIONS if on_cpu else None
    shard = jax.device_put(shard, self._devices[0]) if self.count == 1 else self.spread(shard)
    compiled = mapped.lower(state, data, key, shard).compile(compiler_options=options)
    return lambda state, data, key: compiled(state, data, key, shard)
