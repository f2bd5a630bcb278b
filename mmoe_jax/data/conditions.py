"""Conditions on the columns of a table, such as `purchase == 1 and click == 1`.

  condition  = all { "or" all }
  all        = not { "and" not }
  not        = "not" not | "(" condition ")" | comparison
  comparison = COLUMN ("==" | "!=" | "<" | "<=" | ">" | ">=") LITERAL
             | COLUMN ["not"] "in" "(" LITERAL { "," LITERAL } ")"
             | COLUMN "is" ["not"] "missing"

A column is a name, or any text in backquotes; a literal is a number, or text in quotes. Text is
compared with the value as text, a number with the value as a number. A comparison with a missing
value is unknown, and unknown propagates as in SQL.

Shape letters: N rows.
"""

import dataclasses
import functools
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np

from mmoe_jax.errors import UserError, require

_LONGEST = 10_000  # Characters of a condition.
_DEEPEST = 50  # Nested parentheses and negations.
_TOKEN = re.compile(
  r"""\s*(?:
    (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
  | (?P<text>"[^"]*"|'[^']*')
  | (?P<quoted>`[^`]+`)
  | (?P<name>[^\W\d][\w.]*)
  | (?P<symbol>==|!=|<=|>=|<|>|\(|\)|,)
  )""",
  re.VERBOSE,
)
_WORDS = ("and", "or", "not", "in", "is", "missing")
_COMPARE: Mapping[str, Callable[..., np.ndarray]] = {
  "==": operator.eq,
  "!=": operator.ne,
  "<": operator.lt,
  "<=": operator.le,
  ">": operator.gt,
  ">=": operator.ge,
}

Literal = str | float


class Columns(Protocol):
  """Columns of a table, as conditions read them."""

  def factor(self, column: str) -> tuple[np.ndarray, list[str]]:
    """Returns the code (N,) of each row's value, and the distinct values; "" is missing."""

  def numbers(self, column: str) -> np.ndarray:
    """Returns the values (N,) as float64, NaN where missing."""


@dataclasses.dataclass(frozen=True)
class Condition:
  """Parsed condition.

  Attributes:
    operation: `or`, `and`, `not`, a comparison, `in` or `missing`.
    parts: conditions that `or`, `and` and `not` combine.
    column: column of a comparison.
    literals: literals that it is compared with.
  """

  operation: str
  parts: tuple["Condition", ...] = ()
  column: str = ""
  literals: tuple[Literal, ...] = ()

  @property
  def columns(self) -> tuple[str, ...]:
    """Names of the columns that the condition reads, each once."""
    own = (self.column,) if self.column else ()
    return tuple(dict.fromkeys((*own, *(c for part in self.parts for c in part.columns))))

  @property
  def values(self) -> tuple[str, ...]:
    """Texts that a single column is compared with by `==` or `in`; empty for other conditions."""
    is_simple = self.operation in ("==", "in") and all(isinstance(v, str) for v in self.literals)
    return self.literals if is_simple else ()


@functools.lru_cache(maxsize=1024)
def parse_condition(text: str, where: str = "condition") -> Condition:
  """Parses a condition.

  Args:
    text: the condition.
    where: file and key that it stands in, for errors.

  Raises:
    UserError: naming the character at which it is wrong.
  """
  require(len(text) <= _LONGEST, f"{where}: must have at most {_LONGEST:,} characters")
  parser = _Parser(text, where)
  condition = parser.condition(0)
  parser.expect_end()
  return condition


def evaluate(condition: Condition, columns: Columns) -> np.ndarray:
  """Evaluates a condition on every row.

  Returns:
    (N,) float32: 1 where it holds, 0 where it does not, NaN where it is unknown.

  Raises:
    UserError: for a value that is not a number, where it is compared with one.
  """
  if condition.operation in ("or", "and"):
    parts = [evaluate(part, columns) for part in condition.parts]
    # NaN is unknown: `or` is 1 if any is 1, else unknown if any is; `and` is the dual.
    decisive = 1.0 if condition.operation == "or" else 0.0
    out = np.full_like(parts[0], 1 - decisive)
    for part in parts:
      out = np.where((out == decisive) | (part == decisive), np.float32(decisive), out + 0 * part)
    return out
  if condition.operation == "not":
    return 1 - evaluate(condition.parts[0], columns)
  if condition.operation == "missing":
    codes, values = columns.factor(condition.column)
    return np.array([v == "" for v in values], np.float32)[codes]
  texts = [v for v in condition.literals if isinstance(v, str)]
  if not texts:
    x_N = columns.numbers(condition.column)
    return np.where(np.isnan(x_N), np.nan, _compare(condition, x_N)).astype(np.float32)
  codes, values = columns.factor(condition.column)
  held = _compare(condition, np.array(values, object)).astype(np.float32)
  held[[v == "" for v in values]] = np.nan
  return held[codes]


