"""Population: many members (seeds, any float of the config) trained as one program.

Members share the shapes of all arrays and may differ in `seed` and in any float. Each has its own
order of rows, early stopping and best variables, and ends where a separate run would end.
"""

import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax import data, parallel
from mmoe_jax.config import check_structure, override
from mmoe_jax.errors import UserError, require
from mmoe_jax.evaluation import evaluate
from mmoe_jax.files import save_array
from mmoe_jax.models import layers
from mmoe_jax.training import divergence, records, saving, train_rows
from mmoe_jax.training.checks import Override
from mmoe_jax.training.learner import Assessment
from mmoe_jax.training.population_mean import evaluate_mean
from mmoe_jax.training.population_program import (
  Population,
  Splits,
  compile_population,
  concatenate_members,
  place,
)
from mmoe_jax.training.step import DrawnRows, State, TaskLosses
from mmoe_jax.workdir import checkpoint, contract, logs, preemption, progress, tracking
from mmoe_jax.workdir.unfinished import Unfinished

Array = jax.Array
_EXPLAINED = 4  # Members whose divergence is traced to a layer, each by a separate run.


def train_population(
  config: Any,
  members: Sequence[Override],
  workdir: str,
  splits: Splits | None = None,
  schema: data.Schema | None = None,
  save_logits: Sequence[str] = (),
  at_once: int = 0,
  report_on: Sequence[str] = data.SPLITS,
  verbose: bool = True,
  trackers: Sequence[tracking.Tracker] = (),
) -> list[dict[str, Any]]:
  """Trains members together, then evaluates the best variables of each.

  Started again in its work directory, a population resumes from its last checkpoint.

  Args:
    config: settings as in configs/census.py.
    members: settings of each member by dotted key: `seed`, floats, or tuples of floats; all members
      set the same keys.
    workdir: folder for config.json, schema.json, metrics.jsonl (one line per epoch; each metric a
      list over members), checkpoints/ and results.json, readable by prediction.
    splits: separate data for each member, of the same shapes. By default all members share the
      data in `config.data_dir`. Train rows may be DrawnRows, which each step draws on the device.
    schema: schema of `splits`.
    save_logits: splits whose logits (M, N, O) float32 are saved as `logits_SPLIT.npy`.
    at_once: number of members per device that share each operation; 0 chooses, see
      parallel.Members.
    report_on: splits on which the best variables are evaluated; a search leaves out test rows.
    verbose: whether to show progress.
    trackers: trackers in addition to `config.train.trackers`, of the means over members.

  Returns:
    For each member the content of a run's results.json without its times, and `member`: its
    settings. A member whose training diverged has `error` in place of metrics.

  Raises:
    UserError: for impossible settings or data.
    Preempted: after saving, if a signal asks to stop, see workdir/preemption.py.
  """
  start = time.perf_counter()
  check_structure(config)
  require(at_once >= 0, f"--at_once={at_once}: must be at least 0")
  data_digest, schema, splits = _load(config, schema, splits)
  require(
    "train" not in report_on or not isinstance(splits[0]["train"], DrawnRows),
    "report_on: rows that are drawn in each step have no train split to evaluate; remove 'train'",
  )
  population = compile_population(config, members, schema, splits, at_once)
  config, is_first_host = population.config, parallel.is_first_host()
  with (
    preemption.deferred(),
    contract.claim(workdir, config, schema, 1, is_first_host, data_digest, members) as ids,
    checkpoint.Checkpoints(workdir, belongs_to=ids) as checkpoints,
    tracking.create(config.train.trackers, trackers, is_first_host) as tracked,
  ):
    epoch, states, log_digest, unfinished = _restore(checkpoints, population)
    _stop_if_requested()
    if verbose and is_first_host:
      _print_summary(population, workdir)
    log_of = (workdir, epoch, config.train.epochs, tracked, is_first_host, verbose, log_digest)
    with logs.RunLog(*log_of) as log:
      elapsed_before = saving.elapsed(unfinished, log.records)
      wall_seconds = lambda: elapsed_before + time.perf_counter() - start
      explain = functools.partial(
        divergence.explain_member, population, schema, splits, checkpoints
      )
      at_start = (epoch, states, unfinished, explain)
      epoch, states, errors_M = _train_epochs(
        config, population, checkpoints, log, wall_seconds, *at_start
      )
    _save(checkpoints, epoch, population, states, log.digest())
    results = _evaluate(population, states, errors_M, workdir, save_logits, report_on)
    mean = evaluate_mean(population, schema, states, errors_M, report_on)
    summary = _summarise(results, mean, population, states, log.records)
    summary["wall_seconds"] = wall_seconds()
    tracked.end(summary)
  if is_first_host:
    contract.write_results(workdir, summary)
  return results


