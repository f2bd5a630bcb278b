"""Commands: flags that they share, errors in one line, interrupts."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging

from mmoe_jax.errors import UserError, describe
from mmoe_jax.workdir import preemption

flags.disclaim_key_flags()  # --help shows --config among the command's own flags.

_INTERRUPT_SECONDS = 3.0  # From a Ctrl-C to the end, at the latest.


def define_config() -> flags.FlagHolder:
  """Defines --config FILE.py or FILE.py:ARG, and --config.KEY=VALUE for each of its keys."""
  from ml_collections import config_flags

  try:
    return config_flags.DEFINE_config_file(
      "config", None, "FILE.py or FILE.py:ARG; --config.KEY=VALUE overrides.", lock_config=True
    )
  except flags.Error as error:  # It reads the files of --flagfile already here.
    _fail(error)


def run(main: Callable[[list[str]], None], resumes: bool = False) -> None:
  """Runs a command like absl's `app.run`, with one clear line for errors that users can correct.

  Wrong flags and configs, UserError, OSError (missing file, no permission, full disk), too little
  memory and a JAX that cannot start print `error: …` on standard error and exit with status 2.
  Other errors are bugs and keep their traceback. SIGINT exits with 130; a command that resumes
  handles it, and SIGTERM, as workdir/preemption.py describes, and exits with 75.

  Args:
    main: function of the command line's remaining arguments, called after flags are parsed. It
      imports what takes long, so that `--help` does not wait and an interrupt is one line.
    resumes: whether the same command resumes after an interrupt.
  """

  def parse(argv: list[str]) -> list[str]:
    # JAX and orbax would log a dozen lines per run, and their view of each error.
    logging.set_verbosity(logging.FATAL)
    try:
      rest = flags.FLAGS(argv)
    # A config file is user code, and ml_collections raises errors of any type.
    except Exception as error:
      _fail(error)
    if len(rest) > 1:
      _fail(UserError(f"unexpected argument '{rest[1]}'; every option starts with --"))
    return rest

  def guarded(argv: list[str]) -> None:
    if os.environ.get("JAX_COORDINATOR_ADDRESS") or os.environ.get("MMOE_MULTIHOST") == "1":
      # Of a lost host, each library in C++ prints its view; parallel/heartbeat.py prints one line.
      os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
      main(argv)
    except (UserError, OSError) as error:
      _fail(error)
    except (MemoryError, RuntimeError, ValueError) as error:
      text = _explain(error)
      if text is None:
        _end_hosts(describe(error), 1, may_be_of_others=True)
        raise
      _fail(UserError(text))
    except KeyboardInterrupt:
      end()
    except preemption.Preempted:
      _print("\ninterrupted; the same command resumes")
      _leave_hosts()
      # Libraries end their processes and threads, which must not take long.
      preemption.exit_soon()
      sys.exit(preemption.EXIT_STATUS)

  def end() -> NoReturn:
    _print(f"\ninterrupted; {'the same command resumes' if resumes else 'ended'}")
    # Saving threads must not delay a Ctrl-C.
    os._exit(preemption.EXIT_STATUS if resumes else 130)

  def report(lost: Any) -> None:
    # Python discards errors in a callback of the garbage collector, where JAX has one.
    if issubclass(lost.exc_type, KeyboardInterrupt):
      end()
    # Threads of a save that failed, whose error is reported, end after its event loop.
    if str(lost.exc_value) != "Event loop is closed":
      sys.__unraisablehook__(lost)

  sys.unraisablehook = report
  if resumes:
    preemption.handle_signals()
  else:
    signal.signal(signal.SIGINT, _interrupt)
  app.run(guarded, flags_parser=parse)


def _interrupt(*_: Any) -> NoReturn:
  """Raises KeyboardInterrupt, and ends the process if that is lost in a library's callback."""
  timer = threading.Timer(_INTERRUPT_SECONDS, lambda: os._exit(130))
  timer.daemon = True
  timer.start()
  raise KeyboardInterrupt


def _leave_hosts() -> None:
  """Leaves the other hosts of a job, which would take a process that just ends for a lost one."""
  if hosts := sys.modules.get("mmoe_jax.parallel.hosts"):
    hosts.leave()


def _end_hosts(line: str, status: int, may_be_of_others: bool = False) -> None:
  """Ends the other hosts of a job; does not return if one is lost: see parallel/hosts.py."""
  if hosts := sys.modules.get("mmoe_jax.parallel.hosts"):
    hosts.end_all(line, status, may_be_of_others)


def _explain(error: Exception) -> str | None:
  """Returns an error line for a fault of the machine or of JAX's settings; None for a bug."""
  text = str(error)
  if isinstance(error, MemoryError):
    return f"not enough memory ({text or 'no details'}); use fewer rows, or a smaller size"
  if "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
    return (
      f"not enough memory on the device ({text.splitlines()[0]}); use a smaller batch or model, or "
      "set config.train.memory_gib to stream the rows"
    )
  if "Unable to initialize backend" in text:
    return f"JAX cannot start: {text}; check $JAX_PLATFORMS and $JAX_NUM_CPU_DEVICES"
  return f"JAX cannot start: {text}" if "for JAX flag" in text else None


def _fail(error: BaseException) -> NoReturn:
  _end_hosts(describe(error), 2)
  _print(f"error: {describe(error)}")
  if sys.stdout is not None:
    sys.stdout.flush()
  os._exit(2)  # Background threads of a failed save or restore would print more errors.


def _print(line: str) -> None:
  if sys.stderr is not None:  # It may be closed.
    print(line, file=sys.stderr, flush=True)
