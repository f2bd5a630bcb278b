"""Hosts of a job, and the devices that JAX finds."""

import atexit
import collections
import contextlib
import faulthandler
import glob
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from mmoe_jax.errors import UserError, require
from mmoe_jax.parallel import relay
from mmoe_jax.parallel.heartbeat import Heartbeat

_HEARTBEAT_SECONDS = 30  # Until a process that does not answer counts as lost.
_JAX_HEARTBEAT_SECONDS = 100  # JAX's own limit, which must be longer.
_JOIN_SECONDS = 300
_HEARTBEAT_KEY = "mmoe_jax/heartbeat"
_heartbeat: Heartbeat | None = None  # Of this process, if the job has several.
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")


def initialize() -> None:
  """Joins the hosts of a job, if the environment names several. Call it before any use of JAX.

  Reads `JAX_COORDINATOR_ADDRESS` with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or
  `MMOE_MULTIHOST=1` on TPU pods and Slurm, where JAX finds the rest. A process that ends, or does
  not answer for `MMOE_HEARTBEAT_SECONDS` (30 by default), ends all: parallel/heartbeat.py.

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
      os.environ["JAX_COORDINATOR_ADDRESS"],
      int(numbers["JAX_NUM_PROCESSES"]),
      int(numbers["JAX_PROCESS_ID"]),
    )
  elif os.environ.get("MMOE_MULTIHOST") == "1":
    with _user_errors():
      found = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, _JOIN_SECONDS
      )
    _join(*found)


def _join(
  address: str | None,
  processes: int | None,
  process: int | None,
  local_devices: Sequence[int] | None = None,
) -> None:
  """Joins the hosts of a job."""
  text = os.environ.get("MMOE_HEARTBEAT_SECONDS", str(_HEARTBEAT_SECONDS))
  require(
    text.isdecimal() and int(text) >= 5,
    f"$MMOE_HEARTBEAT_SECONDS = '{text}': must be a whole number of at least 5",
  )
  limit_s = int(text)
  # Its handler of SIGTERM would replace that of workdir/preemption.py.
  jax.config.update("jax_enable_preemption_service", False)
  # A fault of JAX ends a process; Python's stack would hide the reason that it prints.
  faulthandler.disable()
  with _user_errors():
    jax.distributed.initialize(
      relay.start(address) if address and process else address,
      processes,
      process,
      local_devices,
      heartbeat_timeout_seconds=max(_JAX_HEARTBEAT_SECONDS, 4 * limit_s),
    )
  if processes is not None and processes > 1:
    _start_heartbeat(str(address), processes, int(process or 0), limit_s)


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
  """Turns JAX's errors for wrong addresses and numbers, and without a cluster, into UserError."""
  try:
    yield
  except (ValueError, IndexError, RuntimeError) as error:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise UserError(
      f"cannot join the hosts of this job ({reason}); set $JAX_COORDINATOR_ADDRESS to HOST:PORT, "
      "$JAX_NUM_PROCESSES and $JAX_PROCESS_ID, or $MMOE_MULTIHOST=1 on a TPU pod or in Slurm only"
    ) from error


def _start_heartbeat(address: str, processes: int, process: int, limit_s: float) -> None:
  """Starts the heartbeat; the processes find each other through JAX's coordination service."""
  global _heartbeat
  store = distributed.global_state.client
  if process == 0:
    token = secrets.token_hex(16)
    beat = Heartbeat(process, processes, limit_s, token)
    store.key_value_set(_HEARTBEAT_KEY, f"{beat.listen()} {token}")
  else:
    port, token = store.blocking_key_value_get(_HEARTBEAT_KEY, _JOIN_SECONDS * 1000).split()
    beat = Heartbeat(process, processes, limit_s, token)
    beat.connect(address.rpartition(":")[0].strip("[]"), int(port))
  beat.start()
  # Before JAX's own, which waits for the other processes.
  atexit.register(beat.leave)
  _heartbeat = beat


def leave() -> None:
  """Leaves the other processes of a job, which would take one that just ends for a lost one."""
  if _heartbeat is not None:
    _heartbeat.leave()
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()  # Waits for the others.


def end_all(line: str, status: int, may_be_of_others: bool = False) -> None:
  """Ends the other processes of a job, because this one ends with an error; does nothing alone.

  Does not return if another process is lost: then that is the error to report.

  Args:
    line: the error.
    status: exit status of the others.
    may_be_of_others: whether the error may be the consequence of a lost process.
  """
  if _heartbeat is None:
    return
  if may_be_of_others:
    _heartbeat.await_loss()
  _heartbeat.fail(line, status)


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


def host_index() -> int:
  """Returns the number of this process in the job."""
  return jax.process_index()


def host_count() -> int:
  """Returns the number of processes of the job."""
  return jax.process_count()


def has_several_hosts() -> bool:
  """Returns whether the job has more than this process."""
  return jax.process_count() > 1


def gather_rows(array: np.ndarray) -> np.ndarray:
  """Returns the rows of an array of each host, first those of host 0.

  All hosts must call it, with arrays of one shape and type.
  """
  if jax.process_count() == 1:
    return array
  rows = np.ascontiguousarray(array).reshape(len(array), -1)
  # Bytes, because JAX shortens numbers of 64 bits.
  found = multihost_utils.process_allgather(rows.view(np.uint8), tiled=True)
  return np.asarray(found).view(array.dtype).reshape(-1, *array.shape[1:])


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
