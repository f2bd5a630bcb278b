"""Forward pass as a list of array operations, which static/model.js runs in the page.

JAX traces the model for one row, or several models of a mean for the same row. What does not depend
on the row is computed here, once, so that few kinds of operations remain; none of them depends on
the name of a model.

Shape letters: F columns of ids, D numeric inputs, M models, O outputs of all tasks, T tasks,
E experts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

# Operations that static/model.js has, by the name of JAX's primitive.
_SUPPORTED_TEXT = (
  "abs add and argmax broadcast_in_dim clamp concatenate convert_element_type copy div dot_general "
  "eq erf exp exp2 expand_dims gather ge gt integer_pow iota is_finite le log log1p logistic lt "
  "max min mul ne neg not or pow reduce_max reduce_min reduce_prod reduce_sum rem reshape rsqrt "
  "select_n shift_right_logical sign slice sqrt square squeeze stack stop_gradient sub tanh "
  "transpose xor"
)
SUPPORTED = frozenset(_SUPPORTED_TEXT.split(" "))
_NESTED = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # Parameters that contain an inner program.
_LARGEST_FOLDED = 1 << 16  # Numbers; a larger result is computed in the page.


class UnsupportedModelError(Exception):
  """Raised for a model that the page cannot compute; the message is a reason for people."""


class Program(NamedTuple):
  """Operations in the order of their evaluation.

  Values are numbered: 0 the ids (1, F), 1 the numeric inputs (1, D), then the constants, then one
  per operation.

  Attributes:
    steps: JSON values for each operation: `op`, `of` (numbers of its operands), `shape`, `type` and
      further parameters of it.
    constants: arrays, float32 or int32.
    logits: number of the logits (1, M·O), those of a model side by side.
    gates: number of the gates (T, 1, E); None for a model without gates, or several models.
  """

  steps: list[dict[str, Any]]
  constants: list[np.ndarray]
  logits: int
  gates: int | None

  @property
  def size_bytes(self) -> int:
    """Bytes of the constants."""
    return sum(array.nbytes for array in self.constants)


def trace(model: Any, each_variables: Sequence[Any], id_count: int, numeric_count: int) -> Program:
  """Traces the forward pass of a model for one row.

  Args:
    model: the model.
    each_variables: its variables; of a mean, those of each of its M models.
    id_count: number F of columns of ids.
    numeric_count: number D of numeric inputs.

  Raises:
    UnsupportedModelError: if an operation is not in SUPPORTED.
  """
  has_gates = []

  def forward(ids: jax.Array, numeric: jax.Array) -> list[jax.Array]:
    features = {"ids": ids, "numeric": numeric}
    found = [model.apply(v, features, mutable=["intermediates"]) for v in each_variables]
    if len(found) > 1:
      has_gates.append(False)
      return [jnp.concatenate([logits for logits, _ in found], axis=1)]
    ((logits, sown),) = found
    gates = sown.get("intermediates", {}).get("gates", ())
    has_gates.append(bool(gates))
    return [logits, *gates]

  # Tables of 16-bit numbers are exact in 32 bits.
  to_float32 = lambda a: a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a
  each_variables = jax.tree.map(lambda a: to_float32(jnp.asarray(a)), list(each_variables))
  closed = jax.make_jaxpr(forward)(
    jnp.zeros((1, id_count), jnp.int32), jnp.zeros((1, numeric_count), jnp.float32)
  )
  tracer = _Tracer()
  outputs = tracer.run(closed.jaxpr, closed.consts, [_Value(0), _Value(1)])
  return tracer.program(outputs[0], outputs[1] if has_gates[0] else None)


class _Value(NamedTuple):
  """Value that depends on the row: its provisional number."""

  number: int


class _Tracer:
  """Evaluates what is known, and records the other operations."""

  def __init__(self) -> None:
    self._steps: list[dict[str, Any]] = []
    self._constants: list[np.ndarray] = []
    self._places: dict[int, int] = {}  # id of a known array -> its number; _kept keeps it alive.
    self._kept: list[Any] = []

  def run(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Returns the outputs of a program: known arrays, or _Value."""
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    known |= zip(jaxpr.invars, arguments, strict=True)
    read = lambda v: v.val if isinstance(v, jex.Literal) else known[v]
    for equation in jaxpr.eqns:
      outputs = self._apply(equation, [read(v) for v in equation.invars])
      known |= zip(equation.outvars, outputs, strict=True)
    return [read(v) for v in jaxpr.outvars]

  def _apply(self, equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    name, params = equation.primitive.name, equation.params
    inner = next((params[key] for key in _NESTED if key in params), None)
    if name in ("scan", "while", "cond"):
      raise UnsupportedModelError(f"it contains the operation '{name}'")
    if inner is not None:
      jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, ())
      return self.run(jaxpr, consts, operands)
    is_known = not any(isinstance(o, _Value) for o in operands)
    size = sum(int(np.prod(v.aval.shape)) for v in equation.outvars)
    if is_known and size <= max(_LARGEST_FOLDED, *(np.size(o) for o in operands), 0):
      found = equation.primitive.bind(*operands, **params)
      return found if equation.primitive.multiple_results else [found]
    return [self._record(name, params, operands, equation)]

  def _record(
    self, name: str, params: Mapping[str, Any], operands: Sequence[Any], equation: Any
  ) -> _Value:
    if name not in SUPPORTED or len(equation.outvars) != 1:
      raise UnsupportedModelError(f"it contains the operation '{name}'")
    aval = equation.outvars[0].aval
    step = {"op": name, "of": [self._number(o) for o in operands], "shape": list(aval.shape)}
    step["type"] = _type_of(aval.dtype)
    step |= _parameters(name, params)
    self._steps.append(step)
    return _Value(-len(self._steps))  # Negative until the number of constants is known.

  def _number(self, operand: Any) -> tuple[str, int]:
    if isinstance(operand, _Value):
      return ("value", operand.number)
    if id(operand) not in self._places:
      array = np.asarray(operand)
      self._places[id(operand)] = len(self._constants)
      self._kept.append(operand)
      self._constants.append(array.astype(np.float32 if array.dtype.kind == "f" else np.int32))
    return ("constant", self._places[id(operand)])

  def program(self, logits: Any, gates: Any) -> Program:
    """Returns the program, with final numbers."""
    logits, gates = (None if v is None else self._number(v) for v in (logits, gates))
    first_step = 2 + len(self._constants)

    def final(number: tuple[str, int]) -> int:
      kind, at = number
      if kind == "constant":
        return 2 + at
      return at if at >= 0 else first_step - at - 1

    steps = [{**step, "of": [final(n) for n in step["of"]]} for step in self._steps]
    return Program(steps, self._constants, final(logits), None if gates is None else final(gates))


