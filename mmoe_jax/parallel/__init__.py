"""Devices and hosts: `jax.pmap`, one program per device, `jax.distributed`.

Models, losses and the training step are written for one device. Where several make a difference,
they take an `axis_name`; None means one device and no collectives. Callers place arrays through the
classes here.
"""

from mmoe_jax.parallel.devices import AXIS, Devices
from mmoe_jax.parallel.hosts import (
  any_host,
  describe_devices,
  device_count,
  gather_rows,
  has_several_hosts,
  host_count,
  host_index,
  initialize,
  is_first_host,
  max_over_hosts,
  use_all_cores,
  warn_of_unused_accelerator,
)
from mmoe_jax.parallel.members import Members, members_at_once
from mmoe_jax.parallel.programs import cpu_options, jit, jit_once

__all__ = [
  "AXIS",
  "Devices",
  "Members",
  "any_host",
  "cpu_options",
  "describe_devices",
  "device_count",
  "gather_rows",
  "has_several_hosts",
  "host_count",
  "host_index",
  "initialize",
  "is_first_host",
  "jit",
  "jit_once",
  "max_over_hosts",
  "members_at_once",
  "use_all_cores",
  "warn_of_unused_accelerator",
]
