"""Evaluation: logits of a whole split in padded chunks, and its metrics, all on the device.

Shape letters: N rows padded to K chunks of C, T tasks, O outputs of all tasks side by side, W views
(the ways to weigh the rows).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax import metrics
from mmoe_jax.data import Split, Task
from mmoe_jax.errors import require, require_known

Array = jax.Array
CHUNK = 8192
_METRICS = {name for of_kind in metrics.OF_KIND.values() for name in of_kind}
NOT_FINITE = "the model's output is not finite"


class EvalArrays(NamedTuple):
  """A split on the device, padded for evaluation; padding rows have weight 0.

  Attributes:
    features: trees of (K, C, …).
    labels: (K·C, T) float32, NaN where missing.
    views: suffix of the metrics' names -> (K·C,) weights.
  """

  features: dict[str, Array]
  labels: Array
  views: dict[str, Array]


def chunked(features: Mapping[str, np.ndarray], chunk: int = CHUNK) -> dict[str, np.ndarray]:
  """Pads rows with zeros and cuts them into chunks: (N, …) to (K, C, …).

  Padding a batch to one shape keeps one compiled program for every number of rows, one included.
  """
  rows = len(features["ids"])
  chunk = min(chunk, 1 << max(0, rows - 1).bit_length())
  chunks = math.ceil(rows / chunk)

  def cut(a: np.ndarray) -> np.ndarray:
    padded = np.pad(a, ((0, chunks * chunk - rows), *[(0, 0)] * (a.ndim - 1)))
    return padded.reshape(chunks, chunk, *a.shape[1:])

  return {name: cut(array) for name, array in features.items()}


def eval_arrays(split: Split, all_views: bool = True) -> EvalArrays:
  """Host arrays for `make_evaluate`, from a split.

  Args:
    split: the rows.
    all_views: whether to weigh rows in every way: each once, each slice alone
      (`_SLICE`), by sample weight (`_weighted`) and both (`_weighted_SLICE`). Otherwise only
      each row once.
  """
  features = chunked(split.features)
  padding = math.prod(features["ids"].shape[:2]) - len(split)
  views = {"": np.ones(len(split), np.float32)}
  if all_views:
    views |= {f"_{name}": rows.astype(np.float32) for name, rows in split.slices.items()}
    views |= {f"_weighted{suffix}": split.weights * rows for suffix, rows in views.items()}
  return EvalArrays(
    features,
    np.pad(split.labels, ((0, padding), (0, 0)), constant_values=np.nan),
    {suffix: np.pad(weights, (0, padding)) for suffix, weights in views.items()},
  )


def place(arrays: EvalArrays, devices: Any) -> EvalArrays:
  """Puts arrays on the devices (parallel.Devices): rows of a chunk are spread where they can be."""
  divides = arrays.features["ids"].shape[1] % devices.count == 0
  features = (
    devices.spread(arrays.features, axis=1) if divides else devices.replicate(arrays.features)
  )
  return EvalArrays(features, *devices.replicate((arrays.labels, arrays.views)))


def make_predict(model: Any) -> Callable[[Any, dict[str, Array]], Array]:
  """Returns a compiled function: (variables, features in chunks) -> logits (K·C, O)."""

  @jax.jit
  def predict(variables: Any, features: dict[str, Array]) -> Array:
    logits_KxCxO = jax.lax.map(lambda chunk: model.apply(variables, chunk), features)
    return logits_KxCxO.reshape(-1, logits_KxCxO.shape[-1])

  return predict


def make_predict_with_gates(
  model: Any,
) -> Callable[[Any, dict[str, Array]], tuple[Array, Array | None]]:
  """Returns a compiled function that gives logits and gates of one forward pass.

  (variables, features in chunks) -> logits (K·C, O) and gates_TxNxE with N = K·C rows in their
  order, padding last; gates are None for a model that has none. It may be mapped over variables.
  """

  @jax.jit
  def predict(variables: Any, features: dict[str, Array]) -> tuple[Array, Array | None]:
    def forward(chunk: dict[str, Array]) -> tuple[Array, Array | None]:
      logits_CxO, seen = model.apply(variables, chunk, mutable=["intermediates"])
      gates_TxCxE = seen.get("intermediates", {}).get("gates", (None,))[0]
      return logits_CxO, gates_TxCxE

    logits_KxCxO, gates_KxTxCxE = jax.lax.map(forward, features)
    logits_NxO = logits_KxCxO.reshape(-1, logits_KxCxO.shape[-1])
    if gates_KxTxCxE is None:
      return logits_NxO, None
    gates_TxKxCxE = gates_KxTxCxE.swapaxes(0, 1)
    tasks, _, _, experts = gates_TxKxCxE.shape
    return logits_NxO, gates_TxKxCxE.reshape(tasks, -1, experts)

  return predict


def make_metrics(tasks: Sequence[Task]) -> Callable[[Array, EvalArrays], dict[str, Array]]:
  """Returns a compiled function: (logits (K·C, O), arrays) -> metrics by name, on the device.

  The names are `TASK/METRIC` and a view's suffix, such as `income_50k/auc_16_and_over`; the
  metrics are those of the task's kind in metrics.OF_KIND, and `undefined`, a key of
  metrics.REASONS or 0. Those of a regression are in units of its standardised label.
  """

  @jax.jit
  def measure(logits: Array, arrays: EvalArrays) -> dict[str, Array]:
    named = {}
    weights_WxN = jnp.stack(list(arrays.views.values()))
    start = 0
    for t, task in enumerate(tasks):
      outputs, y_N = logits[:, start : start + task.outputs], arrays.labels[:, t]
      outputs = outputs if task.kind == "multiclass" else outputs[:, 0]
      start += task.outputs
      labelled_WxN = weights_WxN * ~jnp.isnan(y_N)[None]
      measures = {
        **metrics.OF_KIND[task.kind],
        "undefined": lambda _, y_N, w_N, kind=task.kind: metrics.undefined(y_N, w_N, kind),
      }
      for name, metric in measures.items():
        values_W = jax.vmap(metric, (None, None, 0))(outputs, y_N, labelled_WxN)
        names = [f"{task.name}/{name}{view}" for view in arrays.views]
        named |= dict(zip(names, values_W, strict=True))
    return named

  return measure


def make_evaluate(
  model: Any, tasks: Sequence[Task]
) -> Callable[[Any, EvalArrays], dict[str, Array]]:
  """Returns a function: (variables, arrays) -> metrics by name, see `make_metrics`."""
  predict, measure = make_predict(model), make_metrics(tasks)
  return lambda variables, arrays: measure(predict(variables, arrays.features), arrays)


def report(named: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
  """Splits what `make_evaluate` gave into numbers and the reasons why some are undefined.

  Args:
    named: metrics by name, as read from the device.

  Returns:
    metrics by name as floats (NaN where undefined), and name -> reason for the undefined ones.
  """
  values = {k: float(v) for k, v in named.items() if "/undefined" not in k}
  reasons = {}
  for name, value in values.items():
    if math.isnan(value):
      task, rest = name.split("/")
      metric = next(m for m in _METRICS if rest.startswith(m))
      code = int(named[f"{task}/undefined{rest.removeprefix(metric)}"])
      reasons[name] = metrics.reason(code, metric) or NOT_FINITE
  return values, reasons


def selectable(kind: str) -> list[str]:
  """Names of the metrics that tasks of a kind can be selected by."""
  return [name for name in metrics.OF_KIND[kind] if name not in metrics.NEITHER_IS_BETTER]


def check_selection(select: Any, tasks: Sequence[Task]) -> None:
  """Raises UserError unless each task that config.select names has the metric that it names."""
  by_name = {task.name: task for task in tasks}
  for name in select.tasks:
    require_known(name, by_name, "a task in config.select.tasks")
  known = dict.fromkeys(name for task in tasks for name in selectable(task.kind))
  require_known(select.metric, known, "config.select.metric")
  chosen = [by_name[name] for name in select.tasks or by_name]
  require(
    all(select.metric in selectable(task.kind) for task in chosen),
    f"config.select.metric is '{select.metric}', which not all tasks have ("
    + "; ".join(f"{task.name}: {', '.join(selectable(task.kind))}" for task in chosen)
    + "); choose another, or name tasks that have it in config.select.tasks",
  )


def selection(named: Mapping[str, Array], select: Any, tasks: Sequence[Task]) -> Array:
  """The validation measure that picks the epoch, as a scalar, higher being better.

  Args:
    named: metrics by name, from `make_evaluate`.
    select: config.select: `metric`, averaged over `tasks` (empty: all).
    tasks: all tasks.
  """
  names = select.tasks or [task.name for task in tasks]
  mean = jnp.stack([named[f"{name}/{select.metric}"] for name in names]).mean()
  return -mean if select.metric in metrics.LOWER_IS_BETTER else mean


def add_report(results: dict[str, Any], split: str, named: Mapping[str, Any]) -> None:
  """Adds a split's metrics to results, and to its `notes` why some are undefined (None)."""
  values, reasons = report(named)
  results[split] = {k: None if math.isnan(v) else v for k, v in values.items()}
  results["notes"] |= {f"{split}/{k}": reason for k, reason in reasons.items()}


def make_gates(model: Any) -> Callable[[Any, dict[str, Array]], Array]:
  """Returns a compiled function: (variables, features (B, …)) -> gates_TxBxE."""

  @jax.jit
  def gates(variables: Any, features: dict[str, Array]) -> Array:
    _, seen = model.apply(variables, features, mutable=["intermediates"])
    return seen["intermediates"]["gates"][0]

  return gates
