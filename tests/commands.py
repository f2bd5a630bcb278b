"""Commands of the project as separate processes."""

import os
import subprocess
import sys

from tests import FAST_COMPILE, ROOT


def environment(**settings: str) -> dict[str, str]:
  """Returns the environment of a command on one device."""
  return {**os.environ, "XLA_FLAGS": FAST_COMPILE, **settings}


def command(module: str, *arguments: object) -> list[str]:
  """Returns the words of `python -m module arguments`."""
  return [sys.executable, "-m", module, *map(str, arguments)]


def run(module: str, *arguments: object, **settings: str) -> subprocess.CompletedProcess:
  """Runs a command to its end; settings are environment variables."""
  return subprocess.run(
    command(module, *arguments),
    cwd=ROOT,
    env=environment(**settings),
    capture_output=True,
    text=True,
  )
