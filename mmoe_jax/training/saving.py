"""Saving and restoring of a run's state, with large tables apart from the rest.

A run with row-wise updates does not hold a second copy of its tables: the best ones are on disk, in
the checkpoint of the best epoch (workdir/checkpoint.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mmoe_jax.models.embedding import TABLES
from mmoe_jax.training.step import State, TaskLosses
from mmoe_jax.training.train_rows import Segment
from mmoe_jax.workdir.checkpoint import Checkpoints
from mmoe_jax.workdir.unfinished import Unfinished


def has_tables_apart(state: State) -> bool:
  """Returns whether the best variables have no tables."""
  return TABLES in state.params and TABLES not in state.best.variables["params"]


def save(checkpoints: Checkpoints, epoch: int, state: State, log: str | None) -> None:
  """Saves a state.

  Args:
    checkpoints: where to save it.
    epoch: number of finished epochs.
    state: the state.
    log: digest of the records of metrics.jsonl up to this epoch.
  """
  if has_tables_apart(state):
    rest, tables = _split(state)
    best_epoch = int(state.best.epoch)
    checkpoints.save(epoch, rest, state.best.variables, log, tables, best_epoch)
  else:
    checkpoints.save(epoch, state, state.best.variables, log)


def is_due(state: State, epoch: int, every_epochs: int) -> bool:
  """Returns whether to save after an epoch; an epoch with the best tables always is."""
  is_best = has_tables_apart(state) and int(state.best.epoch) == epoch
  return is_best or epoch % every_epochs == 0


def restore(checkpoints: Checkpoints, state: State) -> tuple[int, State, str | None] | None:
  """Restores the newest whole state: (epoch, state, digest of the log); None without checkpoint.

  Args:
    checkpoints: where to look.
    state: a state with the structure, shapes and devices to restore to.
  """
  if not has_tables_apart(state):
    return checkpoints.restore_state(state, state.best.variables)
  restored = checkpoints.restore_state(*_like(state))
  if restored is None:
    return None
  return restored.epoch, _join(*restored.item, state), restored.log


def save_unfinished(checkpoints: Checkpoints, unfinished: Unfinished) -> None:
  """Saves a whole state within an epoch, and waits until it is complete."""
  state = unfinished.state
  if has_tables_apart(state):
    rest, tables = _split(state)
    best_epoch = int(state.best.epoch)
    unfinished = unfinished._replace(state=rest, tables=tables, best_epoch=best_epoch)
  checkpoints.unfinished.save(unfinished)


def restore_unfinished(
  checkpoints: Checkpoints, state: State, segments: Sequence[Segment]
) -> Unfinished | None:
  """Restores the whole state within an epoch that was saved last; None without.

  Args:
    checkpoints: where to look.
    state: a state with the structure, shapes and devices to restore to.
    segments: the segments of an epoch.
  """
  starts = {segment.start: segment.rows for segment in segments}
  if not has_tables_apart(state):
    return checkpoints.unfinished.restore(state, None, starts)
  rest_like, _, tables_like = _like(state)
  found = checkpoints.unfinished.restore(rest_like, tables_like, starts)
  if found is None:
    return None
  checkpoints.keep_best_tables(found.best_epoch)
  return found._replace(state=_join(found.state, found.tables, state), tables=None)


def losses_of(unfinished: Unfinished | None) -> list[TaskLosses]:
  """Returns the losses of the steps that are done."""
  return [] if unfinished is None else [TaskLosses(**unfinished.losses)]


def elapsed(unfinished: Unfinished | None, records: Sequence[Mapping[str, Any]]) -> float:
  """Returns the time of a run in earlier processes, in seconds, from its save or its records."""
  if unfinished is not None:
    return unfinished.wall_seconds
  return records[-1].get("wall_seconds", 0.0) if records else 0.0


def best_variables(checkpoints: Checkpoints, epoch: int, state: State) -> Any:
  """Returns the best variables, with tables; the state's own tables are freed if others are read.

  Args:
    checkpoints: checkpoints of the run.
    epoch: the last epoch, which is saved.
    state: the state after it.
  """
  best = state.best.variables
  if not has_tables_apart(state):
    return best
  tables, best_epoch = state.params[TABLES], int(state.best.epoch)
  if best_epoch != epoch:
    checkpoints.wait()
    shapes = _like(state)[2]
    jax.tree.map(lambda a: a.delete(), (tables, state.opt_state.rows, state.opt_state.slots))
    tables = checkpoints.restore_tables(best_epoch, shapes)
  return {**best, "params": {**best["params"], TABLES: tables}}


def _split(state: State) -> tuple[State, dict[str, jax.Array]]:
  """Returns what a checkpoint contains: the state without tables and slots, and the tables."""
  rest = {name: value for name, value in state.params.items() if name != TABLES}
  opt_state = state.opt_state._replace(slots={})
  return state.replace(params=rest, opt_state=opt_state), state.params[TABLES]


def _join(rest: State, tables: Mapping[str, jax.Array], like: State) -> State:
  """Returns the state of which `_split` gave the parts, with the empty slots of `like`."""
  return rest.replace(
    params={**rest.params, TABLES: tables},
    opt_state=rest.opt_state._replace(slots=like.opt_state.slots),
  )


def _like(state: State) -> tuple[Any, Any, Any]:
  """Returns shapes and placement of the state without tables, the best variables, the tables."""
  rest, tables = _split(state)
  shape_of = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
  return jax.tree.map(shape_of, (rest, state.best.variables, tables))
