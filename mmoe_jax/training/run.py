"""Compiled run: what the training loop, tests and benchmarks call."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mmoe_jax import data, parallel
from mmoe_jax.evaluation import evaluate
from mmoe_jax.models import layers
from mmoe_jax.training import checks, list_packing, table_updates, train_rows
from mmoe_jax.training.learner import Assessment, Learner, create_learner
from mmoe_jax.training.step import Batch, Best, State, TaskLosses, fold_in, order_rows

Array = jax.Array


class SegmentCall(NamedTuple):
  """Arguments of the program that trains a segment.

  Attributes:
    segment: the segment.
    rows: rows of its block, on the devices.
    key: random key of the block.
    places: places of lists, see list_packing.
  """

  segment: train_rows.Segment
  rows: Batch
  key: Array
  places: Sequence[int]


class Run(NamedTuple):
  """Compiled functions of a run, its initial state and its train rows.

  Attributes:
    state: state before the first step, on the devices. Training donates it.
    segment_calls: (epoch, steps of it that are done) -> iterator of SegmentCall.
    train_segment: (state, SegmentCall) -> (state, TaskLosses) on the devices.
    segments: the segments of an epoch.
    assess: (state, held-out EvalBatch, epoch) -> (state, Assessment).
    evaluate: (variables, EvalBatch) -> metrics by name.
    learner: the pure functions that were compiled.
    rows: train rows.
    devices: devices of the run.
    config: its settings, with the choices that `auto` left open.
    place: EvalBatch on the host -> on the devices.
    start_from: variables -> state before the first step with these instead of random ones.
    parameters: number of parameters.
  """

  state: State
  segment_calls: Callable[[int, int], Iterator[SegmentCall]]
  train_segment: Callable[[State, SegmentCall], tuple[State, TaskLosses]]
  segments: list[train_rows.Segment]
  assess: Callable[[State, evaluate.EvalBatch, Any], tuple[State, Assessment]]
  evaluate: Callable[[Any, evaluate.EvalBatch], dict[str, Array]]
  learner: Learner
  rows: train_rows.Resident | train_rows.Streamed
  devices: parallel.Devices
  config: Any
  place: Callable[[evaluate.EvalBatch], evaluate.EvalBatch]
  start_from: Callable[[Any], State]
  parameters: int

  def train_epoch(self, state: State, epoch: int) -> tuple[State, TaskLosses]:
    """Trains an epoch; returns the state after it and TaskLosses (S, T) on the host."""
    losses = []
    for trained, segment_losses in self.train_segments(state, epoch):
      state = trained
      losses.append(segment_losses)
    return state, concatenate(losses)

  def train_segments(
    self, state: State, epoch: int, done: int = 0
  ) -> Iterator[tuple[State, TaskLosses]]:
    """Trains the segments of an epoch, without its first `done` steps.

    Yields:
      State and TaskLosses on the devices, of each segment as it is dispatched.
    """
    last_of = {segment.block: segment for segment in self.segments}
    for call in self.segment_calls(epoch, done):
      state, losses = self.train_segment(state, call)
      yield state, losses
      if call.segment is last_of[call.segment.block]:
        jax.block_until_ready(losses)  # So that no further block is in memory.


def compile_run(config: Any, schema: data.Schema, split: data.Split | data.StoredSplit) -> Run:
  """Validates the settings, places the train rows and compiles the functions of a run.

  Args:
    config: settings as in configs/census.py.
    schema: features and tasks of the run.
    split: train rows, as data.load gives them.

  Raises:
    UserError: for impossible settings, or labels that do not fit the model.
  """
  checks.check_config(config, schema)
  devices = parallel.Devices(parallel.device_count(config.train.devices, config.train.batch_size))
  rows = train_rows.create_train_rows(split, schema, config, devices)
  checks.check_labels(config, schema, rows.sample.labels)
  config = table_updates.resolve(config, schema, devices)
  is_sharded = config.model.embedding_shards > 1
  learner = create_learner(config, schema, rows.steps, devices.count, devices.axis_name, is_sharded)
  key = jax.random.key(config.seed)
  one_row = {name: a[:1] for name, a in rows.sample.features.items()}
  spec = table_updates.sharded_leaves(jax.eval_shape(learner.init, key, one_row), is_sharded)
  state = devices.init(learner.init, spec, key, one_row)
  lists = list_packing.find_lists(schema)
  capacities_of = list_packing.make_capacities(
    lists,
    config.train.batch_size,
    devices.count,
    lambda key, count: order_rows(key, count, config.train.shuffle),
  )
  segments = train_rows.segments(rows, config.train.batch_size)
  shapes = {len(shape.weights): shape for shape in rows.shapes}
  place_number = lambda number: devices.replicate(np.array(number, np.int32))
  program_for = _make_programs(learner, devices, place_number, spec)
  # The last block and segment may be shorter. Places of lists depend on the epoch.
  sizes = dict.fromkeys((rows.block_rows[s.block], s.steps) for s in segments)
  for count, steps in () if lists or not shapes else sizes:
    program_for(state, shapes[count], key, steps, ())
  best_of = parallel.jit(lambda *arguments: _best_of(learner, *arguments))

  def assess(state: State, held_out: evaluate.EvalBatch, epoch: Any) -> tuple[State, Assessment]:
    best, assessment = best_of(state, held_out, epoch)
    return state.replace(best=best), assessment

  def segment_calls(epoch: int, done: int = 0) -> Iterator[SegmentCall]:
    remaining = train_rows.by_block(segments, done)
    blocks = rows.blocks(epoch, min(remaining))
    for block, (numbers, batch) in zip(remaining, blocks, strict=True):
      block_key = fold_in(key, "epoch", epoch, *numbers)
      places = capacities_of(batch.features["ids"], block_key)
      for segment in remaining[block]:
        yield SegmentCall(segment, batch, block_key, places)

  def train_segment(state: State, call: SegmentCall) -> tuple[State, TaskLosses]:
    segment, batch, block_key, places = call
    program = program_for(state, batch, block_key, segment.steps, places)
    return program(state, (batch, place_number(segment.first)), block_key)

  return Run(
    state=state,
    segment_calls=segment_calls,
    train_segment=train_segment,
    segments=segments,
    assess=assess,
    evaluate=parallel.jit(learner.evaluate),
    learner=learner,
    rows=rows,
    devices=devices,
    config=config,
    place=lambda batch: evaluate.place(batch, devices, is_sharded),
    start_from=lambda variables: devices.init(learner.init, spec, key, one_row, variables),
    parameters=layers.parameter_count(jax.eval_shape(learner.model.init, key, one_row)["params"]),
  )


def _make_programs(
  learner: Learner, devices: parallel.Devices, place_number: Callable[[int], Any], spec: Any
) -> Callable[..., Callable[..., Any]]:
  """Returns program_for(state, rows, key, steps, places): the program of a segment.

  Each size of block, number of steps and places of lists is compiled once.
  """
  programs: dict[Any, Callable[..., Any]] = {}

  def program_for(state: Any, rows: Any, key: Array, steps: int, places: Any) -> Callable[..., Any]:
    which = len(rows.weights), steps, places
    if which not in programs:
      train = functools.partial(_train_segment, learner, steps, places)
      programs[which] = devices.compile(train, state, (rows, place_number(0)), key, spec)
    return programs[which]

  return program_for


def concatenate(losses: Sequence[TaskLosses]) -> TaskLosses:
  """Returns the losses of consecutive steps as one, on the host."""
  return jax.tree.map(lambda *a: np.concatenate(a), *jax.device_get(losses))


def _train_segment(
  learner: Learner,
  steps: int,
  places: Sequence[int],
  state: State,
  rows_and_first: tuple[Batch, Array],
  key: Array,
) -> tuple[State, TaskLosses]:
  rows, first = rows_and_first
  return learner.epoch(state, rows, key, places, first, steps)


def _best_of(
  learner: Learner, state: State, held_out: evaluate.EvalBatch, epoch: Array
) -> tuple[Best, Assessment]:
  """Returns what assessing changes of the state: a program's results are copies."""
  state, assessment = learner.assess(state, held_out, epoch)
  return state.best, assessment
