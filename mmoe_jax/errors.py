"""What went wrong, told to a person: one line, no traceback, exit status 2."""

import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterable

from absl import app, flags, logging


class UserError(ValueError):
  """Something the user can mend. The message says what, where and how."""


def did_you_mean(name: object, known: Iterable[object]) -> str:
  """The tail of an error line: the nearest known name, or all of them.

  Args:
    name: what the user wrote.
    known: the names that would have been right.

  Returns:
    `did you mean 'X'?`, or `known: A, B, C` when nothing is near.
  """
  known = [str(k) for k in known]
  near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
  return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known) or 'none'}"


def require_known(name: str, known: Iterable[str], what: str) -> None:
  """Raises UserError unless `name` is one of `known`; `what` says where it stood."""
  known = list(known)
  if name not in known:
    raise UserError(f"{what} is '{name}', which does not exist; {did_you_mean(name, known)}")


def require(condition: bool, message: str) -> None:
  """Raises UserError(message) unless the condition holds."""
  if not condition:
    raise UserError(message)


def describe(error: BaseException) -> str:
  """One line for an error of the user's or of the operating system's."""
  if isinstance(error, OSError) and error.strerror:
    where = f"{error.filename}: " if error.filename else ""
    # A write to an open file does not say which one it was.
    full = "; make room, and give the same command again" if error.errno == errno.ENOSPC else ""
    return f"{where}{error.strerror}{full}"
  text = str(error)
  if isinstance(error, UserError):
    return " ".join(text.split())
  # ml_collections wraps what a config file raised in texts of its own; the cause is in there.
  patterns = (
    (r"(?s).*UserError: (.*)", r"{0}"),
    (
      r"(?s).*Did you mean \"(.*?)\" instead of \"(.*?)\".*",
      "config has no key '{1}'; did you mean '{0}'?",
    ),
    (r"(?s).*\[Errno \d+\] (.*?): '(.*?)'.*", "{1}: {0}"),
    (r"[\"']+(\w+)[\"']+", "config has no key '{0}'"),
    (r"(?s).*Traceback \(most recent call last\):.*\n(.+)", "{0}"),
  )
  for pattern, form in patterns:
    if match := re.fullmatch(pattern, text.strip()):
      text = form.format(*match.groups())
      break
  return " ".join(text.split()) or type(error).__name__


def run(main: Callable[[list[str]], None]) -> None:
  """absl's `app.run`, except that what a user can mend ends in one clear line.

  Wrong flags and configs, UserError and OSError (missing file, no permission, full
  disk) print `error: …` on standard error and exit with status 2; an interrupt exits
  with 130. Anything else is a bug of ours and keeps its traceback.

  Args:
    main: takes what is left of the command line once flags are parsed.
  """

  def parse(argv: list[str]) -> list[str]:
    # JAX and orbax log a dozen lines a run, and their own tale beside each error that we tell.
    logging.set_verbosity(logging.FATAL)
    try:
      rest = flags.FLAGS(argv)
    # A config file is the user's own code and ml_collections raises what it likes.
    except Exception as error:
      _fail(error)
    if len(rest) > 1:
      _fail(UserError(f"unexpected argument '{rest[1]}'; every option starts with --"))
    return rest

  def guarded(argv: list[str]) -> None:
    try:
      main(argv)
    except (UserError, OSError) as error:
      _fail(error)
    except KeyboardInterrupt:
      print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
      os._exit(130)  # Saving threads must not hold up a Ctrl-C.

  app.run(guarded, flags_parser=parse)


def _fail(error: BaseException) -> None:
  print(f"error: {describe(error)}", file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(2)  # Background threads of a save or restore that failed would still print theirs.
