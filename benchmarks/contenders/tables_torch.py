"""Contender PyTorch with large tables: dense or sparse gradients, by $CONTENDER_VARIANT.

The network is that of lean_torch.py. A sparse gradient holds the batch's rows alone; SparseAdam and
Adagrad add up equal rows and update only these.
"""

import os

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.contenders import protocol
from benchmarks.contenders.protocol import EXPERT_UNITS, EXPERTS, LEARNING_RATE, TOWER_UNITS
from benchmarks.contenders.tables_protocol import DIM, RATE

torch.set_num_threads(protocol.threads())
# Variant -> whether gradients of the table are sparse, and its optimizer.
VARIANTS = {
  "dense_adam": (False, torch.optim.Adam),
  "sparse_adam": (True, torch.optim.SparseAdam),
  "sparse_adagrad": (True, torch.optim.Adagrad),
}


class TablesTorch:
  """See protocol.Contender."""

  def __init__(self, task: protocol.Task):
    """Creates the model and its data."""
    is_sparse, optimizer = VARIANTS[os.environ["CONTENDER_VARIANT"]]
    torch.manual_seed(task.seed)
    self._batch_size = task.batch_size
    offsets = np.cumsum([0, *task.sizes[:-1]])
    self._ids = torch.from_numpy(task.ids.astype(np.int64) + offsets)
    self._numbers = torch.from_numpy(task.numbers)
    self._labels = torch.from_numpy(task.labels)
    tasks, inputs = task.labels.shape[1], len(task.sizes) * DIM + task.numbers.shape[1]
    self._table = nn.Embedding(sum(task.sizes), DIM, sparse=is_sparse)
    nn.init.normal_(self._table.weight, std=0.05)
    self._network = torch.compile(_Network(inputs, tasks), fullgraph=True, dynamic=False)
    self._optimizers = [
      torch.optim.Adam(self._network.parameters(), lr=LEARNING_RATE, fused=True),
      optimizer(self._table.parameters(), lr=RATE, **({} if is_sparse else {"fused": True})),
    ]
    parameters = (*self._table.parameters(), *self._network.parameters())
    self.parameters = sum(p.numel() for p in parameters)

  def train_epoch(self) -> int:
    """See protocol.Contender."""
    rows = len(self._labels)
    order = torch.randperm(rows)
    for start in range(0, rows, self._batch_size):
      chosen = order[start : start + self._batch_size]
      vectors = self._table(self._ids[chosen]).flatten(1)
      logits = self._network(torch.cat([vectors, self._numbers[chosen]], 1))
      loss = functional.binary_cross_entropy_with_logits(
        logits, self._labels[chosen], reduction="sum"
      )
      (loss / len(chosen)).backward()
      for optimizer in self._optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return rows

  def scores(self) -> np.ndarray:
    """Not measured."""
    return np.zeros(0)


class _Network(nn.Module):
  """MMoE on embedded inputs."""

  def __init__(self, inputs: int, tasks: int):
    super().__init__()
    normal = lambda *shape, std: nn.Parameter(torch.randn(shape) * std)
    self.experts = normal(inputs, EXPERTS * EXPERT_UNITS, std=inputs**-0.5)
    self.expert_bias = nn.Parameter(torch.zeros(EXPERTS * EXPERT_UNITS))
    self.gates = normal(inputs, tasks * EXPERTS, std=0.01)
    self.towers = normal(tasks, EXPERT_UNITS, TOWER_UNITS, std=EXPERT_UNITS**-0.5)
    self.tower_bias = nn.Parameter(torch.zeros(tasks, 1, TOWER_UNITS))
    self.heads = normal(tasks, TOWER_UNITS, 1, std=TOWER_UNITS**-0.5)
    self.head_bias = nn.Parameter(torch.zeros(tasks, 1, 1))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Maps inputs (B, D) to logits (B, T)."""
    experts = torch.relu(torch.addmm(self.expert_bias, x, self.experts))
    experts = experts.view(-1, EXPERTS, EXPERT_UNITS)
    gates = torch.softmax((x @ self.gates).view(len(x), -1, EXPERTS), 2)
    mixed = (gates[..., None] * experts[:, None]).sum(2).transpose(0, 1)
    hidden = torch.relu(torch.baddbmm(self.tower_bias, mixed, self.towers))
    return torch.baddbmm(self.head_bias, hidden, self.heads)[:, :, 0].T


if __name__ == "__main__":
  protocol.serve(TablesTorch)
