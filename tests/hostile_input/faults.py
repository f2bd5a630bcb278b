"""Hostile values and damage, the time limit of a case, and what every refusal must be."""

import contextlib
import copy
import faulthandler
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mmoe_jax.errors import UserError

CASES = int(os.environ.get("MMOE_FUZZ_CASES", "0"))
_SECONDS = 30  # Of a case; most take milliseconds, some compile a program.


def fuzz(few: int) -> settings:
  """Returns settings of a test with that many cases, or MMOE_FUZZ_CASES."""
  checks = list(HealthCheck)
  return settings(max_examples=CASES or few, deadline=None, suppress_health_check=checks)


# Bytes that break readers of tables.
TOKENS = (
  *(b'"', b'""', b",", b"\n", b"\r\n", b"\r", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3\x28"),
  *(b"nan", b"NaN", b"inf", b"-inf", b"1e999", b"-0", b"9" * 40, b"0x10", b"1_000"),
  *(b"\xe2\x88\x9e", b"=1+1", b"../../x", b"NA", b"null", b"None", b"TRUE", b" " * 300),
  *(b"2026-13-45", b"\x1a", b"\xef\xbc\x91", b"\xe2\x85\xa7", b"|" * 50, b"a" * 5000, b",," * 40),
  *(b"-9223372036854775809", b"{", b"}", b"[", b"]", b":", b"[" * 2000, b"true", b"\\u0000"),
)
VALUES = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(),
  st.floats(),
  st.text(max_size=20),
  st.binary(max_size=5),
  st.lists(st.one_of(st.text(max_size=3), st.integers(), st.none()), max_size=4),
  st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
  st.sampled_from([10**400, -(2**63) - 1, float("nan"), float("inf"), "", "1e400", "\udc80", "NA"]),
)
# Values of JSON and TOML that a key might have.
JSON_VALUES = st.one_of(
  st.sampled_from([None, True, False, 0, 1, -1, 2**31, 2**63, -(2**70), 10**300, 0.5, -0.0, 1e308]),
  st.sampled_from(["", "a", "../../x", "/etc/passwd", "\0", "a\nb", "NA", "0", "x" * 3000, "é"]),
  st.sampled_from([[], {}, [[]], [None], [0, 1], ["a", "a"], [1e308] * 3, {"a": 1}, [{}]]),
  st.integers(-3, 10**7),
  st.floats(allow_nan=False, allow_infinity=False),
  st.text(max_size=12),
)


def mutate(content: bytes, rng: random.Random) -> bytes:
  """Returns bytes with one to four faults: flips, cuts, repeats, swaps, hostile tokens."""
  for _ in range(rng.randint(1, 4)):
    at, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 7, 40, 400))
    end = min(len(content), at + length)
    kind = rng.randrange(6)
    if kind == 0 and at < len(content):
      content = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    elif kind == 1:
      content = content[:at]
    elif kind == 2:
      content = content[:at] + content[end:]
    elif kind == 3:
      content = content[:end] + content[at:end] * rng.choice((1, 3)) + content[end:]
    elif kind == 4:
      content = content[:at] + rng.choice(TOKENS) + content[end:]
    else:
      content = content[:at] + rng.choice(TOKENS) + content[at:]
  return content


def _places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
  """Yields the paths of all values of a tree of JSON values but itself."""
  items = tree.items() if isinstance(tree, dict) else enumerate(tree)
  for key, value in items:
    yield (*path, key)
    if isinstance(value, dict | list):
      yield from _places(value, (*path, key))


def mutate_tree(tree: Any, draw: Callable[[Any], Any]) -> Any:
  """Returns a copy of JSON values with one to three faults: other values, keys, fewer or more."""
  tree = json.loads(json.dumps(tree))
  for _ in range(draw(st.integers(1, 3))):
    places = list(_places(tree))
    if not places:
      break
    path = draw(st.sampled_from(places))
    parent = tree
    for key in path[:-1]:
      parent = parent[key]
    last, kind = path[-1], draw(st.sampled_from(["replace", "replace", "remove", "repeat", "copy"]))
    if kind == "replace":
      parent[last] = copy.deepcopy(draw(JSON_VALUES))  # A later fault may change it.
    elif kind == "remove":
      del parent[last]
    elif kind == "repeat" and isinstance(parent, list):
      parent.append(copy.deepcopy(parent[last]))
    elif isinstance(parent, dict):
      name = draw(st.sampled_from([*parent, "other", "", "../x", "name", "values", "files"]))
      parent[name] = json.loads(json.dumps(parent[last]))
  return tree


class HangError(BaseException):
  """A case took too long."""


@contextlib.contextmanager
def limited(seconds: float = _SECONDS) -> Iterator[None]:
  """Fails a case that takes too long, and ends the process if it does not even then return."""

  def stop(*_: Any) -> None:
    raise HangError(f"longer than {seconds} s")

  before = signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  faulthandler.dump_traceback_later(3 * seconds, exit=True, file=sys.__stderr__)
  try:
    yield
  finally:
    faulthandler.cancel_dump_traceback_later()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def refusal(call: Callable[[], Any]) -> str | None:
  """Returns the line by which a call refuses its input, None if it accepts it.

  Any other error is the test's.
  """
  with limited():
    try:
      call()
    except UserError as error:
      assert_is_for_people(error)
      return str(error)
  return None


def assert_is_for_people(error: Exception) -> None:
  text = str(error)
  assert text
  assert "Traceback" not in text
  assert "object at 0x" not in text
