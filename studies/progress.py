"""Progress of a study."""

import time

from mmoe_jax.workdir.progress import format_duration


class Progress:
  """Prints a line for each finished part of a study, with the time left."""

  def __init__(self, parts: int):
    """Starts a study of that many parts."""
    self._parts, self._done, self._trained, self._elapsed_s = parts, 0, 0, 0.0
    self._last = time.perf_counter()

  def finish(self, name: str, is_trained: bool = True) -> None:
    """Counts a part; one that existed already (not `is_trained`) does not change the estimate."""
    now = time.perf_counter()
    self._done += 1
    if is_trained:
      self._trained += 1
      self._elapsed_s += now - self._last
    self._last = now
    left = self._parts - self._done
    estimate = ""
    if left and self._trained:
      estimate = f", {format_duration(left * self._elapsed_s / self._trained)} left"
    note = "" if is_trained else " (existed)"
    print(f"{self._done}/{self._parts} {name}{note}{estimate}", flush=True)
