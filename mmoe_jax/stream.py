"""The train rows of a run on their way to its devices: all at once, or in blocks that fit a budget.

Shape letters: N rows of the train split, R rows of a block.
"""

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from mmoe_jax import data, engine, parallel
from mmoe_jax.errors import require

STRIP = 256  # Rows that are read, and stay together in a block, as they stand on disk.
_HELD = 4  # Blocks in memory: one is trained on, one ready, one being read, one the sample.
Arrays = Mapping[str, Any]


class Resident:
  """Train rows that lie on the devices: one block, the same in every epoch.

  Attributes:
    rows: number of train rows N.
    steps: steps of an epoch.
    sample: rows on which to measure the train split: all of them.
    arrays: what an epoch trains on.
  """

  def __init__(self, split: data.Split, config: Any, devices: parallel.Devices):
    self.rows = len(split)
    self.steps = engine.steps_per_epoch(config, self.rows)
    self.sample = split
    self.arrays = devices.replicate(engine.train_arrays(split, config))

  def of_epoch(self, epoch: int) -> Iterator[tuple[tuple[int, ...], Arrays]]:
    """The blocks of an epoch: what to add to its random key for each, and its arrays."""
    del epoch
    yield (), self.arrays


class Streamed:
  """Train rows that stay on disk, trained on in blocks which are read ahead in a thread.

  An epoch takes the split in strips of STRIP rows in a random order, R rows a block, and shuffles
  each block's rows on the device: a batch is a sample of the strips of its block. The last block
  is filled up with rows from the beginning of the order, at weight 0.

  Attributes:
    rows, steps: as of Resident.
    sample: R rows, drawn as a block is, on which to measure the train split.
    arrays: the shapes of a block.
  """

  def __init__(
    self,
    split: data.StoredSplit,
    schema: data.Schema,
    config: Any,
    devices: parallel.Devices,
    budget: float,
  ):
    """Splits rows into blocks of as many whole batches as let _HELD of them fit `budget` bytes."""
    require(jax.process_count() == 1, "config.train.memory_gib: rows are streamed to one host only")
    self.rows = len(split)
    batch_size = config.train.batch_size
    fit = int(budget // (_HELD * split.row_bytes * batch_size))
    require(
      fit > 0,
      f"config.train.memory_gib is {config.train.memory_gib}: {_HELD} blocks of one batch of "
      f"{batch_size:,} rows do not fit; allow more",
    )
    batches = math.ceil(self.rows / batch_size)
    each = math.ceil(batches / math.ceil(batches / fit))  # Blocks of about one size.
    self._blocks, self._block_rows = math.ceil(batches / each), each * batch_size
    self.steps = self._blocks * each
    self._split, self._schema, self._config, self._devices = split, schema, config, devices
    self.sample, _ = self._read(self._order(0), 0)
    placed = devices.replicate(engine.train_arrays(self.sample, config))
    shape = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
    self.arrays = jax.tree.map(shape, placed)

  def of_epoch(self, epoch: int) -> Iterator[tuple[tuple[int, ...], Arrays]]:
    """The blocks of an epoch, as of Resident."""
    order = self._order(epoch)
    with ThreadPoolExecutor(1) as reader:
      ahead: Future = reader.submit(self._place, order, 0)
      for block in range(self._blocks):
        arrays = ahead.result()
        if block + 1 < self._blocks:
          ahead = reader.submit(self._place, order, block + 1)
        yield (block,), arrays

  def _order(self, epoch: int) -> np.ndarray:
    """The order of an epoch's strips: from the seed and the epoch alone, as a resumed run needs.

    Epoch 0 is the sample's, which is drawn at random also where training does not shuffle.
    """
    strips = math.ceil(self.rows / STRIP)
    if epoch and not self._config.train.shuffle:
      return np.arange(strips)
    return np.random.default_rng([self._config.seed, epoch]).permutation(strips)

  def _place(self, order: np.ndarray, block: int) -> Arrays:
    split, weights = self._read(order, block)
    engine.check_labels(self._config, self._schema, split.labels)
    arrays = engine.train_arrays(split, self._config)
    return self._devices.replicate({**arrays, "weights": arrays["weights"] * weights})

  def _read(self, order: np.ndarray, block: int) -> tuple[data.Split, np.ndarray]:
    """A block's rows, and 1 for each that counts, 0 for those that fill it up."""
    first, last = block * self._block_rows, (block + 1) * self._block_rows
    ranges = list(_ranges(order, self.rows, first, min(last, self.rows)))
    if last > self.rows:
      ranges += _ranges(order, self.rows, 0, last - self.rows)
    counts = (np.arange(first, last) < self.rows).astype(np.float32)
    return self._split.read(ranges), counts


def create(
  split: data.Split | data.StoredSplit, schema: data.Schema, config: Any, devices: parallel.Devices
) -> Resident | Streamed:
  """The rows of a split, Resident or Streamed, as `data.load` left them under `budget(config)`."""
  if isinstance(split, data.StoredSplit):
    return Streamed(split, schema, config, devices, budget(config))
  return Resident(split, config, devices)


def budget(config: Any) -> float:
  """Bytes that train rows may take in memory, by config.train.memory_gib; 0 is any number."""
  return config.train.memory_gib * 2**30 or math.inf


def _ranges(order: np.ndarray, rows: int, first: int, last: int) -> Iterator[tuple[int, int]]:
  """Where on disk the rows first … last − 1 of an order of strips are."""
  short = rows % STRIP  # Rows of the last strip on disk, if it is not a whole one.
  lengths = np.full(len(order), STRIP)
  lengths[order == len(order) - 1] = short or STRIP
  ends = np.cumsum(lengths)
  for i in range(np.searchsorted(ends, first, "right"), len(order)):
    start = ends[i] - lengths[i]
    if start >= last:
      return
    on_disk = int(order[i]) * STRIP
    yield on_disk + max(0, first - start), on_disk + min(lengths[i], last - start)
