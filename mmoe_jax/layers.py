"""The parts that models are made of. They know arrays and sizes, no config and no task.

Shape letters: B rows, F id features, D inputs, E experts, T tasks, H hidden units, V table rows.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax.hashing import scramble

Array = jax.Array
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "relu": nn.relu,
  "gelu": nn.gelu,
  "silu": nn.silu,
  "tanh": nn.tanh,
  "identity": lambda x: x,
}
NORMS = ("none", "layer", "batch")


def is_on(setting: float | Array) -> bool:
  """Whether a setting that is off at 0 is on; a traced one is, as its value is not known yet."""
  return isinstance(setting, jax.Array) or setting != 0


def ensemble(
  module: type[nn.Module], size: int, in_axes: int | tuple[int | None, ...] | None = None
) -> Callable[..., nn.Module]:
  """A stack of `size` independent copies of a module: our one use of `nn.vmap`.

  Each copy draws its own initial parameters and its own dropout; parameters are stacked on a
  leading axis and outputs on axis 0, so that a stack of experts gives `experts_ExBxH`.

  Args:
    module: the class to copy.
    size: how many copies.
    in_axes: None to feed every copy the same input, 0 to give each its own slice; a tuple for
      modules that take more than (x, train).

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


def kept_of_256(rate: float | Array) -> int | Array:
  """How many of 256 units dropout keeps at a rate: the rate in 256ths, and never all."""
  if isinstance(rate, jax.Array):
    return 256 - jnp.minimum(jnp.round(rate * 256), 255).astype(jnp.int32)
  # In float32, as a traced rate is, so that both keep the same.
  return 256 - min(int(np.round(np.float32(rate) * 256)), 255)