def _type_of(dtype: Any) -> str:
  if dtype == np.uint32:
    return "u"
  return {"f": "f", "i": "i", "u": "i", "b": "b"}[np.dtype(dtype).kind]


# Operation -> its parameters that change the result, with the names that static/model.js reads.
_PARAMETERS = {
  "argmax": {"axes": "axes"},
  "broadcast_in_dim": {"broadcast_dimensions": "axes"},
  "concatenate": {"dimension": "axis"},
  "integer_pow": {"y": "power"},
  "iota": {"dimension": "axis"},
  "slice": {"start_indices": "start", "strides": "strides"},
  "stack": {"axis": "axis"},
  "transpose": {"permutation": "axes"},
} | {f"reduce_{name}": {"axes": "axes"} for name in ("max", "min", "prod", "sum")}


def _parameters(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the parameters of an operation, as JSON values."""
  if name == "dot_general":
    (left, right), (left_batch, right_batch) = params["dimension_numbers"]
    found = {"left": left, "right": right, "leftBatch": left_batch, "rightBatch": right_batch}
  elif name == "gather":
    numbers = params["dimension_numbers"]
    if numbers.operand_batching_dims:
      raise UnsupportedModelError("it contains a batched 'gather'")
    found = {"offset": numbers.offset_dims, "collapsed": numbers.collapsed_slice_dims}
    found |= {"start": numbers.start_index_map, "sizes": params["slice_sizes"]}
  else:
    found = {short: params[key] for key, short in _PARAMETERS.get(name, {}).items()}
  to_json = lambda v: list(map(int, v)) if isinstance(v, tuple | list) else int(v)
  return {key: to_json(value) for key, value in found.items() if value is not None}
