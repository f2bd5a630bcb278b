"""Contender DeepCTR-Torch: its MMOE and its `fit`, which stacks the columns in each call."""

import numpy as np
import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import MMOE

from benchmarks.contenders import protocol
from benchmarks.contenders.protocol import DIM, EXPERT_UNITS, EXPERTS, TOWER_UNITS

torch.set_num_threads(protocol.threads())


class DeepCtrTorch:
  """See protocol.Contender."""

  def __init__(self, task: protocol.Task):
    """Creates the model and its data."""
    self._batch_size = task.batch_size
    self._labels = task.labels
    self._train = _columns(task.ids, task.numbers)
    self._test = _columns(task.test_ids, task.test_numbers)
    columns = [SparseFeat(f"id_{i}", size, DIM) for i, size in enumerate(task.sizes)]
    columns += [DenseFeat(f"number_{i}", 1) for i in range(task.numbers.shape[1])]
    tasks = task.labels.shape[1]
    self._model = MMOE(
      columns,
      num_experts=EXPERTS,
      expert_dnn_hidden_units=(EXPERT_UNITS,),
      gate_dnn_hidden_units=(),
      tower_dnn_hidden_units=(TOWER_UNITS,),
      l2_reg_linear=0,
      l2_reg_embedding=0,
      seed=task.seed,
      task_types=("binary",) * tasks,
      task_names=[f"task_{i}" for i in range(tasks)],
    )
    adam = torch.optim.Adam(self._model.parameters(), lr=protocol.LEARNING_RATE)
    self._model.compile(adam, loss=["binary_crossentropy"] * tasks)
    self.parameters = sum(p.numel() for p in self._model.parameters())

  def train_epoch(self) -> int:
    """See protocol.Contender."""
    self._model.fit(
      self._train, self._labels, batch_size=self._batch_size, epochs=1, verbose=0, shuffle=True
    )
    return len(self._labels)

  def scores(self) -> np.ndarray:
    """See protocol.Contender."""
    return np.asarray(self._model.predict(self._test, 8192))


def _columns(ids: np.ndarray, numbers: np.ndarray) -> dict[str, np.ndarray]:
  columns = {f"id_{i}": ids[:, i].astype(np.int64) for i in range(ids.shape[1])}
  return columns | {f"number_{i}": numbers[:, i] for i in range(numbers.shape[1])}


if __name__ == "__main__":
  protocol.serve(DeepCtrTorch)
