"""Micro-batching: requests that arrive while others are scored are scored together.

Waiting is bounded: a request waits for the batch in hand and those before it in the queue, which
holds a bounded number of rows; further requests are refused at once.
"""

import asyncio
import concurrent.futures
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from mmoe_jax.serve.scorer import Scored

Score = Callable[[Sequence[Any]], Scored]


class BusyError(Exception):
  """The queue is full."""


class Batcher:
  """Queue of requests in front of a scorer, which runs in one thread.

  Attributes:
    batches: number of batches scored.
    waiting_rows: rows in the queue.
  """

  def __init__(self, score: Score, most_rows: int, queue_rows: int):
    """Prepares the queue; use it in one event loop.

    Args:
      score: scores rows.
      most_rows: largest number of rows scored together.
      queue_rows: number of waiting rows beyond which requests are refused.
    """
    self._score, self._most_rows, self._queue_rows = score, most_rows, queue_rows
    self._queue: deque[tuple[Any, int, Any, asyncio.Future]] = deque()
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._is_running = False
    self.batches = self.waiting_rows = 0

  async def score(self, rows: Sequence[Any]) -> Scored:
    """Scores rows together with those of other requests.

    Raises:
      BusyError: if the queue is full.
    """
    return await self._wait(rows, len(rows), None)

  async def run(self, call: Callable[[], Any], rows: int) -> Any:
    """Runs a function in the order of the queue, such as the scoring of an Arrow table."""
    return await self._wait(None, rows, call)

  def close(self) -> None:
    """Waits for the batch in hand."""
    self._thread.shutdown()

  async def _wait(self, rows: Any, count: int, call: Any) -> Any:
    if self._queue and self.waiting_rows + count > self._queue_rows:
      raise BusyError
    done = asyncio.get_running_loop().create_future()
    self._queue.append((rows, count, call, done))
    self.waiting_rows += count
    if not self._is_running:
      self._is_running = True
      self._task = asyncio.get_running_loop().create_task(self._work())
    return await done

  async def _work(self) -> None:
    loop = asyncio.get_running_loop()
    try:
      while self._queue:
        batch = [self._queue.popleft()]
        while self._fits(batch):
          batch.append(self._queue.popleft())
        self.waiting_rows -= sum(count for _, count, _, _ in batch)
        self.batches += 1
        try:
          results = await loop.run_in_executor(self._thread, self._run, batch)
        # A fault of one batch must not end the server; each request reports it.
        except Exception as error:
          results = [error] * len(batch)
        for (_, _, _, done), result in zip(batch, results, strict=True):
          if done.done():  # Its client has gone.
            continue
          if isinstance(result, Exception):
            done.set_exception(result)
          else:
            done.set_result(result)
    finally:
      self._is_running = False

  def _fits(self, batch: list[tuple[Any, int, Any, Any]]) -> bool:
    """Returns whether the next request can be scored with those of a batch."""
    if not self._queue or batch[0][2] is not None or self._queue[0][2] is not None:
      return False
    return sum(count for _, count, _, _ in batch) + self._queue[0][1] <= self._most_rows

  def _run(self, batch: list[tuple[Any, int, Any, Any]]) -> list[Any]:
    if batch[0][2] is not None:
      return [batch[0][2]()]
    scored = self._score([row for rows, _, _, _ in batch for row in rows])
    results, start = [], 0
    for _, count, _, _ in batch:
      results.append(scored.part(start, start + count))
      start += count
    return results
