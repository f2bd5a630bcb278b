"""Search for where a run diverged: its steps are repeated from the last save.

Normal steps only pay for the losses that they return. Segments are repeated by the programs of the
run itself, on the same rows, so that a CPU computes bitwise the same states.
"""

import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax import data, parallel
from mmoe_jax.config import override
from mmoe_jax.parallel.devices import AXIS
from mmoe_jax.training import saving
from mmoe_jax.training.not_finite import Origin, find_origin, is_finite, not_finite_leaves
from mmoe_jax.training.population_program import Population, Splits
from mmoe_jax.training.run import Run, SegmentCall, compile_run
from mmoe_jax.training.step import DrawnRows, State, TaskLosses
from mmoe_jax.workdir import checkpoint, preemption

_COPIES = 6  # Of the state, that finding a layer takes.


class Fault(NamedTuple):
  """First step of a run that is not finite.

  Attributes:
    epoch: number of its epoch.
    step: number of the step in the epoch, from 1.
    part: what is not finite: a layer's activations, a gradient, an update.
  """

  epoch: int
  step: int
  part: str


def find_fault(run: Run, state: State, epoch: int, done: int, last_epoch: int) -> Fault | None:
  """Repeats the steps of a run until one is not finite.

  Args:
    run: the run.
    state: a finite state of it, which is donated.
    epoch: number of finished epochs of this state.
    done: number of finished steps of the next epoch.
    last_epoch: number of the epoch that is not finite.

  Returns:
    The step and the layer; None if all repeated steps are finite, or the state does not fit in
    memory several times.

  Raises:
    Preempted: if a signal asks to stop.
  """
  size = sum(a.nbytes for a in jax.tree.leaves(state))
  memory = run.devices.memory()
  if (memory and _COPIES * size > memory) or not is_finite(_trained(state)):
    return None
  print("training diverged; repeating its steps to find where", file=sys.stderr)
  while epoch < last_epoch:
    epoch += 1
    for call in run.segment_calls(epoch, done):
      preemption.stop_if_requested()
      before = jax.tree.map(jnp.copy, state)
      state, losses = run.train_segment(state, call)
      if not _is_sound(state, losses):
        return _find_step(run, before, epoch, call)
    done = 0
  return None


def explain_member(
  population: Population,
  schema: data.Schema,
  splits: Splits,
  checkpoints: checkpoint.Checkpoints,
  states: State,
  epoch: int,
  member: int,
) -> str:
  """Returns the end of an error line about a member that diverged.

  A separate run repeats the member's steps since the last save, on a single host, and unless its
  rows were drawn in each step.

  Args:
    population: the population.
    schema: schema of its data.
    splits: its data.
    checkpoints: its checkpoints.
    states: states of its members, for their shapes.
    epoch: number of the epoch that is not finite.
    member: number of the member.
  """
  checkpoints.wait()
  like = population.placement.unshard(states)
  unfinished = saving.restore_unfinished(checkpoints, like, population.segments)
  restored = checkpoints.restore_state(like, like.best.variables) if unfinished is None else None
  saved, done, steps = None, 0, 0
  if unfinished is not None:
    saved, done, steps = unfinished.state, unfinished.epoch, unfinished.steps
  elif restored is not None:
    saved, done = restored.item, restored.epoch
  train = splits[member % len(splits)]["train"]
  if isinstance(train, DrawnRows) or parallel.has_several_hosts():
    return describe(None, done or None)
  config = override(population.config, {**population.members[member], "train.devices": 1})
  run = compile_run(config, schema, train)
  state = run.state
  if done or steps:
    state = run.devices.replicate(jax.tree.map(lambda a: np.asarray(a)[member], saved))
  return describe(find_fault(run, state, done, steps, epoch), done or None)


def _find_step(run: Run, state: State, epoch: int, call: SegmentCall) -> Fault | None:
  """Repeats the steps of a segment one by one."""
  segment = call.segment
  for i in range(segment.steps):
    start, first = segment.start + i, segment.first + i
    one = call._replace(segment=segment._replace(start=start, first=first, steps=1))
    before = jax.tree.map(jnp.copy, state)
    state, losses = run.train_segment(state, one)
    if not _is_sound(state, losses):
      return Fault(epoch, start + 1, _describe(run, before, state, losses, one))
  return None


def _describe(run: Run, before: State, after: State, losses: TaskLosses, call: SegmentCall) -> str:
  """Returns which part of a step is not finite first."""
  leaves = not_finite_leaves({"params": after.params}) or not_finite_leaves(_trained(after))
  origin = None if run.config.model.embedding_shards > 1 else _find_origin(run, before, call)
  if origin is not None and origin.layer:
    what = "gradient" if origin.is_gradient else "output"
    return f"the {what} of layer '{origin.layer}' ({origin.operation})"
  if not is_finite(losses) or not leaves:
    return "the loss"
  group, _, leaf = leaves[0].partition("/")
  name = "optimizer's state" if group == "opt_state" else "parameters"
  return f"the update of the {name} '{leaf}'"


def _find_origin(run: Run, state: State, call: SegmentCall) -> Origin | None:
  state, rows = jax.device_get((state, call.rows))

  def step(state: State, rows: Any) -> Any:
    first = call.segment.first
    state, losses = run.learner.epoch(state, rows, call.key, call.places, first, 1)
    return _trained(state), losses

  if run.devices.count == 1:
    return find_origin(step, state, rows)
  # The devices' parts of the batch side by side on one device, with the same collectives.
  several = jax.vmap(
    lambda state, rows, _: step(state, rows), in_axes=(None, None, 0), axis_name=AXIS
  )
  return find_origin(several, state, rows, jnp.arange(run.devices.count))


def _is_sound(state: State, losses: TaskLosses) -> bool:
  return is_finite(losses) and is_finite(_trained(state))


def _trained(state: State) -> dict[str, Any]:
  """Returns what steps change; the best metric is -inf before the first epoch."""
  parts = ("params", "batch_stats", "average", "opt_state")
  return {name: getattr(state, name) for name in parts}


def describe(fault: Fault | None, saved: int | None) -> str:
  """Returns the end of an error line about a run that diverged.

  Args:
    fault: where it was; None if that is not known.
    saved: epoch of the last checkpoint; None if there is none.
  """
  where = ""
  if fault is not None:
    where = f"; first was {fault.part} in epoch {fault.epoch}, step {fault.step}"
  if saved is None:
    return f"{where}. No checkpoint was saved before"
  return f"{where}. The last checkpoint, of epoch {saved}, is finite and kept"
