"""A run: loads the data, trains, logs, saves, evaluates. The rim around the engine: all I/O."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax import (
  checkpoint,
  data,
  engine,
  evaluate,
  gates,
  layers,
  logs,
  parallel,
  stream,
  workdirs,
)
from mmoe_jax.engine import State, fold_in
from mmoe_jax.errors import UserError, require

Array = jax.Array


def train_and_evaluate(config: Any, workdir: str) -> dict[str, Any]:
  """Trains as the config says, then evaluates the best variables on every split.

  Started again in its work directory it goes on from the last checkpoint, and ends with the very
  parameters of a run that was never interrupted (bit for bit on a CPU).

  Args:
    config: as configs/census.py gives it.
    workdir: where config.json, schema.json, metrics.jsonl, TensorBoard events, checkpoints/ and
      results.json go.

  Returns:
    What results.json holds: per split the metrics by name, `best_epoch`, `epochs`,
    `rows_per_second`, `wall_seconds`, `parameters`, `notes` on undefined metrics, `gates` at the
    best epoch and `warnings` about them.

  Raises:
    UserError: for what the user can mend, and for a loss that is not finite.
  """
  start = time.perf_counter()
  schema, splits = data.load(config.data_dir, **config.data, budget=stream.budget(config))
  tasks = [task.name for task in schema.tasks]
  run = _create_run(config, schema, splits["train"])
  if config.train.warm_start and not checkpoint.exists(workdir):
    run = run._replace(state=_warm_start(run.state, config.train.warm_start, schema))
  writes = parallel.is_first_host()
  with (
    workdirs.claim(workdir, config, schema, run.devices.count, writes),
    checkpoint.Checkpoints(workdir) as saver,
  ):
    state = saver.restore_state(run.state)
    state = run.state if state is None else state
    epoch = int(state.step) // run.rows.steps
    held_out = evaluate.place(evaluate.eval_arrays(splits["validation"], False), run.devices)
    with logs.RunLog(workdir, epoch, config.train.epochs, writes) as log:
      spent = log.records[-1].get("wall_seconds", 0.0) if log.records else 0.0
      while epoch < config.train.epochs and not _out_of_patience(state, epoch, config):
        epoch += 1
        began = time.perf_counter()
        state, losses_SxT = run.train_epoch(state, epoch)
        seconds = time.perf_counter() - began
        state, seen = run.assess(state, held_out, np.int32(epoch))
        learnt = describe_epoch(epoch, losses_SxT, jax.device_get(seen), config, tasks)
        log.write(
          {"epoch": epoch, **learnt, "seconds": seconds}
          | {"rows_per_second": run.rows.rows / seconds}
          | {"wall_seconds": spent + time.perf_counter() - start}
        )
        if epoch % config.checkpoint.every_epochs == 0:
          saver.save(epoch, state, state.best.variables)
    saver.save(epoch, state, state.best.variables)
    results = {"notes": {}, "train_rows": run.rows.rows}
    if isinstance(run.rows, stream.Streamed):
      splits["train"] = run.rows.sample
      results["notes"]["train"] = f"measured on {len(run.rows.sample):,} rows of it, at random"
    for name, split in splits.items():
      arrays = evaluate.place(evaluate.eval_arrays(split), run.devices)
      named = jax.device_get(run.measure(state.best.variables, arrays))
      evaluate.add_report(results, name, named)
    rates = [r.get("rows_per_second", 0.0) for r in log.records]
    best_epoch = int(state.best.epoch)
    results |= describe_gates(log.records[best_epoch - 1] if best_epoch else {}, writes)
    results |= {
      "best_epoch": best_epoch,
      "epochs": epoch,
      "rows_per_second": float(np.median(rates or [0.0])),
      "wall_seconds": spent + time.perf_counter() - start,
      "parameters": layers.parameter_count(state.params),
    }
  if writes:
    workdirs.write_results(workdir, results)
  return results


class _Run(NamedTuple):
  """The compiled pieces of a run, and its train rows."""

  state: State
  train_epoch: Callable[[State, int], tuple[State, np.ndarray]]
  assess: Callable[[State, Any, Any], tuple[State, engine.Assessment]]
  measure: Callable[[Any, Any], dict[str, Array]]
  rows: stream.Resident | stream.Streamed
  devices: parallel.Devices


def _create_run(config: Any, schema: data.Schema, split: data.Split | data.StoredSplit) -> _Run:
  engine.check_config(config, schema)
  count = parallel.device_count(config.train.devices, config.train.batch_size)
  devices = parallel.Devices(count)
  rows = stream.create(split, schema, config, devices)
  learner = engine.create_learner(config, schema, rows.steps, count, devices.axis_name)
  engine.check_labels(config, schema, rows.sample.labels)
  key = jax.random.key(config.seed)
  sample = {name: a[:1] for name, a in rows.sample.features.items()}
  state = devices.replicate(parallel.jit_once(learner.init)(key, sample))
  train_block = devices.compile(learner.epoch, state, rows.arrays, key)

  def train_epoch(state: State, epoch: int) -> tuple[State, np.ndarray]:
    losses = []
    for block, arrays in rows.of_epoch(epoch):
      state, losses_SxT = train_block(state, arrays, fold_in(key, "epoch", epoch, *block))
      losses.append(jax.device_get(losses_SxT))
    return state, np.concatenate(losses)

  assess, measure = parallel.jit(learner.assess), parallel.jit(learner.measure)
  return _Run(state, train_epoch, assess, measure, rows, devices)


def _warm_start(state: State, workdir: str, schema: data.Schema) -> State:
  other = workdirs.read_schema(workdir)
  for what in ("id_features", "numeric", "tasks"):
    require(
      getattr(other, what) == getattr(schema, what),
      f"config.train.warm_start: the run in {workdir} has other {what.replace('_', ' ')}",
    )
  with checkpoint.Checkpoints(workdir, read_only=True) as saver:
    variables = saver.restore_best(state.best.variables)
  require(variables is not None, f"config.train.warm_start: {workdir} holds no checkpoint")
  average = variables if state.average != () else ()
  # Copies, because training donates its state and each array may be given away only once.
  return jax.tree.map(
    jnp.copy,
    state._replace(
      params=variables["params"],
      batch_stats=variables["batch_stats"],
      average=average,
      best=state.best._replace(variables=variables),
    ),
  )


def _out_of_patience(state: State, epoch: int, config: Any) -> bool:
  return out_of_patience(int(state.best.epoch), epoch, config.select.patience)


def out_of_patience(best_epoch: int, epoch: int, patience: int) -> bool:
  """Whether a run stops: `patience` epochs without a better one; 0 is endless patience."""
  return bool(patience) and epoch - best_epoch >= patience


def describe_epoch(
  epoch: int,
  losses_SxT: np.ndarray,
  seen: engine.Assessment,
  config: Any,
  tasks: Sequence[str],
) -> dict[str, Any]:
  """What metrics.jsonl says of an epoch of one member: losses, weights, metrics, gates.

  Args:
    epoch: the epoch.
    losses_SxT: the losses of its steps.
    seen: what was measured after it, on the host.
    config: the member's config.
    tasks: names of the tasks.

  Raises:
    UserError: for a loss or an output that is not finite, and for a measure of selection that is
      undefined.
  """
  losses_T = require_finite_losses(losses_SxT, epoch, tasks)
  values, reasons = evaluate.report(seen.metrics)
  _require_selectable(reasons, config.select, tasks, epoch)
  record = {"loss": float(losses_T @ engine.task_weights(config.loss.task_weights, len(tasks)))}
  record |= {f"train/{t}/loss": float(x) for t, x in zip(tasks, losses_T, strict=True)}
  record |= {f"train/{t}/weight": float(x) for t, x in zip(tasks, seen.weights_T, strict=True)}
  record |= {f"validation/{name}": v for name, v in values.items()}
  if seen.gates is not None:
    record |= gates.scalars(seen.gates, tasks)
    if lines := gates.collapsed(seen.gates, tasks):
      record["warnings"] = {"gates": lines}
  return record


def describe_gates(record: Mapping[str, Any], aloud: bool) -> dict[str, Any]:
  """What results.json says of the gates, by the record of the best epoch; warnings aloud."""
  warnings = record.get("warnings", {}).get("gates", [])
  if aloud:
    for line in warnings:
      print(f"warning: {line}", file=sys.stderr)
  measured = {k: v for k, v in record.items() if k.startswith(gates.PREFIX)}
  return {"gates": measured, "warnings": warnings}


def require_finite_losses(losses_SxT: np.ndarray, epoch: int, tasks: Sequence[str]) -> np.ndarray:
  """The mean loss of each task (T,); UserError naming the first that is not finite."""
  bad = np.argwhere(~np.isfinite(losses_SxT))
  if len(bad):
    step, task = bad[0]
    raise UserError(
      f"the loss of task '{tasks[task]}' is not finite in epoch {epoch}, step {step + 1} of "
      f"{len(losses_SxT)}; {_REMEDY}"
    )
  return losses_SxT.mean(0)


def _require_selectable(
  reasons: Mapping[str, str], select: Any, tasks: Sequence[str], epoch: int
) -> None:
  """UserError for output that is not finite, or a measure of selection that is undefined.

  The last step's update may be the one that breaks: no loss has seen it yet.
  """
  for name, reason in reasons.items():
    task = name.split("/")[0]
    require(
      reason != evaluate.NOT_FINITE,
      f"the output for task '{task}' is not finite after epoch {epoch}; {_REMEDY}",
    )
  for task in select.tasks or tasks:
    name = f"{task}/{select.metric}"
    require(name not in reasons, f"validation {name} is undefined: {reasons.get(name)}")


_REMEDY = (
  "lower config.optimizer.*.learning_rate or set config.optimizer.clip_norm. "
  "The last checkpoint is from before"
)
