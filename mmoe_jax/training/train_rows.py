"""Train rows on their way to the devices: all at once, or in blocks that fit a memory budget.

Shape letters: N rows of the train split, R rows of a block.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from mmoe_jax import data, parallel
from mmoe_jax.errors import require
from mmoe_jax.training import checks
from mmoe_jax.training.step import Batch, DrawnRows

STRIP = 256  # Consecutive rows on disk that are read together and stay in one block.
SEGMENT_STEPS = 256  # At most, between two points where training may stop.
_HELD = 4  # Blocks in memory: in training, ready, being read, and the sample.


class Segment(NamedTuple):
  """Consecutive steps of an epoch that are one call; training may stop before each.

  Attributes:
    start: number of steps of the epoch before it.
    rows: number of rows of the epoch before it.
    block: number of its block of rows.
    first: number of its first step in the block.
    steps: number of steps.
  """

  start: int
  rows: int
  block: int
  first: int
  steps: int


class Resident:
  """Train rows that stay on the devices: one block, the same in every epoch.

  Attributes:
    count: number of train rows N.
    steps: number of steps per epoch.
    block_rows: number of rows of each block.
    sample: rows on which metrics of the train split are measured: all of them.
    shapes: arrays, or shapes, that `blocks` yields.
  """

  def __init__(self, split: data.Split, config: Any, devices: parallel.Devices):
    """Places the rows on the devices."""
    self.count = len(split)
    self.steps = steps_per_epoch(config, self.count)
    self.block_rows = [self.count]
    self.sample = split
    self._rows = devices.replicate(make_batch(split, config))
    self.shapes = [self._rows]  # Arrays, because pmap over several hosts takes no shapes.

  def blocks(self, epoch: int, first: int = 0) -> Iterator[tuple[tuple[int, ...], Batch]]:
    """Yields the block of an epoch: numbers to fold into its random key, and the rows."""
    del epoch, first
    yield (), self._rows


class Streamed:
  """Train rows that stay on disk; blocks of them are read ahead in a thread.

  An epoch reads strips of STRIP rows in random order, R rows per block, and shuffles each block's
  rows on the device: rows mix only within a block. All blocks consist of full
  batches; the last one holds the remaining rows. Of several hosts, each reads its share of every
  block, and the devices exchange the shares: order and batches do not depend on the hosts.

  Attributes:
    count: number of train rows N.
    steps: number of steps per epoch.
    block_rows: number of rows of each block.
    sample: R rows, drawn like a block, on which metrics of the train split are measured.
    shapes: the shapes that `blocks` yields: of full blocks and of the last one; none for several
      hosts, because pmap takes no shapes there.
  """

  def __init__(
    self,
    split: data.StoredSplit,
    schema: data.Schema,
    config: Any,
    devices: parallel.Devices | parallel.Members,
  ):
    """Chooses R, the most full batches of which _HELD blocks fit config.train.memory_gib.

    Raises:
      UserError: if not even blocks of one batch fit.
    """
    batch_size = config.train.batch_size
    budget = data.memory_budget(config.train.memory_gib)
    fitting = int(budget // (_HELD * split.row_bytes * batch_size))
    require(
      fitting > 0,
      f"config.train.memory_gib = {config.train.memory_gib}: must hold {_HELD} blocks of one batch "
      f"of {batch_size:,} rows; increase it",
    )
    self.count = len(split)
    self.steps = steps_per_epoch(config, self.count)
    # Blocks of about equal size: the last one is not much shorter.
    blocks = math.ceil(self.steps / fitting)
    block_rows = math.ceil(self.steps / blocks) * batch_size
    self._bounds = [*range(0, self.count, block_rows), self.count]
    self.block_rows = [end - start for start, end in itertools.pairwise(self._bounds)]
    self._split, self._schema, self._config, self._devices = split, schema, config, devices
    self._exchanges = devices.local_ranges(block_rows) != [(0, block_rows)]
    sample = self._read(self._strip_order(0), 0)
    self.sample = self._gather_sample(sample) if self._exchanges else sample
    self.shapes = []
    if not self._exchanges:
      full = _shape_of(devices.replicate(make_batch(self.sample, config)))
      self.shapes = [
        jax.tree.map(lambda a, n=n: a.update(shape=(n, *a.shape[1:])), full)
        for n in set(self.block_rows)
      ]

  def blocks(self, epoch: int, first: int = 0) -> Iterator[tuple[tuple[int, ...], Batch]]:
    """Yields the blocks of an epoch from block `first`: numbers as in Resident, and the rows."""
    order = self._strip_order(epoch)
    count = len(self.block_rows)
    with ThreadPoolExecutor(1) as reader:
      ahead: Future = reader.submit(self._place, order, first)
      for block in range(first, count):
        rows = ahead.result()
        if block + 1 < count:
          ahead = reader.submit(self._place, order, block + 1)
        if self._exchanges:  # Not in the thread: all hosts must have the same order of exchanges.
          rows = self._devices.gather(rows, self.block_rows[block])
        yield (block,), rows

  def _strip_order(self, epoch: int) -> np.ndarray:
    """Returns the order of an epoch's strips; it depends on seed and epoch only, for resuming.

    Epoch 0 is the sample's, which is random also where training does not shuffle.
    """
    strips = math.ceil(self.count / STRIP)
    if epoch and not self._config.train.shuffle:
      return np.arange(strips)
    return np.random.default_rng([self._config.seed, epoch]).permutation(strips)

  def _place(self, order: np.ndarray, block: int) -> Batch:
    """Returns a block on the devices; if hosts exchange rows, this host's share in memory."""
    split = self._read(order, block)
    checks.check_labels(self._config, self._schema, split.labels)
    batch = make_batch(split, self._config)
    return batch if self._exchanges else self._devices.replicate(batch)

  def _read(self, order: np.ndarray, block: int) -> data.Split:
    """Reads a block, or this host's share of it."""
    start, end = self._bounds[block : block + 2]
    parts = self._devices.local_ranges(end - start)
    ranges = (_ranges(order, self.count, start + first, start + last) for first, last in parts)
    return self._split.read(list(itertools.chain.from_iterable(ranges)))

  def _gather_sample(self, split: data.Split) -> data.Split:
    """Returns the sample of all hosts in the memory of each, from their shares."""
    whole = self._devices.gather(vars(split), self.block_rows[0])
    return data.Split(**jax.device_get(whole))


