"""Tracker that logs to Weights & Biases: one W&B run per work directory."""

import os
import sys
import uuid
from collections.abc import Mapping
from typing import Any

from mmoe_jax.workdir.tracking import identities
from mmoe_jax.workdir.tracking.protocol import Record, TrackedRun, final_numbers, scalars

_NAME = "wandb"
_PROJECT = "mmoe_jax"
# By default W&B waits 90 s for a server that is away, and at the end without limit.
_ENVIRONMENT = {
  "WANDB_INIT_TIMEOUT": "30",
  "WANDB_FINISH_TIMEOUT": "60",
  "WANDB_FINISH_TIMEOUT_RAISES": "true",
  "WANDB_SILENT": "true",
}


class WandbRun:
  """Logs settings, metrics by epoch, and `results/…` as the summary at the end.

  W&B's variables (WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, …) are respected. A resumed run
  continues its W&B run: epochs that it has are not sent twice, those that it misses are sent from
  metrics.jsonl. Offline, each process writes a folder with all epochs so far, because W&B saves
  every 15 s and a kill loses the rest; the newest folder is complete.
  """

  def __init__(self):
    """Creates a tracker without a W&B run."""
    self._run: Any = None
    self._epoch = 0  # The last one that W&B has.

  def log_settings(self, run: TrackedRun) -> None:
    """Continues the W&B run of this work directory, or creates one."""
    for variable, value in _ENVIRONMENT.items():
      os.environ.setdefault(variable, value)
    import wandb

    saved = identities.read(run.workdir, _NAME)
    self._run = wandb.init(
      project=os.environ.get("WANDB_PROJECT") or _PROJECT,
      id=saved.get("id") or uuid.uuid4().hex[:12],
      name=os.environ.get("WANDB_NAME") or os.path.basename(os.path.abspath(run.workdir)),
      resume="allow",
      dir=run.workdir,
      config=run.settings,
      reinit="create_new",
      settings=wandb.Settings(console="off"),
    )
    # The step is that of the next epoch at the server.
    self._epoch = 0 if self._run.offline else max(0, self._run.step - 1)
    identities.save(run.workdir, _NAME, {"id": self._run.id})
    where = self._run.dir if self._run.offline else self._run.url
    print(f"tracker {_NAME}: run {self._run.id} in {where}", file=sys.stderr)
    for record in run.records:
      self.log_metrics(record)

  def log_metrics(self, record: Record) -> None:
    """Sends the numbers of an epoch, unless W&B has them."""
    epoch = record["epoch"]
    if epoch > self._epoch:
      self._run.log(scalars(record) | {"epoch": epoch}, step=epoch)
      self._epoch = epoch

  def end(self, results: Mapping[str, Any] | None) -> None:
    """Sends the results and ends the W&B run."""
    if self._run is None:
      return
    if results is not None:
      self._run.summary.update(final_numbers(results))
    self._run.finish(exit_code=int(results is None))