def _compare(condition: Condition, values: np.ndarray) -> np.ndarray:
  if condition.operation == "in":
    return np.isin(values, np.array(condition.literals, values.dtype))
  return np.asarray(_COMPARE[condition.operation](values, condition.literals[0]), bool)


@dataclasses.dataclass(frozen=True)
class _Token:
  kind: str
  text: str
  at: int


class _Parser:
  """Recursive-descent parser of the grammar above."""

  def __init__(self, text: str, where: str):
    self._text, self._where = text, where
    self._tokens = list(self._scan())
    self._next = 0

  def _scan(self) -> Iterator[_Token]:
    at = 0
    while self._text[at:].strip():
      match = _TOKEN.match(self._text, at)
      if match is None:
        at += len(self._text[at:]) - len(self._text[at:].lstrip())
        self._fail(at, f"'{self._text[at]}' has no meaning here")
      kind, text = str(match.lastgroup), match.group(str(match.lastgroup))
      if kind == "name" and text in _WORDS:
        kind = "word"
      yield _Token(kind, text, match.start(str(match.lastgroup)))
      at = match.end()
    yield _Token("end", "the end", len(self._text))

  def _fail(self, at: int, reason: str) -> None:
    raise UserError(
      f"{self._where} = '{self._text}', character {at + 1}: {reason}; a condition has the form "
      "column == 'text', column >= 4, column in ('a', 'b'), column is missing, joined by and, or, "
      "not"
    )

  def _take(self, *texts: str) -> bool:
    """Moves past the next token if it is one of these words or symbols."""
    token = self._tokens[self._next]
    if token.kind in ("word", "symbol") and token.text in texts:
      self._next += 1
      return True
    return False

  def _expect(self, text: str) -> None:
    token = self._tokens[self._next]
    if not self._take(text):
      self._fail(token.at, f"must be '{text}', not {token.text}")

  def expect_end(self) -> None:
    token = self._tokens[self._next]
    if token.kind != "end":
      self._fail(token.at, f"must end here, or continue with 'and' or 'or', not {token.text}")

  def condition(self, depth: int) -> Condition:
    if depth > _DEEPEST:
      self._fail(self._tokens[self._next].at, f"more than {_DEEPEST} nested parts")
    return self._joined("or", lambda: self._joined("and", lambda: self._not(depth)))

  def _joined(self, word: str, part: Callable[[], Condition]) -> Condition:
    parts = [part()]
    while self._take(word):
      parts.append(part())
    return parts[0] if len(parts) == 1 else Condition(word, tuple(parts))

  def _not(self, depth: int) -> Condition:
    if depth > _DEEPEST:
      self._fail(self._tokens[self._next].at, f"more than {_DEEPEST} nested parts")
    if self._take("not"):
      return Condition("not", (self._not(depth + 1),))
    if self._take("("):
      inner = self.condition(depth + 1)
      self._expect(")")
      return inner
    return self._comparison()

  def _comparison(self) -> Condition:
    token = self._tokens[self._next]
    if token.kind not in ("name", "quoted"):
      self._fail(token.at, f"must be the name of a column, not {token.text}")
    self._next += 1
    column = token.text.strip("`")
    if self._take("is"):
      is_negated = self._take("not")
      self._expect("missing")
      found = Condition("missing", column=column)
      return Condition("not", (found,)) if is_negated else found
    is_negated = self._take("not")
    if is_negated or self._tokens[self._next].text == "in":
      self._expect("in")
      found = Condition("in", column=column, literals=self._literals())
      return Condition("not", (found,)) if is_negated else found
    at = self._tokens[self._next]
    if not self._take(*_COMPARE):
      self._fail(at.at, f"must compare '{column}' with something, not be {at.text}")
    literal = self._literal()
    if isinstance(literal, str) and at.text not in ("==", "!="):
      self._fail(at.at, f"{at.text} needs a number, not text")
    return Condition(at.text, column=column, literals=(literal,))

  def _literals(self) -> tuple[Literal, ...]:
    self._expect("(")
    found = [self._literal()]
    while self._take(","):
      found.append(self._literal())
    token = self._tokens[self._next]
    self._expect(")")
    if len({type(value) for value in found}) > 1:
      self._fail(token.at, "must not mix numbers and texts")
    return tuple(found)

  def _literal(self) -> Literal:
    token = self._tokens[self._next]
    if token.kind == "text" and token.text[1:-1].strip() != token.text[1:-1]:
      self._fail(token.at, "text must not begin or end with a space; values have none there")
    if token.kind == "text" and token.text[1:-1] == "":
      self._fail(token.at, "empty text is a missing value; write 'is missing'")
    if token.kind not in ("text", "number"):
      hint = f"; write '{token.text}' in quotes" if token.kind == "name" else ""
      self._fail(token.at, f"must be a number or a text in quotes, not {token.text}{hint}")
    self._next += 1
    return token.text[1:-1] if token.kind == "text" else float(token.text)
