"""The benchmark's end of a contender: the process that it runs in."""

import atexit
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.contenders.protocol import MARK
from mmoe_jax.errors import UserError


class Process:
  """A contender at the other end.

  Attributes:
    hello: what it said once it was ready.
  """

  def __init__(self, command: Sequence[str]):
    self._command = command
    self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the process)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
    # Nobody finds compiled programs of an earlier race.
    folder = tempfile.mkdtemp(prefix="mmoe_jax_race_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    caches = {"XDG_CACHE_HOME": folder, "TORCHINDUCTOR_CACHE_DIR": folder}
    self._process = subprocess.Popen(command, env={**os.environ, **caches}, text=True, **pipes)
    self.hello = self._answer()

  def ask(self, word: str) -> dict[str, Any]:
    """Its answer; raises UserError when the process has ended."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(word + "\n")
      self._process.stdin.flush()
    return self._answer()

  def close(self) -> int:
    """Ends the process; returns its status."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    status = self._process.wait(30)
    self._process.stdout.close()
    self._errors.close()
    return status

  def _answer(self) -> dict[str, Any]:
    for line in self._process.stdout:
      if line.startswith(MARK):
        return json.loads(line[1:])
    self._errors.seek(0)
    last = (self._errors.read().strip().splitlines() or ["no word"])[-1]
    raise UserError(f"{' '.join(self._command)} ended with status {self.close()}: {last}")
