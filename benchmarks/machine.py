"""Description of the machine that a measurement was made on."""

import contextlib
import os
import platform
import sys
from typing import Any

import jax


def describe_machine() -> dict[str, Any]:
  """Returns cores, memory, processor, device, versions and the command of this process."""
  device = jax.devices()[0]
  return {
    "cores": len(os.sched_getaffinity(0)),
    "memory_gib": _memory_gib(),
    "processor": _processor(),
    "platform": device.platform,
    "device": device.device_kind,
    "devices": jax.device_count(),
    "jax": jax.__version__,
    "python": platform.python_version(),
    "command": " ".join(["python -m", *_command()]),
  }


def _processor() -> str:
  with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
    for line in file:
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()


def _memory_gib() -> float:
  return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _command() -> list[str]:
  module = os.path.splitext(os.path.relpath(sys.argv[0]))[0].replace(os.sep, ".")
  return [module.removesuffix(".__main__"), *map(_without_machine, sys.argv[1:])]


def _without_machine(argument: str) -> str:
  """Returns an argument whose absolute path, which is of this machine only, is its last part."""
  flag, equals, value = argument.rpartition("=")
  return (
    f"{flag}{equals}{os.path.basename(value.rstrip('/'))}" if os.path.isabs(value) else argument
  )
