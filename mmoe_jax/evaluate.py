"""Evaluation: logits of a whole split in padded chunks, and its metrics, all on the device.

Shape letters: N rows padded to K chunks of C, T tasks, W views (the ways to weigh the rows).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax import metrics
from mmoe_jax.data import MISSING_LABEL, Split

Array = jax.Array
CHUNK = 8192
METRICS = {"auc": metrics.auc, "log_loss": metrics.log_loss, "pcoc": metrics.pcoc}
LOWER_IS_BETTER = ("log_loss",)
NOT_FINITE = "the model's output is not finite"


class EvalArrays(NamedTuple):
  """A split on the device, padded for evaluation; padding rows have weight 0.

  Attributes:
    features: trees of (K, C, …).
    labels: (K·C, T) int8.
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
    np.pad(split.labels, ((0, padding), (0, 0)), constant_values=MISSING_LABEL),
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
  """Returns a compiled function: (variables, features in chunks) -> logits (K·C, T)."""

  @jax.jit
  def predict(variables: Any, features: dict[str, Array]) -> Array:
    logits_KxCxT = jax.lax.map(lambda chunk: model.apply(variables, chunk), features)
    return logits_KxCxT.reshape(-1, logits_KxCxT.shape[-1])

  return predict


def make_evaluate(
  model: Any, tasks: Sequence[str]
) -> Callable[[Any, EvalArrays], dict[str, Array]]:
  """Returns a function: (variables, arrays) -> metrics by name, on the device.

  The names are `TASK/METRIC` and a view's suffix, such as `income_50k/auc_16_and_over`; the
  metrics are those of METRICS, and `undefined`, a key of metrics.REASONS or 0.
  """
  predict = make_predict(model)

  @jax.jit
  def measure(logits: Array, labels: Array, views: dict[str, Array]) -> dict[str, Array]:
    named = {}
    weights_WxN = jnp.stack(list(views.values()))
    for t, task in enumerate(tasks):
      labelled_WxN = weights_WxN * (labels[None, :, t] != MISSING_LABEL)
      for name, metric in METRICS.items():
        values_W = jax.vmap(metric, (None, None, 0))(logits[:, t], labels[:, t], labelled_WxN)
        named |= {f"{task}/{name}{view}": v for view, v in zip(views, values_W, strict=True)}
      codes_W = jax.vmap(metrics.undefined, (None, 0))(labels[:, t], labelled_WxN)
      named |= {f"{task}/undefined{view}": c for view, c in zip(views, codes_W, strict=True)}
    return named

  return lambda variables, arrays: measure(
    predict(variables, arrays.features), arrays.labels, arrays.views
  )


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
      view = next(rest.removeprefix(m) for m in METRICS if rest.startswith(m))
      code = int(named[f"{task}/undefined{view}"])
      reasons[name] = metrics.REASONS.get(code, NOT_FINITE)
  return values, reasons


def selection(named: Mapping[str, Array], select: Any, tasks: Sequence[str]) -> Array:
  """The validation measure that picks the epoch, as a scalar, higher being better.

  Args:
    named: metrics by name, from `make_evaluate`.
    select: config.select: `metric`, averaged over `tasks` (empty: all).
    tasks: names of all tasks.
  """
  values = jnp.stack([named[f"{task}/{select.metric}"] for task in select.tasks or tasks])
  return -values.mean() if select.metric in LOWER_IS_BETTER else values.mean()


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
