"""Tracker that logs to MLflow: one MLflow run per work directory."""

import os
import posixpath
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from mmoe_jax.config import flatten
from mmoe_jax.workdir.tracking import identities
from mmoe_jax.workdir.tracking.protocol import Record, TrackedRun, final_numbers, scalars

_NAME = "mlflow"
_EXPERIMENT = "mmoe_jax"
_LARGEST_BATCH = 1000  # Metrics per request that MLflow accepts.
_LARGEST_PARAMS = 100
_LONGEST_NAME = 250
_LONGEST_VALUE = 500  # MLflow's own limit depends on its version.
# MLflow's defaults stall training for four minutes where the server is away.
_ENVIRONMENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


class MlflowRun:
  """Logs parameters, metrics by epoch, and `results/…` at the end.

  Where to is set by MLflow's variables MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME. A resumed
  run continues its MLflow run: epochs that MLflow has are not sent twice, those that it misses are
  sent from metrics.jsonl.
  """

  def __init__(self):
    """Creates a tracker without an MLflow run."""
    self._run_id = ""
    self._epoch = 0  # The last one that MLflow has.

  def log_settings(self, run: TrackedRun) -> None:
    """Continues the MLflow run of this work directory, or creates one."""
    for variable, value in _ENVIRONMENT.items():
      os.environ.setdefault(variable, value)
    import mlflow

    self._entities = mlflow.entities
    self._client = mlflow.MlflowClient()
    if not self._resume(identities.read(run.workdir, _NAME).get("run_id", "")):
      self._create(run)
    print(f"tracker {_NAME}: run {self._run_id} in {mlflow.get_tracking_uri()}", file=sys.stderr)
    for record in run.records:
      self.log_metrics(record)

  def log_metrics(self, record: Record) -> None:
    """Sends the numbers of an epoch, unless MLflow has them."""
    epoch = record["epoch"]
    if epoch > self._epoch:
      # The epoch is sent last: MLflow has an epoch if it has its number.
      self._send(scalars(record) | {"epoch": epoch}, epoch)
      self._epoch = epoch

  def end(self, results: Mapping[str, Any] | None) -> None:
    """Sends the results and ends the MLflow run."""
    if not self._run_id:
      return
    if results is not None:
      self._send(final_numbers(results), self._epoch)
    # Of update_run and set_terminated, the former prints nothing.
    self._client.update_run(self._run_id, status="FAILED" if results is None else "FINISHED")

  def _resume(self, run_id: str) -> bool:
    """Continues an MLflow run; returns False if there is none."""
    from mlflow.exceptions import MlflowException

    if not run_id:
      return False
    try:
      found = self._client.get_run(run_id)
    except MlflowException as error:
      if error.error_code == "RESOURCE_DOES_NOT_EXIST":
        return False  # Another server, or it was deleted for good.
      raise
    self._run_id, self._epoch = run_id, int(found.data.metrics.get("epoch", 0))
    self._client.update_run(run_id, status="RUNNING")
    return True

  def _create(self, run: TrackedRun) -> None:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
    experiment = self._client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
    run_name = os.path.basename(os.path.abspath(run.workdir))
    created = self._client.create_run(experiment_id, run_name=run_name)
    self._run_id, self._epoch = created.info.run_id, 0
    params = [
      self._entities.Param(_clean(key), str(value)[:_LONGEST_VALUE])
      for key, value in flatten(run.settings).items()
    ]
    for i in range(0, len(params), _LARGEST_PARAMS):
      self._client.log_batch(self._run_id, params=params[i : i + _LARGEST_PARAMS])
    identities.save(run.workdir, _NAME, {"run_id": self._run_id})

  def _send(self, numbers: Mapping[str, float], epoch: int) -> None:
    now_ms = int(time.time() * 1000)
    metrics = [
      self._entities.Metric(_clean(name), float(value), now_ms, epoch)
      for name, value in numbers.items()
    ]
    for i in range(0, len(metrics), _LARGEST_BATCH):
      self._client.log_batch(self._run_id, metrics=metrics[i : i + _LARGEST_BATCH])


def _clean(name: str) -> str:
  """Returns a name of the characters that MLflow accepts."""
  name = re.sub(r"[^\w\-. /]", "_", name)[:_LONGEST_NAME]
  return posixpath.normpath(name).lstrip("./") or "_"
