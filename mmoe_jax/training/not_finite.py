"""First operation of a function whose result is not finite, and the layer that it belongs to.

The function is traced and its operations are evaluated one by one, so this is for one step after a
fault, not for training.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # Parameters of an operation that calls a function.
_LOOPS = ("while", "cond")


class Origin(NamedTuple):
  """First operation that is not finite.

  Attributes:
    layer: path of its module, such as `MMoE/experts/Dense_0`; empty outside of the model.
    is_gradient: whether it is part of the backward pass.
    operation: name of the operation in JAX, such as `dot_general`.
  """

  layer: str
  is_gradient: bool
  operation: str


def is_finite(tree: Any) -> bool:
  """Returns whether all floating-point numbers of a tree are finite."""
  return not any(not_finite_leaves(tree))


def not_finite_leaves(tree: Any) -> list[str]:
  """Returns the paths of the leaves that have a number that is not finite."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  floats = [(path, leaf) for path, leaf in leaves if _is_float(leaf)]
  bad = jax.device_get(_are_not_finite([leaf for _, leaf in floats]))
  return [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for (path, _), is_bad in zip(floats, bad, strict=True)
    if is_bad
  ]


@jax.jit
def _are_not_finite(leaves: Sequence[jax.Array]) -> list[jax.Array]:
  return [~jnp.isfinite(leaf).all() for leaf in leaves]


def _is_float(value: Any) -> bool:
  return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)


def find_origin(function: Callable[..., Any], *arguments: Any) -> Origin | None:
  """Returns the first operation whose result is not finite and makes an output so; None without.

  Results that are not finite and have no effect on an output, such as those of a branch that
  `where` does not take, do not count.

  Args:
    function: a pure function of arrays.
    *arguments: its arguments.
  """
  traced = jax.make_jaxpr(function)(*arguments)
  tape = _Tape()
  leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(arguments)]
  outputs = tape.evaluate(traced.jaxpr, traced.consts, leaves, "")
  return tape.first_before(outputs)


class _Tape:
  """Operations with results that are not finite, in their order."""

  def __init__(self) -> None:
    self._number_of: dict[int, int] = {}  # id of a value -> number of its operation.
    self._operations: list[tuple[Origin, list[int]]] = []
    self._alive: list[Any] = []  # The id of a value that is freed could be another's.

  def first_before(self, outputs: Sequence[Any]) -> Origin | None:
    todo = [self._number_of[id(v)] for v in outputs if id(v) in self._number_of]
    found, first = set(todo), None
    while todo:
      number = todo.pop()
      parents = self._operations[number][1]
      if not parents and (first is None or number < first):
        first = number
      todo += [parent for parent in parents if parent not in found]
      found.update(parents)
    return None if first is None else self._operations[first][0]

  def evaluate(
    self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], scope: str
  ) -> list[Any]:
    """Evaluates the operations of a traced function one by one; `scope` is that of its call."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))
    read = lambda v: v.val if hasattr(v, "val") else values[v]
    for equation in jaxpr.eqns:
      inputs = [read(v) for v in equation.invars]
      stack = f"{scope}/{equation.source_info.name_stack}"
      outputs = self._call(equation, inputs, stack)
      if outputs is None:
        parameters = equation.primitive.get_bind_params(equation.params)
        # Versions of JAX before 0.11 return functions, too.
        functions, parameters = parameters if isinstance(parameters, tuple) else ((), parameters)
        found = equation.primitive.bind(*functions, *inputs, **parameters)
        outputs = list(found) if equation.primitive.multiple_results else [found]
        self._record(equation.primitive.name, stack, inputs, outputs)
      values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]

  def _call(self, equation: Any, inputs: Sequence[Any], stack: str) -> list[Any] | None:
    """Evaluates a call, or a loop of one step, by its operations; returns None for others."""
    name, parameters = equation.primitive.name, equation.params
    inner = next((parameters[key] for key in _CALLS if key in parameters), None)
    if inner is None or name in _LOOPS or (name == "scan" and parameters["length"] != 1):
      return None
    jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
    if name != "scan":
      known = len(inputs) == len(jaxpr.invars)
      return self.evaluate(jaxpr, consts, inputs, stack) if known else None
    whole = parameters["num_consts"] + parameters["num_carry"]
    inputs = [v if i < whole else v[0] for i, v in enumerate(inputs)]
    outputs = self.evaluate(jaxpr, consts, inputs, stack)
    carried = parameters["num_carry"]
    stacked = [v if i < carried else jnp.asarray(v)[None] for i, v in enumerate(outputs)]
    for before, after in zip(outputs[carried:], stacked[carried:], strict=True):
      if id(before) in self._number_of:  # The same numbers.
        self._number_of[id(after)] = self._number_of[id(before)]
        self._alive.append(after)
    return stacked

  def _record(self, name: str, stack: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    bad = [v for v in outputs if _is_float(v) and not np.isfinite(jax.device_get(v)).all()]
    if not bad:
      return
    parents = [self._number_of[id(v)] for v in inputs if id(v) in self._number_of]
    layer = "/".join(filter(None, re.sub(r"\w+\(|\)", "", stack).split("/")))
    self._operations.append((Origin(layer, "transpose(" in stack, name), parents))
    for value in bad:
      self._number_of[id(value)] = len(self._operations) - 1
      self._alive.append(value)
