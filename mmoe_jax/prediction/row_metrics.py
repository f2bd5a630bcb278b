"""Metrics of a trained model on raw rows with labels."""

import math
from typing import Any

import jax
import numpy as np

from mmoe_jax import data, parallel
from mmoe_jax.errors import require
from mmoe_jax.evaluation import evaluate as evaluation
from mmoe_jax.models import mean_scores
from mmoe_jax.prediction.predictor import MEAN, Predictor


def evaluate(predictor: Predictor, rows: Any, where: str = "the table") -> dict[str, Any]:
  """Evaluates a model on raw rows with labels, as training does on the rows of a split.

  Args:
    predictor: a run, a member of a population, or the mean of its members.
    rows: raw rows, of any kind that data.columns.to_table converts, with the columns of labels, of
      the sample weight and of slices, if the run has any.
    where: name of the table in errors.

  Returns:
    Metrics by name, `TASK/METRIC` and a view's suffix, as in results.json, None where undefined;
    and `notes`, with the reason for each undefined one.

  Raises:
    UserError: for a missing column, or a value that cannot be encoded.
  """
  schema = predictor.schema
  encoded = predictor.encoder(rows, labels=True, where=where)
  require(len(encoded.ids) > 0, f"{where}: contains no rows")
  split = data.Split(
    features=data.to_features(schema, encoded),
    labels=encoded.labels,
    weights=encoded.weights,
    slices={s.name: encoded.slices[:, i] for i, s in enumerate(schema.slices)},
  )
  batch = evaluation.make_eval_batch(split)
  compute_metrics = evaluation.make_compute_metrics(schema.tasks)
  logits = _logits(predictor, batch.features)
  metrics = jax.device_get(parallel.jit(compute_metrics)(logits, batch))
  values, reasons = evaluation.explain_undefined(metrics)
  found = {name: None if math.isnan(value) else value for name, value in values.items()}
  return found | {"notes": reasons}


def _logits(predictor: Predictor, features: dict[str, np.ndarray]) -> jax.Array:
  """Returns logits (N, O); of several models those of their mean scores."""
  predict = evaluation.make_predict(predictor.model)
  if predictor.member == MEAN:
    predict = mean_scores.over_members(predict, predictor.schema.tasks)
  return parallel.jit(predict)(predictor.variables, features)
