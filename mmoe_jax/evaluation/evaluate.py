"""Evaluation: logits of a whole split in padded chunks, and its metrics, as pure functions.

Shape letters: N rows padded to K chunks of C, T tasks, E experts, O outputs of all tasks, W views
(ways to weigh the rows).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax.data import Split, Task
from mmoe_jax.errors import require, require_known
from mmoe_jax.evaluation import metrics as metrics_lib

Array = jax.Array
CHUNK = 8192
NOT_FINITE = "the model's output is not finite"
_METRICS = {name for of_kind in metrics_lib.OF_KIND.values() for name in of_kind}


class EvalBatch(NamedTuple):
  """Split that is padded for evaluation; padding rows have weight 0.

  Attributes:
    features: arrays (K, C, …) by name.
    labels: (K·C, T) float32, NaN where missing.
    views: suffix of the metrics' names -> (K·C,) weights.
  """

  features: dict[str, Array]
  labels: Array
  views: dict[str, Array]


def to_chunks(features: Mapping[str, np.ndarray], chunk: int = CHUNK) -> dict[str, np.ndarray]:
  """Pads rows with zeros and splits them into chunks: (N, …) to (K, C, …).

  Padding to chunks makes one compiled program serve any number of rows, one included.
  """
  rows = len(features["ids"])
  chunk = min(chunk, 1 << max(0, rows - 1).bit_length())
  chunks = math.ceil(rows / chunk)

  def split(a: np.ndarray) -> np.ndarray:
    padding = chunks * chunk - rows
    padded = np.pad(a, ((0, padding), *[(0, 0)] * (a.ndim - 1))) if padding else np.asarray(a)
    return padded.reshape(chunks, chunk, *a.shape[1:])

  return {name: split(array) for name, array in features.items()}


def make_eval_batch(split: Split, all_views: bool = True) -> EvalBatch:
  """Returns the host arrays of a split for `make_evaluate`.

  Args:
    split: the rows.
    all_views: whether to weigh rows in every way: equally, each slice alone (`_SLICE`), by sample
      weight (`_weighted`) and both (`_weighted_SLICE`), if they differ. Otherwise equally only.
  """
  features = to_chunks(split.features)
  padding = math.prod(features["ids"].shape[:2]) - len(split)
  views = {"": np.ones(len(split), np.float32)}
  if all_views:
    views |= {f"_{name}": rows.astype(np.float32) for name, rows in split.slices.items()}
    if (split.weights != 1).any():
      views |= {f"_weighted{suffix}": split.weights * rows for suffix, rows in views.items()}
  return EvalBatch(
    features,
    np.pad(split.labels, ((0, padding), (0, 0)), constant_values=np.nan),
    {suffix: np.pad(weights, (0, padding)) for suffix, weights in views.items()},
  )


def place(batch: EvalBatch, devices: Any, has_sharded_tables: bool = False) -> EvalBatch:
  """Places a batch on the devices (parallel.Devices); rows of a chunk are sharded if possible.

  With sharded tables they are on every device: XLA would gather the tables for sharded rows.
  """
  is_divisible = batch.features["ids"].shape[1] % devices.count == 0 and not has_sharded_tables
  features = (
    devices.shard(batch.features, axis=1) if is_divisible else devices.replicate(batch.features)
  )
  return EvalBatch(features, *devices.replicate((batch.labels, batch.views)))


def make_predict(model: Any) -> Callable[[Any, dict[str, Array]], Array]:
  """Returns predict(variables, features in chunks) -> logits (K·C, O)."""

  def predict(variables: Any, features: dict[str, Array]) -> Array:
    logits_KxCxO = jax.lax.map(lambda chunk: model.apply(variables, chunk), features)
    return logits_KxCxO.reshape(-1, logits_KxCxO.shape[-1])

  return predict


def make_predict_with_gates(
  model: Any,
) -> Callable[[Any, dict[str, Array]], tuple[Array, Array | None]]:
  """Returns predict(variables, features in chunks) -> logits (K·C, O) and gates_TxNxE.

  Both come from one forward pass. The N = K·C rows of the gates are in their order, padding last;
  gates are None for a model without gates.
  """

  def predict(variables: Any, features: dict[str, Array]) -> tuple[Array, Array | None]:
    def forward(chunk: dict[str, Array]) -> tuple[Array, Array | None]:
      logits_CxO, sown = model.apply(variables, chunk, mutable=["intermediates"])
      gates_TxCxE = sown.get("intermediates", {}).get("gates", (None,))[0]
      return logits_CxO, gates_TxCxE

    logits_KxCxO, gates_KxTxCxE = jax.lax.map(forward, features)
    logits_NxO = logits_KxCxO.reshape(-1, logits_KxCxO.shape[-1])
    if gates_KxTxCxE is None:
      return logits_NxO, None
    gates_TxKxCxE = gates_KxTxCxE.swapaxes(0, 1)
    tasks, _, _, experts = gates_TxKxCxE.shape
    return logits_NxO, gates_TxKxCxE.reshape(tasks, -1, experts)

  return predict


def make_compute_metrics(
  tasks: Sequence[Task],
) -> Callable[[Array, EvalBatch], dict[str, Array]]:
  """Returns compute_metrics(logits (K·C, O), batch) -> metrics by name.

  Names are `TASK/METRIC` and a view's suffix, such as `income_50k/auc_16_and_over`. Metrics are
  those of the task's kind in metrics.OF_KIND, and `undefined`, a key of metrics.REASONS or 0.
  Metrics of a regression are in units of its standardised label.
  """

  def compute_metrics(logits: Array, batch: EvalBatch) -> dict[str, Array]:
    metrics = {}
    weights_WxN = jnp.stack(list(batch.views.values()))
    start = 0
    for t, task in enumerate(tasks):
      outputs, y_N = logits[:, start : start + task.outputs], batch.labels[:, t]
      outputs = outputs if task.kind == "multiclass" else outputs[:, 0]
      start += task.outputs
      labelled_WxN = weights_WxN * ~jnp.isnan(y_N)[None]
      functions = {
        **metrics_lib.OF_KIND[task.kind],
        "undefined": lambda _, y_N, w_N, kind=task.kind: metrics_lib.undefined(y_N, w_N, kind),
      }
      for name, function in functions.items():
        values_W = jax.vmap(function, (None, None, 0))(outputs, y_N, labelled_WxN)
        names = [f"{task.name}/{name}{view}" for view in batch.views]
        metrics |= dict(zip(names, values_W, strict=True))
    return metrics

  return compute_metrics


def make_evaluate(
  model: Any, tasks: Sequence[Task]
) -> Callable[[Any, EvalBatch], dict[str, Array]]:
  """Returns evaluate(variables, batch) -> metrics by name, see `make_compute_metrics`."""
  predict, compute_metrics = make_predict(model), make_compute_metrics(tasks)
  return lambda variables, batch: compute_metrics(predict(variables, batch.features), batch)


def make_gates(model: Any) -> Callable[[Any, dict[str, Array]], Array]:
  """Returns gates(variables, features (B, …)) -> gates_TxBxE."""

  def gates(variables: Any, features: dict[str, Array]) -> Array:
    _, sown = model.apply(variables, features, mutable=["intermediates"])
    return sown["intermediates"]["gates"][0]

  return gates


def explain_undefined(metrics: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
  """Separates metrics from the reasons why some are undefined.

  Args:
    metrics: result of `make_compute_metrics`, on the host.

  Returns:
    Metrics by name as floats (NaN where undefined), and name -> reason for the undefined ones.
  """
  values = {k: float(v) for k, v in metrics.items() if "/undefined" not in k}
  reasons = {}
  for name, value in values.items():
    if math.isnan(value):
      task, rest = name.split("/")
      metric = next(m for m in _METRICS if rest.startswith(m))
      code = int(metrics[f"{task}/undefined{rest.removeprefix(metric)}"])
      reasons[name] = metrics_lib.reason(code, metric) or NOT_FINITE
  return values, reasons


def add_metrics(results: dict[str, Any], split: str, metrics: Mapping[str, Any]) -> None:
  """Adds a split's metrics to results, and to its `notes` why some are undefined (None)."""
  values, reasons = explain_undefined(metrics)
  results[split] = {k: None if math.isnan(v) else v for k, v in values.items()}
  results["notes"] |= {f"{split}/{k}": reason for k, reason in reasons.items()}