def keep_mask(key: Array, kept: int | Array, shape: Sequence[int]) -> Array:
  """A mask of that shape, true with probability kept / 256, from one random byte a unit.

  The bytes are hashes of the units' numbers under two random words: with JAX's own generator,
  dropout would be a tenth of a step of census.py (benchmarks/README.md).
  """
  size = math.prod(shape)
  first, second = jax.random.bits(key, (2,), jnp.uint32)
  numbers = jax.lax.iota(jnp.uint32, -(-size // 4))
  words = scramble(scramble(numbers ^ first) + second)
  bytes_ = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[:size]
  return bytes_.reshape(shape) <= jnp.uint8(kept - 1)


class Dropout(nn.Module):
  """Inverted dropout (Srivastava et al. 2014) from one random byte a unit.

  `nn.Dropout` draws 32 random bits a unit, which is a quarter of a training step on a CPU. Here a
  byte decides in 256ths: the rate is rounded to them, and units that are kept are scaled by the
  rounded rate, so that expectations are exact.

  Attributes:
    rate: share of units that are set to zero in training, in [0, 1); may be traced.
  """

  rate: float

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """Drops units of x, of any shape, when training."""
    kept = kept_of_256(self.rate)
    if not train or (isinstance(kept, int) and kept == 256):
      return x
    mask = keep_mask(self.make_rng("dropout"), kept, x.shape)
    return jnp.where(mask, x * (256 / kept), 0.0)


class FeatureEmbedding(nn.Module):
  """Embeds id features by one stacked table per distinct width, and appends the numeric ones.

  The ids of feature f select rows offset_f … offset_f + size_f − 1 of the table; a single gather
  serves all features of that width. Row 0 of each feature, the id of unknown values, starts at
  zero: training never sees it, so an unknown value adds nothing rather than noise.

  Attributes:
    sizes: number of ids of each feature.
    dims: width of each feature's vectors.
    init_std: standard deviation of the initial vectors.
    dropout: rate at which single coordinates of the output are dropped in training.
  """

  sizes: Sequence[int]
  dims: Sequence[int]
  init_std: float = 0.05
  dropout: float = 0.0

  @nn.compact
  def __call__(self, features: dict[str, Array], train: bool) -> Array:
    """Returns x_BxD: embeddings of `ids` (B, F), by width, then `numeric` (B, D_numeric)."""
    ids_BxF = features["ids"]
    parts = []
    for dim in sorted(set(self.dims)):
      columns = [f for f, d in enumerate(self.dims) if d == dim]
      sizes = [self.sizes[f] for f in columns]
      table_VxD = self.param(f"table_{dim}", self._init(sizes), (sum(sizes), dim))
      offsets_F = np.cumsum([0, *sizes[:-1]]).astype(np.int32)
      picked_BxF = ids_BxF if len(columns) == len(self.dims) else ids_BxF[:, np.array(columns)]
      rows_BxF = picked_BxF.astype(jnp.int32) + offsets_F[None, :]
      # Encoding keeps ids in range; not checking it again saves 5 to 10 % of a step on a CPU.
      vectors = table_VxD.at[rows_BxF].get(mode="promise_in_bounds")
      parts.append(vectors.reshape(len(ids_BxF), -1))
    if features["numeric"].shape[1]:
      parts.append(features["numeric"])
    x_BxD = jnp.concatenate(parts, axis=1)
    return Dropout(self.dropout)(x_BxD, train)

  def _init(self, sizes: Sequence[int]) -> Callable[..., Array]:
    unknown = np.cumsum([0, *sizes[:-1]])

    def init(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
      return nn.initializers.normal(self.init_std)(key, shape, dtype).at[unknown].set(0.0)

    return init


@functools.cache
def _dense_then(activation: str) -> Callable[[Array, Array, Array], Array]:
  """activation(x W + b) with a batching rule of its own for stacks (E, D, H) on one input."""

  @jax.custom_batching.custom_vmap
  def layer(x_BxD: Array, kernel_DxH: Array, bias_H: Array) -> Array:
    return ACTIVATIONS[activation](x_BxD @ kernel_DxH + bias_H[None])

  @layer.def_vmap
  def _of_stack(
    size: int, batched: Sequence[bool], x: Array, kernel: Array, bias: Array
  ) -> tuple[Array, bool]:
    if list(batched) != [False, True, True]:
      axes = [0 if b else None for b in batched]
      return jax.vmap(layer.fun, axes)(x, kernel, bias), True
    inputs, units = kernel.shape[1:]
    h_BxEH = x @ kernel.swapaxes(0, 1).reshape(inputs, size * units)
    h_BxExH = ACTIVATIONS[activation](h_BxEH.reshape(-1, size, units) + bias[None])
    return h_BxExH.swapaxes(0, 1), True

  return layer


class SharedInputDense(nn.Module):
  """Dense → activation, for one of an `ensemble` that look at the same input; only under its vmap.

  The vmap of a dense layer is a product of a matrix and a tensor, whose gradient XLA writes twice,
  turned for each product that it goes into. Here it is one product of two matrices, whose
  gradient is written once, in the layout that both need: a tenth of a step (benchmarks/README.md).
  Outside of a vmap it has no gradient.

  Attributes:
    units: number of units H.
    activation: a key of ACTIVATIONS.
  """

  units: int
  activation: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps x (B, D) to (B, H)."""
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.units))
    bias = self.param("bias", nn.initializers.zeros, (self.units,))
    return _dense_then(self.activation)(x, kernel, bias)


class Mlp(nn.Module):
  """Hidden layers, each Dense → norm → activation → dropout, and maybe a linear output.

  With no hidden layer and no output it is the identity.

  Attributes:
    hidden: units of each hidden layer; may be empty.
    out: units of the linear output layer; None for none.
    activation: a key of ACTIVATIONS.
    norm: one of NORMS. `batch` keeps running statistics in the collection `batch_stats`.
    dropout: rate after each hidden layer in training.
    axis_name: the device axis that batch statistics are averaged over, if any.
    shared_input: whether this is one of an `ensemble` that all look at the same input.
  """

  hidden: Sequence[int]
  out: int | None = None
  activation: str = "relu"
  norm: str = "none"
  dropout: float = 0.0
  axis_name: str | None = None
  shared_input: bool = False

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """Maps x (B, D) to (B, out), or to (B, hidden[-1]) without an output layer."""
    for i, units in enumerate(self.hidden):
      name = f"Dense_{i}"
      if i == 0 and self.shared_input and self.norm == "none":
        x = Dropout(self.dropout)(SharedInputDense(units, self.activation, name=name)(x), train)
      else:
        x = nn.Dense(units, use_bias=self.norm != "batch", name=name)(x)
        x = _finish(x, self.activation, self.norm, self.dropout, self.axis_name, train)
    return x if self.out is None else nn.Dense(self.out, name=f"Dense_{len(self.hidden)}")(x)


class Finish(nn.Module):
  """What follows the linear map of a hidden layer: norm → activation → dropout.

  Attributes:
    activation, norm, dropout, axis_name: see Mlp.
  """

  activation: str = "relu"
  norm: str = "none"
  dropout: float = 0.0
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """Maps x (B, D) to (B, D)."""
    return _finish(x, self.activation, self.norm, self.dropout, self.axis_name, train)


def _finish(
  x: Array, activation: str, norm: str, dropout: float, axis_name: str | None, train: bool
) -> Array:
  """Makes its modules in the module that calls it."""
  if norm == "layer":
    x = nn.LayerNorm()(x)
  elif norm == "batch":
    x = nn.BatchNorm(not train, momentum=0.9, axis_name=axis_name)(x)
  return Dropout(dropout)(ACTIVATIONS[activation](x), train)


def towers(
  outputs: Sequence[int], settings: Mapping[str, Any], input_TxBxH: Array, train: bool
) -> Array:
  """Applies to each task's input a tower of its own, and puts the outputs side by side.

  Tasks with equally many outputs are one stack, `towers`; otherwise the hidden layers are, and each
  task's last layer stands alone, `head_K`. Call it from a compact method of a module, which the
  parameters then belong to.

  Args:
    outputs: number of outputs of each task.
    settings: arguments of Mlp for the hidden layers.
    input_TxBxH: each task's input.
    train: whether this is training.

  Returns:
    logits_BxO: the outputs of the first task, then those of the second, and so on.
  """
  equal = len(set(outputs)) == 1
  stack = ensemble(Mlp, len(outputs), 0)(
    **settings, out=outputs[0] if equal else None, name="towers"
  )
  out_TxBxH = stack(input_TxBxH, train)
  if equal:
    return jnp.swapaxes(out_TxBxH, 0, 1).reshape(out_TxBxH.shape[1], -1)
  heads = [nn.Dense(n, name=f"head_{k}")(out_TxBxH[k]) for k, n in enumerate(outputs)]
  return jnp.concatenate(heads, axis=1)


class Gate(nn.Module):
  """A softmax gate over experts: g(x) = softmax(W x) (Ma et al. 2018, eq. 7), W in R^{E×D}.

  It starts near uniform, with logits of about 0.01 |x|, so that every expert gets gradient
  from every task at first; a gate that starts saturated never looks at the others.

  Attributes:
    experts: number of experts E.
    hidden: units of hidden layers before W; the paper has none.
    dropout: rate at which an expert is lost to a row in training; the others' weights make up
      for it. A row that would lose all keeps all (Zhao et al. 2019).
  """

  experts: int
  hidden: Sequence[int] = ()
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: Array, train: bool, visible_E: Array | None = None) -> Array:
    """Maps x (B, D) to weights (B, E) that sum to one, and are zero where not `visible_E`."""
    x = Mlp(self.hidden)(x, train)
    logits = nn.Dense(self.experts, use_bias=False, kernel_init=nn.initializers.normal(0.01))(x)
    open_BxE = None if visible_E is None else jnp.broadcast_to(visible_E[None], logits.shape)
    if train and is_on(self.dropout):
      kept_BxE = keep_mask(self.make_rng("dropout"), kept_of_256(self.dropout), logits.shape)
      visible_BxE = jnp.ones_like(kept_BxE) if open_BxE is None else open_BxE
      left_BxE = visible_BxE & kept_BxE
      open_BxE = jnp.where(left_BxE.any(1, keepdims=True), left_BxE, visible_BxE)
    return nn.softmax(logits, where=open_BxE)


def mixture(gates_TxBxE: Array, experts_ExBxH: Array) -> Array:
  """f^k(x) = sum over i of g^k(x)_i f_i(x) (Ma et al. 2018, eq. 6), for each gate: (T, B, H).

  The einsum "tbe,ebh->tbh" says the same, but becomes a matrix product for every row, of
  matrices too small for it; as a sum it makes a step of census.py a tenth faster on a CPU.
  """
  gates_TxExBx1 = gates_TxBxE.swapaxes(1, 2)[..., None]
  return (gates_TxExBx1 * experts_ExBxH[None]).sum(1)


def parameter_count(params: Any) -> int:
  """Number of trainable scalars in a tree of parameters."""
  return sum(math.prod(p.shape) for p in jax.tree.leaves(params))
