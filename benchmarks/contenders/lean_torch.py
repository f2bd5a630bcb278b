"""Contender lean PyTorch: the fastest MMoE that we could write in PyTorch.

Rows are tensors, batches are slices of a permutation, the embedding is one table with one
`index_select`, all experts are one matrix product, and so are all gates; the mixture is a sum,
which is faster than products of small matrices; forward and backward are one compiled graph, and
Adam is fused over a single flat parameter.
"""

import math

import numpy as np
import torch
from torch.nn import functional

from benchmarks.contenders import protocol
from benchmarks.contenders.protocol import DIM, EXPERT_UNITS, EXPERTS, TOWER_UNITS

torch.set_num_threads(protocol.threads())


class LeanTorch:
  """See protocol.Contender."""

  def __init__(self, task: protocol.Task):
    """Creates the model and its data."""
    torch.manual_seed(task.seed)
    self._batch_size = task.batch_size
    offsets = np.cumsum([0, *task.sizes[:-1]])
    place = lambda ids: torch.from_numpy((ids + offsets).astype(np.int64))
    self._ids, self._test_ids = place(task.ids), place(task.test_ids)
    self._numbers = torch.from_numpy(task.numbers)
    self._test_numbers = torch.from_numpy(task.test_numbers)
    self._labels = torch.from_numpy(task.labels)
    inputs = len(task.sizes) * DIM + task.numbers.shape[1]
    tasks = task.labels.shape[1]
    self._shapes = {
      "table": ((sum(task.sizes), DIM), 0.05),
      "experts": ((inputs, EXPERTS * EXPERT_UNITS), inputs**-0.5),
      "expert_bias": ((EXPERTS * EXPERT_UNITS,), 0.0),
      "gates": ((inputs, tasks * EXPERTS), 0.01),
      "towers": ((tasks, EXPERT_UNITS, TOWER_UNITS), EXPERT_UNITS**-0.5),
      "tower_bias": ((tasks, 1, TOWER_UNITS), 0.0),
      "heads": ((tasks, TOWER_UNITS, 1), TOWER_UNITS**-0.5),
      "head_bias": ((tasks, 1, 1), 0.0),
    }
    drawn = [torch.randn(shape).mul(std).flatten() for shape, std in self._shapes.values()]
    self._flat = torch.cat(drawn).requires_grad_()
    self.parameters = self._flat.numel()
    self._adam = torch.optim.Adam([self._flat], lr=protocol.LEARNING_RATE, fused=True)
    self._loss = torch.compile(self._loss_of, fullgraph=True, dynamic=False)

  def train_epoch(self) -> int:
    """See protocol.Contender."""
    rows = len(self._labels)
    order = torch.randperm(rows)
    for start in range(0, rows, self._batch_size):
      chosen = order[start : start + self._batch_size]
      loss = self._loss(self._flat, self._ids[chosen], self._numbers[chosen], self._labels[chosen])
      loss.backward()
      self._adam.step()
      self._adam.zero_grad(set_to_none=True)
    return rows

  @torch.no_grad()
  def scores(self) -> np.ndarray:
    """See protocol.Contender."""
    return self._logits(self._flat, self._test_ids, self._test_numbers).numpy()

  def _loss_of(
    self, flat: torch.Tensor, ids: torch.Tensor, numbers: torch.Tensor, labels: torch.Tensor
  ) -> torch.Tensor:
    logits = self._logits(flat, ids, numbers)
    return functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(ids)

  def _logits(self, flat: torch.Tensor, ids: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    sizes = [math.prod(shape) for shape, _ in self._shapes.values()]
    parts = zip(self._shapes.items(), flat.split(sizes), strict=True)
    p = {name: part.view(shape) for (name, (shape, _)), part in parts}
    vectors = p["table"].index_select(0, ids.flatten()).view(len(ids), -1)
    x = torch.cat([vectors, numbers], 1)
    experts = torch.relu(torch.addmm(p["expert_bias"], x, p["experts"]))
    experts = experts.view(-1, EXPERTS, EXPERT_UNITS)
    gates = torch.softmax((x @ p["gates"]).view(len(x), -1, EXPERTS), 2)
    mixed = (gates[..., None] * experts[:, None]).sum(2).transpose(0, 1)
    hidden = torch.relu(torch.baddbmm(p["tower_bias"], mixed, p["towers"]))
    return torch.baddbmm(p["head_bias"], hidden, p["heads"])[:, :, 0].T


if __name__ == "__main__":
  protocol.serve(LeanTorch)