def load(config: Any) -> tuple[str, data.Schema, dict[str, data.Split | data.StoredSplit]]:
  """Verifies and loads the prepared data of a config.

  Returns:
    The digest of its manifest, the schema of the run, and the splits.
  """
  share = data.Share(parallel.host_index(), parallel.host_count(), parallel.gather_rows)
  digest = data.verify(config.data_dir, share)
  budget = data.memory_budget(config.train.memory_gib)
  return digest, *data.load(config.data_dir, **config.data, budget=budget, share=share)


def create_train_rows(
  split: data.Split | data.StoredSplit, schema: data.Schema, config: Any, devices: parallel.Devices
) -> Resident | Streamed:
  """Creates the train rows of a run from what data.load gave: resident if they fit the budget."""
  if isinstance(split, data.StoredSplit):
    return Streamed(split, schema, config, devices)
  return Resident(split, config, devices)


def make_batch(split: data.Split | DrawnRows, config: Any) -> Batch | DrawnRows:
  """Returns the host arrays that training takes from a split; drawn rows as they are."""
  if isinstance(split, DrawnRows):
    return split
  weights = split.weights if config.loss.sample_weight else np.ones_like(split.weights)
  return Batch(split.features, split.labels, weights)


def first_features(rows: Batch | DrawnRows) -> dict[str, Any]:
  """Returns the features of one row, to initialise a model with."""
  if isinstance(rows, DrawnRows):
    return dict(rows.draw(rows.arguments, jax.random.key(0), 1).features)
  return {name: a[:1] for name, a in rows.features.items()}


def steps_per_epoch(config: Any, rows: int) -> int:
  """Returns the number of steps per epoch over that many rows."""
  return math.ceil(rows / config.train.batch_size)


def segments(rows: Resident | Streamed, batch_size: int) -> list[Segment]:
  """Returns the segments of an epoch: those of a block have about equal lengths."""
  found: list[Segment] = []
  start = rows_before = 0
  for block, count in enumerate(rows.block_rows):
    steps = math.ceil(count / batch_size)
    length = math.ceil(steps / math.ceil(steps / SEGMENT_STEPS))
    for first in range(0, steps, length):
      before = (start + first, rows_before + first * batch_size)
      found.append(Segment(*before, block, first, min(length, steps - first)))
    start, rows_before = start + steps, rows_before + count
  return found


def by_block(parts: Sequence[Segment], done: int = 0) -> dict[int, list[Segment]]:
  """Returns block -> its segments, without the first `done` steps of the epoch."""
  found: dict[int, list[Segment]] = {}
  for segment in parts:
    if segment.start >= done:
      found.setdefault(segment.block, []).append(segment)
  return found


def _shape_of(rows: Batch) -> Batch:
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), rows)


def _ranges(order: np.ndarray, rows: int, first: int, last: int) -> Iterator[tuple[int, int]]:
  """Yields where rows first … last − 1 of an order of strips lie on disk, as [start, end)."""
  lengths = np.full(len(order), STRIP)
  lengths[order == len(order) - 1] = rows % STRIP or STRIP
  ends = np.cumsum(lengths)
  for i in range(np.searchsorted(ends, first, "right"), len(order)):
    start = ends[i] - lengths[i]
    if start >= last:
      return
    on_disk = int(order[i]) * STRIP
    yield on_disk + max(0, first - start), on_disk + min(lengths[i], last - start)
