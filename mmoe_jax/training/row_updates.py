"""Embedding tables that a step updates only in the rows that its batch reads.

The cost of a step then depends on the batch, not on the tables:

    locate   the rows of the batch's ids; of equal ids, one position that stands for all
    read     their vectors, by which the loss is differentiated in place of the tables
    sum_equal  the gradients of equal ids
    update   these rows, and their optimizer state, in place

Tables are parameters like others (`params["embedding"]`), so that evaluation, checkpoints and
prediction do not depend on how they were trained; the optimizer of the dense parameters does not
contain them. Over several devices a table is either on each of them or sharded: then each device
owns a range of rows, ids are gathered from all devices, each reads the rows that it owns, a
reduce-scatter adds up the vectors, and gradients are gathered like the ids.

Shape letters: V rows of a table (of a device, if it is sharded), D its width, B rows of a batch on
one device, F columns of ids, P positions of a batch's ids (see TableLayout), N = ids of a step on
all devices.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmoe_jax.models.embedding import TABLES, TableLayout
from mmoe_jax.models.kernels import scramble
from mmoe_jax.training.row_optimizer import RowOptimizer, round_at_random

Array = jax.Array


class RowState(NamedTuple):
  """Optimizer state of a run with row-wise updates.

  Attributes:
    dense: of the dense parameters.
    rows: table -> its state, arrays (V, …).
    slots: table -> (V,) int32, where `locate` notes positions; not saved in checkpoints.
  """

  dense: Any
  rows: Mapping[str, Mapping[str, Array]]
  slots: Mapping[str, Array]


class Rows(NamedTuple):
  """Rows of a table that a step reads.

  Attributes:
    own: rows of this device's ids, in the whole table: (B, F), or (P,) with packed lists.
    local_N: rows of all devices' ids among those that this device owns; V or more for others.
    first_N: the position that stands for all equal ids, N for ids that this device does not own.
  """

  own: Array
  local_N: Array
  first_N: Array


class Trained(NamedTuple):
  """Arrays that the loss is differentiated by, or their gradients.

  Attributes:
    params: dense parameters.
    vectors: table -> vectors (B, F, D) or (P, D) of the batch; gradients of rows (N, D).
  """

  params: Any
  vectors: Mapping[str, Array]


class DenseTables:
  """Tables that are parameters like all others: every step updates all rows."""

  def with_vectors(self, features: Mapping[str, Array]) -> Mapping[str, Any]:
    """Returns features for the model's init, which initialises the tables, too."""
    return features

  def split(self, params: Any) -> tuple[Any, dict[str, Array]]:
    """Returns all parameters as dense ones, and no tables."""
    return params, {}

  def init(self, key: Array, params: Any, opt_state: Any, given: Any) -> tuple[Any, Any]:
    """Returns parameters and optimizer state as they are."""
    del key, given
    return params, opt_state

  def locate(self, opt_state: Any, features: Any, weights: Any) -> tuple[dict[str, Rows], Any]:
    """Returns no rows."""
    del features, weights
    return {}, opt_state

  def read(self, params: Any, rows: Mapping[str, Rows]) -> Trained:
    """Returns all parameters, and no vectors."""
    del rows
    return Trained(params, {})

  def sum_equal(self, vectors: Mapping[str, Array], rows: Mapping[str, Rows]) -> dict[str, Array]:
    """Returns no gradients."""
    del vectors, rows
    return {}

  def update(
    self,
    tx: optax.GradientTransformation,
    params: Any,
    opt_state: Any,
    trained: Trained,
    grads: Trained,
    rows: Mapping[str, Rows],
    step: Array,
  ) -> tuple[Any, Any]:
    """Updates all parameters by the optimizer."""
    del trained, rows, step
    updates, opt_state = tx.update(grads.params, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  def count_zero_rows(self, params: Any) -> dict[str, Array]:
    """Returns no counts."""
    del params
    return {}


DENSE_TABLES = DenseTables()


class RowWiseTables:
  """Tables of which a step updates the rows of its batch; pure functions like those of a model."""

  def __init__(
    self,
    layouts: Sequence[TableLayout],
    optimizer: RowOptimizer,
    init_std: float,
    clip_norm: float = 0.0,
    devices: int = 1,
    axis_name: str | None = None,
    is_sharded: bool = False,
    dtype: str = "float32",
  ):
    """Prepares the functions.

    Args:
      layouts: layout of each table.
      optimizer: optimizer of the rows.
      init_std: standard deviation of the initial vectors.
      clip_norm: bound on the norm of the whole gradient, rows included; 0 for none.
      devices: number of devices that share a batch.
      axis_name: name of their axis, if there are several.
      is_sharded: whether each device owns a range of the rows.
      dtype: type of the tables' numbers; bfloat16 is rounded at random, see round_at_random.
    """
    self._dtype = jnp.dtype(dtype)
    self._layouts = {layout.name: layout for layout in layouts}
    self._optimizer = optimizer
    self._init_std, self._clip_norm = init_std, clip_norm
    self._devices, self._axis_name, self._is_sharded = devices, axis_name, is_sharded

  def with_vectors(self, features: Mapping[str, Array]) -> Mapping[str, Any]:
    """Returns features with vectors, so that the model's init creates no tables."""
    vectors = {
      name: jnp.zeros((*layout.positions(features).shape, layout.dim))
      for name, layout in self._layouts.items()
    }
    return {**features, "vectors": vectors}

  def split(self, params: Any) -> tuple[Any, dict[str, Array]]:
    """Returns the dense parameters, and the tables by name; none if there are none yet."""
    return {k: v for k, v in params.items() if k != TABLES}, params.get(TABLES, {})

  def init(
    self, key: Array, params: Any, opt_state: Any, given: Mapping[str, Array]
  ) -> tuple[Any, RowState]:
    """Adds the tables to the parameters, and their state to that of the optimizer.

    Args:
      key: random key of the tables.
      params: dense parameters.
      opt_state: their optimizer's state.
      given: tables to start from; empty for random ones.
    """
    tables = {
      name: (
        pad_table(given[name], layout)
        if given
        else init_table(jax.random.fold_in(key, i), layout, self._init_std)
      ).astype(self._dtype)
      for i, (name, layout) in enumerate(self._layouts.items())
    }
    states = {name: self._optimizer.init(table) for name, table in tables.items()}
    slots = {name: jnp.zeros(table.shape[0], jnp.int32) for name, table in tables.items()}
    return {**params, TABLES: tables}, RowState(opt_state, states, slots)

  def locate(
    self, opt_state: RowState, features: Mapping[str, Array], weights_B: Array
  ) -> tuple[dict[str, Rows], RowState]:
    """Returns the rows that a batch reads, by table.

    Each position is written to the slot of its row; the one that a slot holds at the end stands for
    all equal ids. That needs no sort, which would cost five times as much as the rest. What a slot
    held before does not matter.

    Args:
      opt_state: optimizer state.
      features: features of the batch on this device.
      weights_B: its row weights; rows of weight 0, which fill up a batch, update nothing.
    """
    found, slots = {}, dict(opt_state.slots)
    for name, layout in self._layouts.items():
      own = _materialise(layout.positions(features), layout.padded_rows)
      size = slots[name].shape[0]
      has_no_weight = layout.spread(weights_B, features) == 0
      local_N = self._gather(jnp.where(has_no_weight, jnp.int32(2**31 - 1), own)).reshape(-1)
      if self._is_sharded:
        local_N = _own_rows(local_N, size, self._axis_name)
      positions_N = jnp.arange(local_N.shape[0], dtype=jnp.int32)
      slots[name] = slots[name].at[local_N].set(positions_N, mode="drop")
      first_N = slots[name].at[local_N].get(mode="clip")
      first_N = jnp.where(local_N < size, first_N, local_N.shape[0])
      first_N = _materialise(first_N, local_N.shape[0])
      found[name] = Rows(own, local_N, first_N)
    return found, opt_state._replace(slots=slots)

  def read(self, params: Any, rows: Mapping[str, Rows]) -> Trained:
    """Returns the dense parameters, and the vectors of this device's ids."""
    vectors = {}
    for name, found in rows.items():
      table_VxD = params[TABLES][name]
      if not self._is_sharded:
        vectors_of_own = table_VxD.at[found.own].get(mode="promise_in_bounds")
        vectors[name] = vectors_of_own.astype(jnp.float32)
        continue
      # Filler rows are read as well: batch norm includes them.
      all_N = self._gather(found.own).reshape(-1)
      own_N = _own_rows(all_N, table_VxD.shape[0], self._axis_name)
      vectors_NxD = table_VxD.at[own_N].get(mode="fill", fill_value=0.0).astype(jnp.float32)
      mine = jax.lax.psum_scatter(vectors_NxD, self._axis_name, tiled=True)
      vectors[name] = mine.reshape(*found.own.shape, -1)
    return Trained(self.split(params)[0], vectors)

  def sum_equal(self, vectors: Mapping[str, Array], rows: Mapping[str, Rows]) -> dict[str, Array]:
    """Sums the gradients of equal ids over all devices.

    Args:
      vectors: table -> gradients (B, F, D) or (P, D) of this device's share of the loss.
      rows: result of `locate`.

    Returns:
      Table -> (N, D): at the position that stands for equal ids their sum, 0 elsewhere.
    """
    sums = {}
    for name, grads in vectors.items():
      dim = grads.shape[-1]
      # The loss is the mean of the devices' shares.
      grads_NxD = self._gather(grads).reshape(-1, dim) / self._devices
      zeros = jnp.zeros_like(grads_NxD)
      sums[name] = zeros.at[rows[name].first_N].add(grads_NxD, mode="drop")
    return sums

  def update(
    self,
    tx: optax.GradientTransformation,
    params: Any,
    opt_state: RowState,
    trained: Trained,
    grads: Trained,
    rows: Mapping[str, Rows],
    step: Array,
  ) -> tuple[Any, RowState]:
    """Updates the dense parameters by `tx`, and the rows of the batch by the rows' optimizer.

    Args:
      tx: optimizer of the dense parameters, without clipping.
      params: parameters with tables.
      opt_state: optimizer state.
      trained: result of `read`.
      grads: gradients; `vectors` as from `sum_equal`.
      rows: result of `locate`.
      step: number of steps taken before.
    """
    grads = self._clip(grads)
    dense, old_tables = self.split(params)
    updates, dense_state = tx.update(grads.params, opt_state.dense, dense)
    dense = optax.apply_updates(dense, updates)
    tables, states = {}, {}
    for name, table_VxD in old_tables.items():
      _, local_N, first_N = rows[name]
      size, count = table_VxD.shape[0], local_N.shape[0]
      positions_N = jnp.arange(count, dtype=jnp.int32)
      # Positions that another one stands for write beyond the table, which drops them.
      target_N = jnp.where(first_N == positions_N, local_N, size + positions_N)
      take = lambda a, at_N=local_N: a.at[at_N].get(mode="clip")
      put = lambda a, new, at_N=target_N: a.at[at_N].set(new, mode="drop", unique_indices=True)
      state_N = jax.tree.map(take, opt_state.rows[name])
      is_read = self._axis_name is None  # Otherwise other devices read some of the rows.
      old_NxD = trained.vectors[name].reshape(count, -1) if is_read else take(table_VxD)
      old_NxD = old_NxD.astype(jnp.float32)
      new_NxD, new_state_N = self._optimizer.update(grads.vectors[name], old_NxD, state_N, step)
      if self._dtype == jnp.bfloat16:
        shard = jax.lax.axis_index(self._axis_name) if self._is_sharded else 0
        new_NxD = round_at_random(new_NxD, local_N + shard * size, step)
      tables[name] = put(table_VxD, new_NxD)
      states[name] = jax.tree.map(put, opt_state.rows[name], new_state_N)
    return {**dense, TABLES: tables}, opt_state._replace(dense=dense_state, rows=states)

  def count_zero_rows(self, params: Any) -> dict[str, Array]:
    """Returns for each table how many rows are 0, without those of unknown values.

    Only an optimizer with an L1 penalty sets rows to zero; {} for others.
    """
    if not self._optimizer.has_l1:
      return {}
    counts = {}
    for name, layout in self._layouts.items():
      is_zero_V = (params[TABLES][name][: layout.rows] == 0).all(1)
      counts[name] = is_zero_V.at[layout.first_rows].set(False).sum()
    return counts

  def _clip(self, grads: Trained) -> Trained:
    """Scales all gradients so that their joint norm is at most the bound."""
    if not self._clip_norm:
      return grads
    of_rows = optax.tree.norm(grads.vectors, squared=True)
    if self._is_sharded:
      of_rows = jax.lax.psum(of_rows, self._axis_name)
    norm = jnp.sqrt(optax.tree.norm(grads.params, squared=True) + of_rows)
    scale = jnp.where(norm < self._clip_norm, 1.0, self._clip_norm / norm)
    return jax.tree.map(lambda g: g * scale, grads)

  def _gather(self, array: Array) -> Array:
    """Returns an array (B, …) of this device with those of the others, (devices · B, …)."""
    if self._axis_name is None:
      return array
    return jax.lax.all_gather(array, self._axis_name, tiled=True)


def init_table(key: Array, layout: TableLayout, std: float) -> Array:
  """Returns a table (V, D) of normal numbers; rows of unknown values, and padding, are 0.

  Numbers are hashes of row and column, so that a device can compute its shard, and that no other
  array of the table's size is needed.

  Args:
    key: random key.
    layout: the table.
    std: standard deviation.
  """
  shape = (layout.padded_rows, layout.dim)
  words = jax.random.bits(key, (3,), jnp.uint32)
  row = jax.lax.broadcasted_iota(jnp.uint32, shape, 0)
  column = jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
  hashed = scramble(scramble(scramble(row ^ words[0]) + column * words[1] + words[2]))
  values = std * normal_of(hashed)
  is_zero = row >= layout.rows
  for first in layout.first_rows:
    is_zero |= row == int(first)
  return jnp.where(is_zero, 0.0, values)


def normal_of(hashed: Array) -> Array:
  """Returns a number of the standard normal distribution for each uniform uint32."""
  # Middles of 2^23 equal parts of (-1, 1), exact in float32: never ±1, whose quantile is infinite.
  uniform = ((hashed >> 9).astype(jnp.float32) + 0.5) * (2.0**-22) - 1.0
  return math.sqrt(2.0) * jax.lax.erf_inv(uniform)


def pad_table(table: Array, layout: TableLayout) -> Array:
  """Returns a table with rows of 0 up to layout.padded_rows, whatever its padding."""
  rows = table[: layout.rows]
  return jnp.pad(rows, ((0, layout.padded_rows - layout.rows), (0, 0)))


def _materialise(numbers: Array, most: int) -> Array:
  """Returns numbers from 0 to `most` as they are, by a remainder that changes none.

  XLA fuses cheap expressions into every consumer. A gather of vectors would compute the row of each
  of its elements again; a remainder counts as expensive, and is computed once.
  """
  return jax.lax.rem(numbers, jnp.int32(most + 1))


def _own_rows(rows_N: Array, size: int, axis_name: str | None) -> Array:
  """Returns rows of the whole table as rows of this device's shard; `size` or more for others."""
  local_N = rows_N - jax.lax.axis_index(axis_name) * size
  return jnp.where((local_N >= 0) & (local_N < size), local_N, jnp.int32(2**31 - 1))