def selectable_metrics(kind: str) -> list[str]:
  """Returns the metrics by which an epoch can be selected for tasks of a kind."""
  return [name for name in metrics_lib.OF_KIND[kind] if name not in metrics_lib.NEITHER_IS_BETTER]


def check_selection(select: Any, tasks: Sequence[Task]) -> None:
  """Validates config.select: its tasks must exist and have its metric.

  Raises:
    UserError: for an unknown task or metric, or a task without the metric.
  """
  by_name = {task.name: task for task in tasks}
  for name in select.tasks:
    require_known(name, by_name, "a task in config.select.tasks")
  known = dict.fromkeys(name for task in tasks for name in selectable_metrics(task.kind))
  require_known(select.metric, known, "config.select.metric")
  selected = [by_name[name] for name in select.tasks or by_name]
  require(
    all(select.metric in selectable_metrics(task.kind) for task in selected),
    f"config.select.metric = '{select.metric}': must be a metric of all selected tasks ("
    + "; ".join(f"{task.name}: {', '.join(selectable_metrics(task.kind))}" for task in selected)
    + "); use another, or name tasks that have it in config.select.tasks",
  )


def selection(metrics: Mapping[str, Array], select: Any, tasks: Sequence[Task]) -> Array:
  """Computes the validation metric that selects the epoch; higher is better.

  Args:
    metrics: metrics by name, from `make_compute_metrics`.
    select: config.select: `metric`, averaged over `tasks` (empty: all).
    tasks: all tasks.
  """
  names = select.tasks or [task.name for task in tasks]
  mean = jnp.stack([metrics[f"{name}/{select.metric}"] for name in names]).mean()
  return -mean if select.metric in metrics_lib.LOWER_IS_BETTER else mean
