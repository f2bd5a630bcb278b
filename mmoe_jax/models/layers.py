"""Layers of the models: dropout, MLP, stacks of networks, towers, the gate.

Shape letters: B rows, D inputs, E experts, T tasks, H hidden units, O outputs of all tasks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmoe_jax.models.kernels import keep_count, keep_mask

Array = jax.Array
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "relu": nn.relu,
  "gelu": nn.gelu,
  "silu": nn.silu,
  "tanh": nn.tanh,
  "identity": lambda x: x,
}
NORMS = ("none", "layer", "batch")


def is_enabled(setting: float | Array) -> bool:
  """Returns whether a setting is above 0. A traced one counts as enabled: its value is unknown."""
  return isinstance(setting, jax.Array) or setting != 0


def ensemble(
  module: type[nn.Module], size: int, in_axes: int | tuple[int | None, ...] | None = None
) -> Callable[..., nn.Module]:
  """Stacks `size` independent copies of a module: the only use of `nn.vmap`.

  Each copy has its own initial parameters and dropout. Parameters are stacked on a leading axis and
  outputs on axis 0, so that a stack of experts gives `experts_ExBxH`.

  Args:
    module: class to copy.
    size: number of copies.
    in_axes: None to feed all copies the same input, 0 to give each its own slice; a tuple for
      modules with more arguments than (x, train).

  Returns:
    A class; construct it with the arguments of `module`.
  """
  return nn.vmap(
    module,
    variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=in_axes if isinstance(in_axes, tuple) else (in_axes, None),
    out_axes=0,
    axis_size=size,
  )


class Dropout(nn.Module):
  """Inverted dropout with rates in 256ths.

  The rate is rounded to 256ths, and the units that are kept are scaled by the rounded rate, so that
  expectations are exact.

  Attributes:
    rate: share of units that are set to zero in training, in [0, 1); may be traced.
    axis_name: device axis that rows are sharded over, if any; devices draw different units.

  References:
    Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov: Dropout: A Simple Way to Prevent
    Neural Networks from Overfitting. JMLR 15, 2014.
  """

  rate: float
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """Drops units of x, of any shape with rows first, in training."""
    kept = keep_count(self.rate)
    if not train or (isinstance(kept, int) and kept == 256):
      return x
    mask = keep_mask(self.make_rng("dropout"), kept, x.shape, self.axis_name)
    return jnp.where(mask, x * (256 / kept), 0.0)


class Mlp(nn.Module):
  """Hidden layers, each Dense → norm → activation → dropout, and an optional linear output.

  Without hidden layers and output it is the identity.

  Attributes:
    hidden: units of each hidden layer; may be empty.
    out: units of the linear output layer; None for none.
    activation: a key of ACTIVATIONS.
    norm: one of NORMS. `batch` keeps running statistics in the collection `batch_stats`.
    dropout: dropout rate after each hidden layer.
    axis_name: device axis that rows are sharded over, if any.
  """

  hidden: Sequence[int]
  out: int | None = None
  activation: str = "relu"
  norm: str = "none"
  dropout: float = 0.0
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """Maps x (B, D) to (B, out), or to (B, hidden[-1]) without an output layer."""
    for i, units in enumerate(self.hidden):
      x = nn.Dense(units, use_bias=self.norm != "batch", name=f"Dense_{i}")(x)
      x = _norm_act_dropout(x, self.activation, self.norm, self.dropout, self.axis_name, train)
    return x if self.out is None else nn.Dense(self.out, name=f"Dense_{len(self.hidden)}")(x)


class NormActDropout(nn.Module):
  """The part of a hidden layer after its linear map: norm → activation → dropout.

  Attributes:
    activation: a key of ACTIVATIONS.
    norm: one of NORMS.
    dropout: dropout rate.
    axis_name: device axis that rows are sharded over, if any.
  """

  activation: str = "relu"
  norm: str = "none"
  dropout: float = 0.0
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """Maps x (B, D) to (B, D)."""
    return _norm_act_dropout(x, self.activation, self.norm, self.dropout, self.axis_name, train)


def _norm_act_dropout(
  x: Array, activation: str, norm: str, dropout: float, axis_name: str | None, train: bool
) -> Array:
  """Applies norm, activation and dropout; submodules belong to the calling module."""
  if norm == "layer":
    x = nn.LayerNorm()(x)
  elif norm == "batch":
    x = nn.BatchNorm(not train, momentum=0.9, axis_name=axis_name)(x)
  return Dropout(dropout, axis_name)(ACTIVATIONS[activation](x), train)


def towers(
  outputs: Sequence[int], settings: Mapping[str, Any], input_TxBxH: Array, train: bool
) -> Array:
  """Applies each task's tower h^k to its input and concatenates the outputs.

  Tasks with equally many outputs are one stack, `towers`. Otherwise the hidden layers are, and each
  task has a separate last layer, `head_K`. Call it from a compact method of a module, which then
  owns the parameters.

  Args:
    outputs: number of outputs of each task.
    settings: arguments of Mlp for the hidden layers.
    input_TxBxH: input of each task.
    train: whether this is training.

  Returns:
    logits_BxO: outputs of the first task, then those of the second, and so on.
  """
  are_equal = len(set(outputs)) == 1
  out = outputs[0] if are_equal else None
  stack = ensemble(Mlp, len(outputs), in_axes=0)(**settings, out=out, name="towers")
  out_TxBxH = stack(input_TxBxH, train)
  if are_equal:
    return jnp.swapaxes(out_TxBxH, 0, 1).reshape(out_TxBxH.shape[1], -1)
  heads = [nn.Dense(n, name=f"head_{k}")(out_TxBxH[k]) for k, n in enumerate(outputs)]
  return jnp.concatenate(heads, axis=1)


class Gate(nn.Module):
  """Softmax gate over experts: g(x) = softmax(W x), W in R^{E×D} (Ma et al. 2018, equation 7).

  It starts near uniform, with logits of about 0.01 |x|, so that every expert gets gradient from
  every task. A gate that starts saturated would ignore the other experts.

  Attributes:
    experts: number of experts E.
    hidden: units of hidden layers before W; none in the paper.
    dropout: rate at which a row loses an expert in training; the others' weights are scaled up. A
      row that would lose all experts keeps all (Zhao et al. 2019).
    axis_name: device axis that rows are sharded over, if any.
  """

  experts: int
  hidden: Sequence[int] = ()
  dropout: float = 0.0
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool, visible_E: Array | None = None) -> Array:
    """Maps x (B, D) to weights (B, E) that sum to one and are zero where not `visible_E`."""
    x = Mlp(self.hidden)(x, train)
    logits = nn.Dense(self.experts, use_bias=False, kernel_init=nn.initializers.normal(0.01))(x)
    open_BxE = None if visible_E is None else jnp.broadcast_to(visible_E[None], logits.shape)
    if train and is_enabled(self.dropout):
      draw = (self.make_rng("dropout"), keep_count(self.dropout), logits.shape)
      kept_BxE = keep_mask(*draw, self.axis_name)
      visible_BxE = jnp.ones_like(kept_BxE) if open_BxE is None else open_BxE
      left_BxE = visible_BxE & kept_BxE
      open_BxE = jnp.where(left_BxE.any(1, keepdims=True), left_BxE, visible_BxE)
    return nn.softmax(logits, where=open_BxE)


def parameter_count(params: Any) -> int:
  """Returns the number of scalars in a tree of parameters."""
  return sum(math.prod(p.shape) for p in jax.tree.leaves(params))
