"""Choice of how embedding tables are trained and placed: densely, by rows, on which devices."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from mmoe_jax import parallel
from mmoe_jax.data import Schema
from mmoe_jax.errors import require, require_known
from mmoe_jax.models import registry
from mmoe_jax.models.embedding import ROW_MULTIPLE, TABLES, TableLayout, table_layouts
from mmoe_jax.training import optimizer
from mmoe_jax.training.row_optimizer import create_row_optimizer, find_unsupported
from mmoe_jax.training.row_updates import DENSE_TABLES, DenseTables, RowWiseTables

# `auto` updates rows if tables have more numbers than this per id that a step reads; measured, see
# benchmarks/README.md.
LARGE = 64
_FREE_SHARE = 0.5  # Share of a device's memory that tables and their optimizer state may take.


def resolve(config: Any, schema: Schema, devices: parallel.Devices) -> Any:
  """Returns the config with what `auto` and 0 leave open: `updates` and `embedding_shards`.

  Args:
    config: settings of a run, validated.
    schema: features and tasks of the run.
    devices: devices of the run.

  Raises:
    UserError: for a choice that is not possible, with the reason.
  """
  config = config.copy_and_resolve_references()
  settings = config.optimizer.embedding
  updates = choose_updates(config, is_large(config, schema))
  with config.unlocked():
    settings["updates"] = updates
    config.model["embedding_shards"] = _choose_shards(
      config, table_size(config, schema), updates, devices
    )
  return config


def dense(config: Any, user: str) -> Any:
  """Returns the config with dense updates, for runs that support no others.

  Args:
    config: settings.
    user: what needs them.

  Raises:
    UserError: if the config asks for others.
  """
  settings, where = config.optimizer.embedding, "config.optimizer.embedding"
  reason = f"{user} keeps the best tables of each member in memory and updates whole tables"
  require(
    settings.name not in optimizer.ROWWISE_ONLY,
    f"{where}.name = '{settings.name}': updates rows only, but {reason}; use another optimizer",
  )
  require(
    settings.get("updates", "dense") != "rows",
    f"{where}.updates = 'rows': {reason}; set 'dense'",
  )
  dtype = config.model.get("embedding_dtype", "float32")
  require(dtype == "float32", f"config.model.embedding_dtype = '{dtype}': {reason}; set 'float32'")
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.optimizer.embedding["updates"] = "dense"
    config.model["embedding_shards"] = 1
  return config


def table_size(config: Any, schema: Schema) -> int:
  """Returns how many numbers all tables of a run contain."""
  return sum(table.rows * table.dim for table in layouts_of(config, schema))


def is_large(config: Any, schema: Schema) -> bool:
  """Returns whether updating whole tables costs more than updating the rows of a batch."""
  ids = config.train.batch_size * schema.id_count
  return table_size(config, schema) > LARGE * ids


def layouts_of(config: Any, schema: Schema) -> list[TableLayout]:
  """Returns the layout of each table of a run."""
  features = schema.id_features
  sizes, lengths = [f.size for f in features], [f.length for f in features]
  dims = registry.embedding_dims(config.model, schema)
  compressions = registry.embedding_compressions(config.model, schema)
  return table_layouts(sizes, dims, lengths, [f.table for f in features], compressions)


def choose_updates(config: Any, large: bool) -> str:
  """Returns `dense` or `rows`: config.optimizer.embedding.updates, or what `auto` chooses.

  Args:
    config: settings of a run.
    large: result of `is_large`.

  Raises:
    UserError: if rows are asked for, and a setting excludes them.
  """
  settings, where = config.optimizer.embedding, "config.optimizer.embedding"
  updates = settings.get("updates", "dense")
  require_known(updates, optimizer.UPDATES, f"{where}.updates")
  is_rowwise_only = settings.name in optimizer.ROWWISE_ONLY
  fault = find_unsupported(settings)
  fault = f"{where}.{fault}" if fault else None
  if reason := registry.find_model(config.model.name).dense_tables:
    fault = f"config.model.name = '{config.model.name}': {reason}"
  dtype = config.model.get("embedding_dtype", "float32")
  if dtype != "float32":
    reason = f"config.model.embedding_dtype = '{dtype}': only with updated rows"
    require(updates != "dense", f"{reason}; set {where}.updates = 'rows'")
    require(fault is None, f"{fault}, but {reason[:1].lower() + reason[1:]}; change one of them")
    return "rows"
  if is_rowwise_only:
    require(updates != "dense", f"{where}.updates = 'dense': '{settings.name}' updates rows only")
    require(fault is None, f"{fault}, but '{settings.name}' updates rows only; change one of them")
    return "rows"
  if updates == "rows":
    require(
      fault is None, f"{fault}, so rows alone cannot be updated; set {where}.updates = 'dense'"
    )
    return "rows"
  return "rows" if updates == "auto" and large and fault is None else "dense"


def describe(config: Any, schema: Schema) -> str:
  """Returns a line on how large tables are trained; empty for small ones.

  Args:
    config: settings of a run, after `resolve`.
    schema: features and tasks of the run.
  """
  settings = config.optimizer.embedding
  if settings["updates"] == "rows":
    rows = sum(table.rows for table in layouts_of(config, schema))
    name = {"adam": "lazy Adam"}.get(settings.name, settings.name)
    parts = [f"embedding tables of {rows:,} rows: a step updates only the rows it reads, by {name}"]
    if config.train.average_decay:
      parts.append("their vectors are not averaged")
    if config.model.embedding_shards > 1:
      parts.append(f"sharded over {config.model.embedding_shards} devices")
    return "; ".join(parts)
  if is_large(config, schema):
    return (
      "warning: every step updates all rows of large embedding tables; "
      "config.optimizer.embedding.updates = 'rows' is faster, without weight decay and momentum"
    )
  return ""


def create_tables(
  config: Any,
  schema: Schema,
  steps_per_epoch: int,
  epochs: int,
  devices: int = 1,
  axis_name: str | None = None,
  is_sharded: bool = False,
) -> DenseTables | RowWiseTables:
  """Creates the training of the tables.

  Args:
    config: settings of a run, after `resolve`; otherwise updates are dense.
    schema: features and tasks of the run.
    steps_per_epoch: number of steps per epoch.
    epochs: number of epochs.
    devices: number of devices that share a batch.
    axis_name: name of their axis, if there are several.
    is_sharded: whether each device owns a range of the rows.
  """
  if not _is_by_rows(config.optimizer):
    return DENSE_TABLES
  return RowWiseTables(
    layouts_of(config, schema),
    create_row_optimizer(config.optimizer.embedding, steps_per_epoch, epochs),
    config.model.get("embedding_init_std", 0.05),
    config.optimizer.clip_norm,
    devices,
    axis_name,
    is_sharded,
    config.model.get("embedding_dtype", "float32"),
  )


def create_dense_optimizer(
  settings: Mapping[str, Any], steps_per_epoch: int, epochs: int
) -> optax.GradientTransformation:
  """Creates the optimizer of all parameters that RowWiseTables does not update."""
  if not _is_by_rows(settings):
    return optimizer.create_optimizer(settings, steps_per_epoch, epochs)
  # RowWiseTables clips, because the norm includes that of the rows.
  without_clipping = {**settings, "clip_norm": 0.0}
  return optimizer.create_optimizer(without_clipping, steps_per_epoch, epochs, ("dense",))


def sharded_leaves(state: Any, is_sharded: bool) -> Any:
  """Returns a tree like a State, with whether each leaf is sharded; None for small tables.

  Args:
    state: a State, or its shapes.
    is_sharded: whether tables are.
  """
  if not hasattr(state.opt_state, "rows"):
    return None
  no = jax.tree.map(lambda _: False, state)
  if not is_sharded:
    return no
  yes = lambda tree: jax.tree.map(lambda _: True, tree)
  return no.replace(
    params={**no.params, TABLES: yes(no.params[TABLES])},
    opt_state=no.opt_state._replace(rows=yes(no.opt_state.rows), slots=yes(no.opt_state.slots)),
  )


def _is_by_rows(settings: Mapping[str, Any]) -> bool:
  return settings["embedding"].get("updates", "dense") == "rows"


def _choose_shards(config: Any, size: int, updates: str, devices: parallel.Devices) -> int:
  shards = config.model.get("embedding_shards", 0)
  where = f"config.model.embedding_shards = {shards}"
  require(
    shards in (0, 1, devices.count),
    f"{where}: must be 0, 1 or {devices.count}, the number of devices",
  )
  if shards > 1:
    require(updates == "rows", f"{where}: needs config.optimizer.embedding.updates = 'rows'")
  if shards == 0 and updates == "rows" and devices.count > 1:
    memory = devices.memory()
    # Tables, and optimizer state of at most twice their size.
    shards = devices.count if memory and 3 * 4 * size > _FREE_SHARE * memory else 1
  require(
    ROW_MULTIPLE % max(1, shards) == 0,
    f"{where}: tables are sharded over a number of devices that divides {ROW_MULTIPLE} only",
  )
  return max(1, shards)
