"""Process of a contender, as the race controls it."""

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
  """Process of a contender.

  Attributes:
    ready: its first answer, once it is ready.
  """

  def __init__(self, command: Sequence[str], threads: int, variant: str = ""):
    """Starts the process and waits until it is ready.

    Args:
      command: the command.
      threads: number of threads that it may use.
      variant: its $CONTENDER_VARIANT.
    """
    self._command = command
    self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the process)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
    # A new cache, so that no contender finds programs of an earlier race.
    folder = tempfile.mkdtemp(prefix="mmoe_jax_race_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    settings = {"XDG_CACHE_HOME": folder, "TORCHINDUCTOR_CACHE_DIR": folder}
    settings |= {"CONTENDER_THREADS": str(threads), "CONTENDER_VARIANT": variant}
    self._process = subprocess.Popen(command, env={**os.environ, **settings}, text=True, **pipes)
    self.ready = self._answer()

  def ask(self, word: str) -> dict[str, Any]:
    """Returns the answer to a word; raises UserError if the process has ended."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(word + "\n")
      self._process.stdin.flush()
    return self._answer()

  def close(self) -> int:
    """Ends the process; returns its exit status."""
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
    last = (self._errors.read().strip().splitlines() or ["no output"])[-1]
    raise UserError(f"{' '.join(self._command)} ended with status {self.close()}: {last}")
