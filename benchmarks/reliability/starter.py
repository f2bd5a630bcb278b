"""Starts commands quickly: a process with the libraries imported forks once for each.

A restart then costs no imports, of which a kill can lose nothing, so that more kills fit an hour.
"""

import contextlib
import json
import os
import runpy
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

HEAVY = (  # Modules to import.
  "flax.linen, optax, orbax.checkpoint, optuna, pandas, pyarrow.parquet, ml_collections, "
  "mmoe_jax.training.search, mmoe_jax.prediction.scoring, data_prep.preparation"
)


class Starter:
  """A process that forks commands; a context manager that ends it."""

  def __init__(self) -> None:
    """Starts the process."""
    code = f"import {HEAVY}; from benchmarks.reliability import starter; starter.serve()"
    self._process = subprocess.Popen(
      [sys.executable, "-c", code],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      text=True,
    )

  def __enter__(self) -> "Starter":
    return self

  def __exit__(self, *_: Any) -> None:
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()

  def start(self, words: Sequence[str], env: Mapping[str, str], log: str) -> "Command":
    """Starts `python WORDS` in a new session, with output to a file."""
    return Command(self, self.ask({"words": list(words), "env": dict(env), "log": log}))

  def ask(self, request: Mapping[str, Any]) -> int:
    """Sends a request and returns the answer."""
    self._process.stdin.write(json.dumps(request) + "\n")
    self._process.stdin.flush()
    return int(self._process.stdout.readline())


class Command:
  """A running command.

  Attributes:
    pid: its process, and the group of its processes.
    returncode: its exit status, negative for a signal; None while it runs.
  """

  def __init__(self, starter: Starter, pid: int):
    """Takes the starter and the process that it forked."""
    self._starter, self.pid, self.returncode = starter, pid, None
    self._ended = os.pidfd_open(pid)

  def wait(self, seconds: float) -> int | None:
    """Waits until it ends, for at most some seconds; returns its exit status if it has."""
    if self.returncode is None and select.select([self._ended], [], [], seconds)[0]:
      self.returncode = self._starter.ask({"wait": self.pid})
      os.close(self._ended)
    return self.returncode


def serve() -> None:
  """Forks for each request on standard input, until it ends."""
  for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
      answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
    else:
      answer = os.fork()
      if answer == 0:
        _run(request)
    print(answer, flush=True)


def _run(request: Mapping[str, Any]) -> None:
  """Turns a forked process into `python WORDS`; does not return."""
  os.setsid()
  with open(request["log"], "wb", buffering=0) as log, open(os.devnull, "rb") as nothing:
    for number, file in ((0, nothing), (1, log), (2, log)):
      os.dup2(file.fileno(), number)
  os.environ.update(request["env"])
  status = 1
  try:
    kind, name, *arguments = request["words"]
    sys.argv = [name if kind == "-m" else kind, *arguments]
    if kind == "-m":
      runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
      exec(compile(name, "-c", "exec"), {"__name__": "__main__"})
    status = 0
  except SystemExit as end:
    status = end.code if isinstance(end.code, int) else int(end.code is not None)
  except BaseException:
    sys.excepthook(*sys.exc_info())
  with contextlib.suppress(OSError):
    sys.stdout.flush()
    sys.stderr.flush()
  import atexit  # Threads and exit handlers, as at the end of Python.
  import threading

  threading._shutdown()
  atexit._run_exitfuncs()
  os._exit(status)
