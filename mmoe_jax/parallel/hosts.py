"""Hosts of a job, and the devices that JAX finds."""

import collections
import contextlib
import faulthandler
import glob
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmoe_jax.errors import UserError, require

_HEARTBEAT_SECONDS = 30  # Until a host that does not answer counts as dead.
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")


def initialize() -> None:
  """Joins the hosts of a job, if the environment names several. Call it before any use of JAX.

  Reads `JAX_COORDINATOR_ADDRESS` with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or
  `MMOE_MULTIHOST=1` on TPU pods and Slurm, where JAX finds the rest. A host that does not answer
  for `MMOE_HEARTBEAT_SECONDS` (30 by default) ends the processes of all.

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
  text = os.environ.get("MMOE_HEARTBEAT_SECONDS", str(_HEARTBEAT_SECONDS))
  require(
    text.isdecimal() and int(text) >= 5,
    f"$MMOE_HEARTBEAT_SECONDS = '{text}': must be a whole number of at least 5",
  )
  # Its handler of SIGTERM would replace that of workdir/preemption.py.
  jax.config.update("jax_enable_preemption_service", False)
  # A lost host makes JAX abort the others; Python's stack would hide the reason that it prints.
  faulthandler.disable()
  try:
    jax.distributed.initialize(**numbers, heartbeat_timeout_seconds=int(text))
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


def has_several_hosts() -> bool:
  """Returns whether the job has more than this process."""
  return jax.process_count() > 1


def max_over_hosts(numbers: np.ndarray) -> np.ndarray:
  """Returns the elementwise maximum of an array of each host; all hosts must call it."""
  if jax.process_count() == 1:
    return numbers
  return multihost_utils.process_allgather(numbers).max(0)


def any_host(condition: bool) -> bool:
  """Returns whether a condition holds on any host; all hosts must call it."""
  return bool(max_over_hosts(np.array(condition, np.int32)))


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
