"""Error messages."""

import errno

import pytest

from mmoe_jax.errors import UserError, describe, did_you_mean


def test_our_own_messages_are_left_as_they_are():
  text = "UCI archive: <urlopen error [Errno 101] Network is unreachable>; pip: 'x': 'y'"
  assert describe(UserError(text)) == text


@pytest.mark.parametrize(
  ("error", "line"),
  [
    (
      FileNotFoundError(2, "No such file or directory", "a.csv"),
      "a.csv: No such file or directory",
    ),
    (KeyError('\'sede\'\nDid you mean "seed" instead of "sede"?'), "did you mean 'seed'"),
    (AttributeError("'sede'"), "config has no key 'sede'"),
    (ValueError("Traceback (most recent call last):\n  x\nmmoe.UserError: do this"), "do this"),
    (RuntimeError(), "RuntimeError"),
  ],
)
def test_wrapped_errors_are_one_line_that_names_the_cause(error, line):
  assert line in describe(error)
  assert "\n" not in describe(error)


def test_the_nearest_name_is_offered_or_all_of_them():
  assert did_you_mean("mmeo", ["mmoe", "ple"]) == "did you mean 'mmoe'?"
  assert did_you_mean("xyz", ["mmoe", "ple"]) == "known: mmoe, ple"


def test_a_full_disk_is_reported_with_a_remedy():
  line = describe(OSError(errno.ENOSPC, "No space left on device"))
  assert line == "No space left on device; free some space and repeat the command"
