"""Contender torch-rechub: its MMOE, with its batch norm, trainer and data loader."""

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.multi_task import MMOE
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import PredictDataset, TorchDataset

from benchmarks.contenders import protocol
from benchmarks.contenders.protocol import DIM, EXPERT_UNITS, EXPERTS, TOWER_UNITS

torch.set_num_threads(protocol.threads())


class TorchRechub:
  """See protocol.Contender."""

  def __init__(self, task: protocol.Task):
    """Creates the model and its data."""
    torch.manual_seed(task.seed)
    features = [SparseFeature(f"id_{i}", size, DIM) for i, size in enumerate(task.sizes)]
    features += [DenseFeature(f"number_{i}") for i in range(task.numbers.shape[1])]
    tasks = task.labels.shape[1]
    self._model = MMOE(
      features,
      ["classification"] * tasks,
      EXPERTS,
      expert_params={"dims": [EXPERT_UNITS]},
      tower_params_list=[{"dims": [TOWER_UNITS]} for _ in range(tasks)],
    )
    self._trainer = MTLTrainer(
      self._model,
      ["classification"] * tasks,
      optimizer_params={"lr": protocol.LEARNING_RATE},
      device="cpu",
    )
    self._rows = len(task.labels)
    train = TorchDataset(_columns(task.ids, task.numbers), task.labels)
    self._train = DataLoader(train, batch_size=task.batch_size, shuffle=True)
    test = PredictDataset(_columns(task.test_ids, task.test_numbers))
    self._test = DataLoader(test, batch_size=8192)
    self.parameters = sum(p.numel() for p in self._model.parameters())

  def train_epoch(self) -> int:
    """See protocol.Contender."""
    self._trainer.train_one_epoch(self._train)
    return self._rows

  def scores(self) -> np.ndarray:
    """See protocol.Contender."""
    return np.asarray(self._trainer.predict(self._model, self._test))


def _columns(ids: np.ndarray, numbers: np.ndarray) -> dict[str, np.ndarray]:
  columns = {f"id_{i}": ids[:, i].astype(np.int64) for i in range(ids.shape[1])}
  return columns | {f"number_{i}": numbers[:, i] for i in range(numbers.shape[1])}


if __name__ == "__main__":
  protocol.serve(TorchRechub)
