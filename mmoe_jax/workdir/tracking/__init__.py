"""Experiment tracking: one hook of three calls, and what is behind it."""

from mmoe_jax.workdir.tracking.fan_out import Trackers
from mmoe_jax.workdir.tracking.protocol import TrackedRun, Tracker, final_numbers, scalars
from mmoe_jax.workdir.tracking.registry import DEFAULT, TRACKERS, check, create, parse

__all__ = [
  "DEFAULT",
  "TRACKERS",
  "TrackedRun",
  "Tracker",
  "Trackers",
  "check",
  "create",
  "final_numbers",
  "parse",
  "scalars",
]
