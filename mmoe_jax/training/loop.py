"""Training loop of a run: data, training, evaluation, logging, checkpoints."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax import data, parallel
from mmoe_jax.config import check_structure
from mmoe_jax.errors import require
from mmoe_jax.evaluation import evaluate
from mmoe_jax.models import layers
from mmoe_jax.training import records, train_rows
from mmoe_jax.training.run import Run, compile_run
from mmoe_jax.training.step import State
from mmoe_jax.workdir import checkpoint, contract, logs, progress


def train_and_evaluate(config: Any, workdir: str) -> dict[str, Any]:
  """Trains by a config, then evaluates the best variables on every split.

  The state to start from is the first of these that exists:

  1. the last checkpoint in the work directory: the run resumes, and ends with parameters that are
     bitwise identical, on a CPU, to those of an uninterrupted run;
  2. the best variables of the run in `config.train.warm_start`;
  3. random parameters.

  Args:
    config: settings as in configs/census.py.
    workdir: folder for config.json, schema.json, metrics.jsonl, TensorBoard events, checkpoints/
      and results.json.

  Returns:
    The content of results.json: metrics by name for each split, `best_epoch`, `epochs`,
    `rows_per_second`, `wall_seconds`, `parameters`, `notes` on undefined metrics, `gates` at the
    best epoch and `warnings` about them.

  Raises:
    UserError: for impossible settings or data, and for a loss that is not finite.
  """
  start = time.perf_counter()
  check_structure(config)
  data_digest = data.verify(config.data_dir)
  schema, splits = data.load(
    config.data_dir, **config.data, budget=data.memory_budget(config.train.memory_gib)
  )
  tasks = [task.name for task in schema.tasks]
  run = compile_run(config, schema, splits["train"])
  state = run.state
  if config.train.warm_start and not contract.saved_epochs(workdir):
    state = _warm_start(state, config.train.warm_start, schema)
  is_first_host = parallel.is_first_host()
  with (
    contract.claim(workdir, config, schema, run.devices.count, is_first_host, data_digest) as ids,
    checkpoint.Checkpoints(workdir, belongs_to=ids) as checkpoints,
  ):
    restored = checkpoints.restore_state(state, state.best.variables)
    epoch, state, log_digest = restored or (0, state, None)
    if is_first_host:
      _print_summary(config, run, workdir)
    held_out = evaluate.place(evaluate.make_eval_batch(splits["validation"], False), run.devices)
    with logs.RunLog(workdir, epoch, config.train.epochs, is_first_host, True, log_digest) as log:
      elapsed_before = log.records[-1].get("wall_seconds", 0.0) if log.records else 0.0
      while epoch < config.train.epochs and not _is_out_of_patience(state, epoch, config):
        epoch += 1
        epoch_start = time.perf_counter()
        state, losses = run.train_epoch(state, epoch)
        seconds = time.perf_counter() - epoch_start
        state, assessment = run.assess(state, held_out, np.int32(epoch))
        record = records.describe_epoch(epoch, losses, jax.device_get(assessment), config, tasks)
        log.write(
          {"epoch": epoch, **record, "seconds": seconds}
          | {"rows_per_second": run.rows.count / seconds}
          | {"wall_seconds": elapsed_before + time.perf_counter() - start}
        )
        if epoch % config.checkpoint.every_epochs == 0:
          checkpoints.save(epoch, state, state.best.variables, log.digest())
    checkpoints.save(epoch, state, state.best.variables, log.digest())
    results = _evaluate_splits(run, state, splits)
    results |= _summarise(state, epoch, log, is_first_host)
    results["wall_seconds"] = elapsed_before + time.perf_counter() - start
  if is_first_host:
    contract.write_results(workdir, results)
  return results


def _print_summary(config: Any, run: Run, workdir: str) -> None:
  progress.print_summary(
    devices=parallel.describe_devices(run.devices.devices),
    model=config.model.name,
    parameters=layers.parameter_count(run.state.params),
    rows=run.rows.count,
    workdir=workdir,
  )


def _evaluate_splits(
  run: Run, state: State, splits: Mapping[str, data.Split | data.StoredSplit]
) -> dict[str, Any]:
  """Returns metrics of the best variables on each split, and notes on how they were measured."""
  results: dict[str, Any] = {"notes": {}, "train_rows": run.rows.count}
  if isinstance(run.rows, train_rows.Streamed):
    splits = {**splits, "train": run.rows.sample}
    results["notes"]["train"] = f"measured on a random sample of {len(run.rows.sample):,} rows"
  for name, split in splits.items():
    batch = evaluate.place(evaluate.make_eval_batch(split), run.devices)
    metrics = jax.device_get(run.evaluate(state.best.variables, batch))
    evaluate.add_metrics(results, name, metrics)
  return results


def _summarise(state: State, epoch: int, log: logs.RunLog, verbose: bool) -> dict[str, Any]:
  """Returns the entries of results.json on the course of training."""
  rates = [record.get("rows_per_second", 0.0) for record in log.records]
  best_epoch = int(state.best.epoch)
  best_record = records.find_record(log.records, best_epoch)
  return records.describe_gates(best_record, verbose) | {
    "best_epoch": best_epoch,
    "epochs": epoch,
    "rows_per_second": float(np.median(rates or [0.0])),
    "parameters": layers.parameter_count(state.params),
  }


def _warm_start(state: State, workdir: str, schema: data.Schema) -> State:
  """Returns the state with the best variables of the run in another work directory."""
  other = contract.read_schema(workdir)
  for part in ("id_features", "numeric", "tasks"):
    require(
      getattr(other, part) == getattr(schema, part),
      f"config.train.warm_start = {workdir}: must be a run with the same {part.replace('_', ' ')}",
    )
  with checkpoint.Checkpoints(workdir, True, contract.digests_of(workdir)) as checkpoints:
    best = checkpoints.restore_best(state.best.variables)
  require(best is not None, f"config.train.warm_start = {workdir}: contains no checkpoint")
  variables = best.item
  state = state.replace(
    params=variables["params"],
    batch_stats=variables["batch_stats"],
    average=() if state.average == () else variables,
    best=state.best.replace(variables=variables),
  )
  # Copies, because training donates its state and each array can be donated only once.
  return jax.tree.map(jnp.copy, state)


def _is_out_of_patience(state: State, epoch: int, config: Any) -> bool:
  return records.is_out_of_patience(int(state.best.epoch), epoch, config.select.patience)