def _train_epochs(
  config: Any,
  population: "Population",
  checkpoints: checkpoint.Checkpoints,
  log: logs.RunLog,
  wall_seconds: Callable[[], float],
  epoch: int,
  states: State,
  unfinished: Unfinished | None,
  explain: Callable[[State, int, int], str],
) -> tuple[int, State, dict[int, str]]:
  """Trains until the last epoch, or until no member is active.

  Args:
    config: settings.
    population: the population.
    checkpoints: where to save.
    log: where to write the record of each epoch.
    wall_seconds: returns the time since the first start.
    epoch: number of finished epochs.
    states: the states then.
    unfinished: what is done of the next epoch.
    explain: (states, epoch, member) -> where the training of a member diverged.

  Returns:
    Number of finished epochs, states, and number of a member -> why its training diverged.

  Raises:
    Preempted: after saving, if a signal asks to stop.
  """
  errors_M = _read_errors(log.records)
  active_M = _find_active(population, states, epoch, errors_M)

  def stop_if_requested(states: State, losses_M: Sequence[TaskLosses]) -> None:
    if _must_stop():
      times = (time.perf_counter() - epoch_start, wall_seconds(), log.digest())
      _save_unfinished(checkpoints, population, epoch, states, losses_M, *times)
      raise preemption.Preempted

  while epoch < config.train.epochs and any(active_M):
    epoch_start = time.perf_counter() - (unfinished.seconds if unfinished else 0.0)
    states, losses_M, assessment_M = population.train_epoch(
      states, epoch + 1, active_M, saving.losses_of(unfinished), stop_if_requested
    )
    epoch, unfinished = epoch + 1, None
    seconds = time.perf_counter() - epoch_start
    measured = (losses_M, assessment_M, active_M, errors_M)
    explain_member = functools.partial(explain, states, epoch)
    values = _describe_epoch(population, epoch, *measured, explain_member)
    log.write(
      {"epoch": epoch, "active": active_M, "errors": dict(errors_M)}
      | {**values, "seconds": seconds}
      | {"rows_per_second": sum(active_M) * population.train_rows / seconds}
      | {"wall_seconds": wall_seconds()}
    )
    active_M = _find_active(population, states, epoch, errors_M)
    must_stop = _must_stop()
    if must_stop or epoch % config.checkpoint.every_epochs == 0:
      _save(checkpoints, epoch, population, states, log.digest())
    if must_stop:
      raise preemption.Preempted
  return epoch, states, errors_M


def _must_stop() -> bool:
  """Returns whether a signal asks any host to stop; all hosts must call it."""
  return parallel.any_host(preemption.requested())


def _stop_if_requested() -> None:
  """Raises Preempted if a signal asks any host to stop; all hosts must call it."""
  if _must_stop():
    raise preemption.Preempted


def _load(
  config: Any, schema: data.Schema | None, splits: Splits | None
) -> tuple[str, data.Schema, Splits]:
  """Verifies and loads the data that all members share, unless data are given."""
  if schema is not None and splits is not None:
    return "", schema, splits
  data_digest, schema, splits = train_rows.load(config)
  return data_digest, schema, [splits]


def _restore(
  checkpoints: checkpoint.Checkpoints, population: "Population"
) -> tuple[int, State, str | None, Unfinished | None]:
  """Returns finished epochs, states and digest of the log to start from, and an epoch in hand."""
  like = population.placement.unshard(population.states)
  unfinished = saving.restore_unfinished(checkpoints, like, population.segments)
  if unfinished is not None:
    states = population.placement.shard(unfinished.state)
    return unfinished.epoch, states, unfinished.log, unfinished._replace(state=None)
  restored = checkpoints.restore_state(like, like.best.variables)
  if restored is None:
    return 0, population.states, None, None
  return restored.epoch, population.placement.shard(restored.item), restored.log, None


def _read_errors(epoch_records: Sequence[Mapping[str, Any]]) -> dict[int, str]:
  """Returns the members' errors at the last of the records."""
  last = epoch_records[-1] if epoch_records else {}
  return {int(m): error for m, error in last.get("errors", {}).items()}


def _print_summary(population: "Population", workdir: str) -> None:
  progress.print_summary(
    devices=parallel.describe_devices(population.placement.used),
    model=population.config.model.name,
    parameters=_parameter_count(population),
    rows=population.train_rows,
    workdir=workdir,
    members=len(population.members),
  )


def _parameter_count(population: "Population") -> int:
  return layers.parameter_count(population.states.params) // population.placement.padded


def _find_active(
  population: Population, states: State, epoch: int, errors_M: Mapping[int, str]
) -> list[bool]:
  """Returns which members continue to train after an epoch."""
  best_epochs_M = population.placement.unshard(states.best.epoch)
  patience = population.config.select.patience
  return [
    m not in errors_M and not records.is_out_of_patience(int(best), epoch, patience)
    for m, best in enumerate(best_epochs_M)
  ]


