"""Metrics of the mean of a population's scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mmoe_jax import data, parallel
from mmoe_jax.config import override
from mmoe_jax.evaluation import evaluate
from mmoe_jax.models import mean_scores
from mmoe_jax.training.learner import create_learner
from mmoe_jax.training.population_program import Population
from mmoe_jax.training.step import State

_SPLITS = ("validation", "test")


def evaluate_mean(
  population: Population,
  schema: data.Schema,
  states: State,
  errors_M: Mapping[int, str],
  report_on: Sequence[str],
) -> dict[str, Any]:
  """Returns metrics of the mean score of the members whose training converged, by split.

  Members are scored one after another, so that no array grows with their number. Empty if fewer
  than two converged, or if each has separate data.

  Args:
    population: the population.
    schema: features and tasks of the runs.
    states: states of its members.
    errors_M: number of a member -> why its training diverged.
    report_on: splits to evaluate; train rows are left out.
  """
  converged = [m for m in range(len(population.members)) if m not in errors_M]
  if len(converged) < 2 or len(population.splits) > 1:
    return {}
  config = override(population.config, population.members[converged[0]])
  model = create_learner(config, schema, steps_per_epoch=1).model
  tasks = schema.tasks
  predict, compute_metrics = evaluate.make_predict(model), evaluate.make_compute_metrics(tasks)
  add = parallel.jit(
    lambda sums, v, features: mean_scores.add_scores(tasks, sums, predict(v, features))
  )
  measure = parallel.jit(
    lambda sums, batch: compute_metrics(mean_scores.to_logits(tasks, sums, len(converged)), batch)
  )
  variables_M = population.placement.unshard(states.best.variables)
  results: dict[str, Any] = {"members": converged, "notes": {}}
  for name in [split for split in _SPLITS if split in report_on]:
    batch = evaluate.make_eval_batch(population.splits[0][name])
    sums: mean_scores.Sums = ()
    for m in converged:
      sums = add(sums, jax.tree.map(lambda a, m=m: a[m], variables_M), batch.features)
    evaluate.add_metrics(results, name, jax.device_get(measure(sums, batch)))
  return results
