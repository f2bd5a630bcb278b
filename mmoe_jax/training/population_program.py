"""Compiled population: members' data on the devices, their states, and the training of an epoch.

Shape letters: M members, S steps, T tasks.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mmoe_jax import data, parallel
from mmoe_jax.evaluation import evaluate
from mmoe_jax.training import checks, table_updates
from mmoe_jax.training.checks import Override
from mmoe_jax.training.learner import Assessment
from mmoe_jax.training.members import Member, MemberFunctions, create_member_functions
from mmoe_jax.training.step import DrawnRows, State, TaskLosses
from mmoe_jax.training.train_rows import (
  Segment,
  Streamed,
  by_block,
  first_features,
  make_batch,
  segments,
  steps_per_epoch,
)

Splits = Sequence[Mapping[str, data.Split | data.StoredSplit | DrawnRows]]
AfterSegment = Callable[[State, Sequence[TaskLosses]], None]
TrainEpoch = Callable[..., tuple[State, TaskLosses, Assessment]]


class Population(NamedTuple):
  """Compiled population: its functions, initial states and data.

  Attributes:
    config: settings that members share.
    members: settings of each member.
    tasks: names of the tasks.
    train_rows: rows per epoch of one member.
    splits: data of all members, or of each; of streamed train rows a sample.
    notes: how metrics of the splits were measured, by the name of a split.
    placement: which member is on which device.
    states: State before the first step with a leading axis of members, sharded.
    arrays: their seeds, settings and own data, sharded.
    shared: data of all members, on every device; empty if each has its own.
    functions: the functions of one member.
    train_epoch: (states, epoch, active_M, losses so far, after_segment) -> (states, TaskLosses
      (M, S, T) and Assessment (M, …) on the host). With streamed rows, `after_segment(states,
      losses)` is called before each segment but the first, and may save and raise.
    segments: the segments of an epoch of streamed rows; otherwise none.
    at_once: number of members per device that share each operation; 0 chooses.
  """

  config: Any
  members: Sequence[Override]
  tasks: Sequence[str]
  train_rows: int
  splits: Splits
  notes: Mapping[str, str]
  placement: parallel.Members
  states: State
  arrays: Member
  shared: Mapping[str, Any]
  functions: MemberFunctions
  train_epoch: TrainEpoch
  segments: Sequence[Segment]
  at_once: int

  def release(self) -> None:
    """Frees the data on the devices, which compiled functions would keep alive."""
    jax.tree.map(lambda a: a.delete(), (self.arrays.data, self.shared))


def compile_population(
  config: Any, members: Sequence[Override], schema: data.Schema, splits: Splits, at_once: int = 0
) -> Population:
  """Validates the members, places their data and compiles their training.

  Args:
    config: settings that members share.
    members: settings of each member, see `train_population`.
    schema: features and tasks of the runs.
    splits: data of all members (one item), or of each.
    at_once: see `train_population`.

  Raises:
    UserError: for impossible settings, or labels that do not fit the model.
  """
  config = table_updates.dense(config, "a population")
  checks.check_members(config, members, schema, splits)
  train_rows = len(splits[0]["train"])
  placement = parallel.Members(len(members), config.train.devices)
  functions = create_member_functions(config, schema, steps_per_epoch(config, train_rows))
  streamed, notes = None, {}
  if isinstance(splits[0]["train"], data.StoredSplit):
    streamed = Streamed(splits[0]["train"], schema, config, placement)
    splits = [{**splits[0], "train": streamed.sample}]
    notes = {"train": f"measured on a random sample of {len(streamed.sample):,} rows"}
  train = [make_batch(each["train"], config) for each in splits]
  held_out = [evaluate.make_eval_batch(each["validation"], all_views=False) for each in splits]
  trees = {"held_out": held_out} if streamed else {"train": train, "held_out": held_out}
  own_data, shared_data = place(placement, trees)
  seeds_M = [np.uint32(member.get("seed", config.seed)) for member in members]
  settings_M = [_settings(member) for member in members]
  one_row = first_features(train[0])
  states = placement.init(
    functions.init,
    [(seed, settings, one_row) for seed, settings in zip(seeds_M, settings_M, strict=True)],
  )
  arrays = Member(
    placement.shard(np.array(seeds_M)),
    placement.shard({k: np.stack([s[k] for s in settings_M]) for k in settings_M[0]}),
    own_data,
  )

  training = (placement, functions, states, arrays, shared_data, at_once)
  parts = segments(streamed, config.train.batch_size) if streamed else []
  train_epoch = _stream_epochs(streamed, parts, *training) if streamed else _train_epochs(*training)
  return Population(
    config=config,
    members=members,
    tasks=[task.name for task in schema.tasks],
    train_rows=train_rows,
    splits=splits,
    notes=notes,
    placement=placement,
    states=states,
    arrays=arrays,
    shared=shared_data,
    functions=functions,
    train_epoch=train_epoch,
    segments=parts,
    at_once=at_once,
  )


def _train_epochs(
  placement: parallel.Members,
  functions: MemberFunctions,
  states: State,
  arrays: Member,
  shared_data: Mapping[str, Any],
  at_once: int,
) -> TrainEpoch:
  """Compiles an epoch over rows on the devices; see Population.train_epoch."""

  def arguments(epoch: int, active_M: Sequence[bool]) -> tuple[Any, Any]:
    member = (arrays, placement.shard(np.array(active_M)))
    return member, (shared_data, placement.replicate(np.int32(epoch)))

  everyone = [True] * placement.count
  program = placement.compile(functions.epoch, states, *arguments(0, everyone), at_once)

  def train_epoch(
    states: State, epoch: int, active_M: Sequence[bool], *_: Any
  ) -> tuple[State, TaskLosses, Assessment]:
    states, outputs = program(states, *arguments(epoch, active_M))
    return states, *placement.unshard(outputs)

  return train_epoch


def _stream_epochs(
  rows: Streamed,
  parts: Sequence[Segment],
  placement: parallel.Members,
  functions: MemberFunctions,
  states: State,
  arrays: Member,
  shared_data: Mapping[str, Any],
  at_once: int,
) -> TrainEpoch:
  """Compiles an epoch over streamed rows; see Population.train_epoch.

  Members train on the same blocks, each in its order within the block. A size of blocks, of which
  there are at most two, is compiled when it first occurs, for each length of segments.
  """
  programs: dict[tuple[int, int], Callable] = {}
  place_number = lambda number: placement.replicate(np.int32(number))

  def train_epoch(
    states: State,
    epoch: int,
    active_M: Sequence[bool],
    done: Sequence[TaskLosses] = (),
    after_segment: AfterSegment = lambda *_: None,
  ) -> tuple[State, TaskLosses, Assessment]:
    member, number = (arrays, placement.shard(np.array(active_M))), place_number(epoch)
    losses_M = list(done)
    remaining = by_block(parts, sum(each.losses.shape[1] for each in done))
    for (block,), batch in rows.blocks(epoch, min(remaining)):
      for segment in remaining[block]:
        if len(losses_M) > len(done):
          after_segment(states, losses_M)
        shared = (batch, number, place_number(block), place_number(segment.first))
        size = (len(batch.weights), segment.steps)
        if size not in programs:
          function = functools.partial(functions.segment, segment.steps)
          programs[size] = placement.compile(function, states, member, shared, at_once)
        states, segment_losses_M = programs[size](states, member, shared)
        losses_M.append(placement.unshard(segment_losses_M))
    if (0, 0) not in programs:
      assessed = (states, member, (shared_data, number))
      programs[0, 0] = placement.compile(functions.assess, *assessed, at_once)
    states, assessment_M = programs[0, 0](states, member, (shared_data, number))
    return states, concatenate_members(losses_M), placement.unshard(assessment_M)

  return train_epoch


def concatenate_members(losses_M: Sequence[TaskLosses]) -> TaskLosses:
  """Returns members' losses of consecutive steps as one: (M, S, T)."""
  return jax.tree.map(lambda *a: np.concatenate(a, axis=1), *losses_M)


def _settings(member: Override) -> dict[str, np.ndarray]:
  return {k: np.array(v, np.float32) for k, v in member.items() if k != "seed"}


def place(
  placement: parallel.Members, trees: Mapping[str, list[Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Places data on the devices: (each member's own, shared by all), one of them empty.

  Args:
    placement: which member is on which device.
    trees: name -> one tree for all members, or a tree for each.
  """
  if all(len(each) == 1 for each in trees.values()):
    return {}, placement.replicate({name: each[0] for name, each in trees.items()})
  stacked = {k: jax.tree.map(lambda *a: np.stack(a), *each) for k, each in trees.items()}
  return placement.shard(stacked), {}