def _describe_epoch(
  population: Population,
  epoch: int,
  losses_M: TaskLosses,
  assessment_M: Assessment,
  active_M: Sequence[bool],
  errors_M: dict[int, str],
  explain: Callable[[int], str],
) -> dict[str, Any]:
  """Returns an epoch's losses and metrics as lists over members, NaN for inactive ones.

  A member whose numbers are not finite is added to `errors_M`, the first ones with what `explain`
  returns of them.
  """
  undefined = [math.nan] * len(population.members)
  values: dict[str, Any] = {}
  warnings: dict[int, list[str]] = {}
  for m in np.flatnonzero(active_M):
    config = override(population.config, population.members[m])
    losses, assessment = jax.tree.map(lambda a, m=m: a[m], (losses_M, assessment_M))
    try:
      record = records.describe_epoch(epoch, losses, assessment, config, population.tasks)
    except UserError as error:
      where = ""
      if isinstance(error, records.DivergedError) and len(errors_M) < _EXPLAINED:
        where = explain(int(m))
      errors_M[int(m)] = f"{error}{where}"
      continue
    for line in record.pop("warnings", {}).get("gates", []):
      warnings.setdefault(int(m), []).append(line)
    for name, value in record.items():
      values.setdefault(name, list(undefined))[m] = value
  return values | ({"warnings": warnings} if warnings else {})


def _save(
  checkpoints: checkpoint.Checkpoints,
  epoch: int,
  population: Population,
  states: State,
  log_digest: str,
) -> None:
  states = population.placement.unshard(states)
  checkpoints.save(epoch, states, states.best.variables, log_digest)


def _save_unfinished(
  checkpoints: checkpoint.Checkpoints,
  population: Population,
  epoch: int,
  states: State,
  losses_M: Sequence[TaskLosses],
  seconds: float,
  wall_seconds: float,
  log_digest: str,
) -> None:
  """Saves states within an epoch."""
  states, losses = population.placement.unshard(states), concatenate_members(losses_M)
  steps = losses.losses.shape[1]
  rows = next(segment.rows for segment in population.segments if segment.start == steps)
  times = (seconds, wall_seconds, log_digest)
  saving.save_unfinished(
    checkpoints, Unfinished(epoch, steps, rows, states, losses._asdict(), *times)
  )


def _evaluate(
  population: Population,
  states: State,
  errors_M: Mapping[int, str],
  workdir: str,
  save_logits: Sequence[str],
  report_on: Sequence[str],
) -> list[dict[str, Any]]:
  """Returns the metrics of each member's best variables on each of the splits."""
  placement, functions = population.placement, population.functions
  parameters = _parameter_count(population)
  results = []
  for m, member in enumerate(population.members):
    error = {"error": errors_M[m]} if m in errors_M else {}
    counts = {"train_rows": population.train_rows, "parameters": parameters}
    notes = {"notes": dict(population.notes)}
    results.append({"member": dict(member)} | notes | error | counts)
  programs: dict[Any, Callable] = {}
  for name in report_on:
    _stop_if_requested()
    batches = [evaluate.make_eval_batch(each[name]) for each in population.splits]
    own_data, shared_data = place(placement, {"held_out": batches})
    member = (population.arrays._replace(data=own_data), states.best.variables)
    with_logits = name in save_logits
    # Validation and test rows often have the same shapes, and then share a program.
    shapes = (with_logits, str(jax.tree.map(jnp.shape, (own_data, shared_data))))
    if shapes not in programs:
      function = functions.evaluate_with_logits if with_logits else functions.evaluate
      programs[shapes] = placement.compile(function, (), member, shared_data, population.at_once)
    metrics_M, logits_MxKxO = placement.unshard(programs[shapes]((), member, shared_data))
    for m, result in enumerate(results):
      if m not in errors_M:
        evaluate.add_metrics(result, name, {k: v[m] for k, v in metrics_M.items()})
    if with_logits and parallel.is_first_host():
      rows = len(population.splits[0][name])
      save_array(os.path.join(workdir, f"logits_{name}.npy"), logits_MxKxO[:, :rows])
  return results


def _add_training(
  results: Sequence[dict[str, Any]],
  best_epochs_M: np.ndarray,
  epoch_records: Sequence[Mapping[str, Any]],
) -> None:
  """Adds the course of training to each member's results, and its gates at the best epoch."""
  for m, (result, best_epoch) in enumerate(zip(results, map(int, best_epochs_M), strict=True)):
    trained = [record["epoch"] for record in epoch_records if record["active"][m]]
    result |= {"best_epoch": best_epoch, "epochs": max(trained, default=0)}
    best_record = records.find_record(epoch_records, best_epoch)
    result |= records.describe_gates(logs.of_member(best_record, m), verbose=False)


def _summarise(
  results: list[dict[str, Any]],
  mean: Mapping[str, Any],
  population: Population,
  states: State,
  epoch_records: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
  """Completes the results of members; returns results.json of a population without its time."""
  best_epochs_M = population.placement.unshard(states.best.epoch)
  population.release()
  _add_training(results, best_epochs_M, epoch_records)
  rates = [record["rows_per_second"] for record in epoch_records]
  speed = float(np.median(rates or [0.0]))
  summary = {"members": results, "train_rows": population.train_rows, "rows_per_second": speed}
  return summary | ({"mean": mean} if mean else {})
