"""Errors that users can correct, and their text in one line."""

import difflib
import errno
import re
from collections.abc import Iterable

_LONGEST = 1000  # Characters of an error line.


class UserError(ValueError):
  """Error that the user can correct. The message says what is wrong, where, and what to do."""


class SaveError(UserError):
  """Error of the storage: a checkpoint cannot be written. Results of the run are not affected."""


def did_you_mean(name: object, known: Iterable[object]) -> str:
  """Returns the end of an error line: the most similar known name, or all names.

  Args:
    name: name that the user gave.
    known: valid names.

  Returns:
    `did you mean 'X'?`, or `known: A, B, C` if none is similar.
  """
  known = [str(k) for k in known]
  near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
  return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known) or 'none'}"


def require_known(name: str, known: Iterable[str], what: str) -> None:
  """Raises UserError unless `name` is one of `known`; `what` describes the name."""
  known = list(known)
  if name not in known:
    raise UserError(f"{what} is '{name}', which does not exist; {did_you_mean(name, known)}")


def require(condition: bool, message: str) -> None:
  """Raises UserError(message) unless the condition holds."""
  if not condition:
    raise UserError(message)


def describe(error: BaseException) -> str:
  """Returns one line for an error of the user or the operating system."""
  if isinstance(error, OSError) and error.strerror:
    where = f"{error.filename}: " if error.filename else ""
    # The error of a write to an open file has no file name.
    hint = "; free some space and repeat the command" if error.errno == errno.ENOSPC else ""
    return f"{where}{error.strerror}{hint}"
  text = str(error)
  if isinstance(error, UserError):
    return _one_line(text)
  # ml_collections wraps errors of a config file in its own texts, which contain the cause.
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
  return _one_line(text) or type(error).__name__


def _one_line(text: str) -> str:
  """Returns a text in one printable line; the middle of a long one, a user's value, is cut."""
  text = " ".join(text.split())
  text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
  return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
