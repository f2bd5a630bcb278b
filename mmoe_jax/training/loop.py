"""Training loop of a run: data, training, evaluation, logging, checkpoints."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmoe_jax import data, parallel
from mmoe_jax.config import check_structure
from mmoe_jax.evaluation import evaluate
from mmoe_jax.training import divergence, records, saving, table_updates, train_rows, warm_start
from mmoe_jax.training.run import Run, compile_run, concatenate
from mmoe_jax.training.step import State, TaskLosses
from mmoe_jax.workdir import checkpoint, contract, logs, preemption, progress, tracking
from mmoe_jax.workdir.unfinished import Unfinished


def train_and_evaluate(
  config: Any, workdir: str, trackers: Sequence[tracking.Tracker] = ()
) -> dict[str, Any]:
  """Trains by a config, then evaluates the best variables on every split.

  The state to start from is the first of these that exists:

  1. the last save in the work directory, after an epoch or within one: the run resumes, and ends
     with parameters that are bitwise identical, on a CPU, to those of an uninterrupted run;
  2. the best variables of the run in `config.train.warm_start`;
  3. random parameters.

  Args:
    config: settings as in configs/census.py.
    workdir: folder for config.json, schema.json, metrics.jsonl, TensorBoard events, checkpoints/
      and results.json.
    trackers: trackers in addition to those in `config.train.trackers`.

  Returns:
    The content of results.json: metrics by name for each split, `best_epoch`, `epochs`,
    `train_rows`, `rows_per_second`, `wall_seconds`, `parameters`, `notes` on undefined metrics,
    `gates` at the best epoch and `warnings` about them.

  Raises:
    UserError: for impossible settings or data, and for a loss that is not finite.
    Preempted: after saving, if a signal asks to stop, see workdir/preemption.py.
  """
  start = time.perf_counter()
  check_structure(config)
  data_digest, schema, splits = train_rows.load(config)
  tasks = [task.name for task in schema.tasks]
  run = compile_run(config, schema, splits["train"])
  config, is_first_host = run.config, parallel.is_first_host()
  state = _initial_state(run, schema, workdir)
  with (
    preemption.deferred(),
    contract.claim(workdir, config, schema, run.devices.count, is_first_host, data_digest) as ids,
    checkpoint.Checkpoints(workdir, belongs_to=ids) as checkpoints,
    tracking.create(config.train.trackers, trackers, is_first_host) as tracked,
  ):
    epoch, state, log_digest, unfinished = _restore(checkpoints, run, state)
    _stop_if_requested()
    if is_first_host:
      _print_summary(run, schema, workdir)
    held_out = run.place(evaluate.make_eval_batch(splits["validation"], all_views=False))
    log_of = (workdir, epoch, config.train.epochs, tracked, is_first_host, True, log_digest)
    with logs.RunLog(*log_of) as log:
      elapsed_before = saving.elapsed(unfinished, log.records)
      wall_seconds = lambda: elapsed_before + time.perf_counter() - start

      def save_unfinished(part: Unfinished) -> None:
        # Losses that are not finite end the run, and are not saved.
        records.mean_losses(TaskLosses(**part.losses), part.epoch + 1, tasks)
        part = part._replace(wall_seconds=wall_seconds(), log=log.digest())
        saving.save_unfinished(checkpoints, part)

      while epoch < config.train.epochs and not _is_out_of_patience(state, epoch, config):
        with _explained(run, schema, workdir, checkpoints, epoch + 1):
          state, losses, seconds = _train_epoch(
            run, state, epoch, unfinished, save_unfinished, tasks
          )
          epoch, unfinished = epoch + 1, None
          state, assessment = run.assess(state, held_out, np.int32(epoch))
          record = records.describe_epoch(epoch, losses, jax.device_get(assessment), config, tasks)
        log.write(
          {"epoch": epoch, **record, "seconds": seconds}
          | {"rows_per_second": run.rows.count / seconds}
          | {"wall_seconds": wall_seconds()}
        )
        _save_if_due(checkpoints, state, epoch, log, config.checkpoint.every_epochs)
    saving.save(checkpoints, epoch, state, log.digest())
    results = _summarise(run, state, epoch, log, is_first_host)
    results |= _evaluate_splits(run, saving.best_variables(checkpoints, epoch, state), splits)
    results["wall_seconds"] = wall_seconds()
    tracked.end(results)
  if is_first_host:
    contract.write_results(workdir, results)
  return results


def _initial_state(run: Run, schema: data.Schema, workdir: str) -> State:
  """Returns the state before the first step: random, or of `config.train.warm_start`."""
  source = run.config.train.warm_start
  if not source or contract.saved_epochs(workdir):
    return run.state
  found = warm_start.warm_start(run, schema)
  if parallel.is_first_host():
    print(*found.lines(source), sep="\n", file=sys.stderr)
  return found.state


def _restore(
  checkpoints: checkpoint.Checkpoints, run: Run, state: State
) -> tuple[int, State, str | None, Unfinished | None]:
  """Returns finished epochs, state and digest of the log to start from, and an epoch in hand."""
  unfinished = saving.restore_unfinished(checkpoints, state, run.segments)
  if unfinished is not None:
    return unfinished.epoch, unfinished.state, unfinished.log, unfinished._replace(state=None)
  return *(saving.restore(checkpoints, state) or (0, state, None)), None


@contextlib.contextmanager
def _explained(
  run: Run, schema: data.Schema, workdir: str, checkpoints: checkpoint.Checkpoints, epoch: int
) -> Iterator[None]:
  """Adds to the error of an epoch that diverged where that was, found from the last save."""
  try:
    yield
  except records.DivergedError as error:
    checkpoints.wait()
    saved = max(contract.saved_epochs(workdir), default=None)
    is_warm = run.config.train.warm_start and saved is None
    start = run.start_from(None)  # Training has donated that of the run.
    if is_warm:
      start = warm_start.warm_start(run._replace(state=start), schema).state
    done, state, _, unfinished = _restore(checkpoints, run, start)
    steps = unfinished.steps if unfinished else 0
    fault = divergence.find_fault(run, state, done, steps, epoch)
    raise records.DivergedError(f"{error}{divergence.describe(fault, saved)}") from error


def _train_epoch(
  run: Run,
  state: State,
  epoch: int,
  unfinished: Unfinished | None,
  save: Callable[[Unfinished], None],
  tasks: Sequence[str],
) -> tuple[State, TaskLosses, float]:
  """Trains an epoch, or its rest.

  Args:
    run: the run.
    state: the state before.
    epoch: number of finished epochs.
    unfinished: what is done of this one.
    save: saves a state within the epoch.
    tasks: names of the tasks.

  Returns:
    The state after it, the losses of all its steps, and its training time in seconds.

  Raises:
    DivergedError: for a loss that is not finite.
    Preempted: after saving, if a signal asks to stop.
  """
  losses = saving.losses_of(unfinished)
  done, seconds = (unfinished.steps, unfinished.seconds) if unfinished else (0, 0.0)
  rows_before = {segment.start: segment.rows for segment in run.segments}
  start = time.perf_counter() - seconds
  for trained, segment_losses in run.train_segments(state, epoch + 1, done):
    state = trained
    # The devices have a segment in hand while the next one is dispatched, and never wait.
    jax.block_until_ready(losses[-1:])
    if losses:  # An epoch of hours that diverged ends here.
      last = jax.device_get(losses[-1])
      records.mean_losses(last, epoch + 1, tasks, done - len(last.losses), run.rows.steps)
    losses.append(segment_losses)
    done += len(segment_losses.losses)
    if done < run.rows.steps and _must_stop():
      seconds = time.perf_counter() - start
      so_far = concatenate(losses)._asdict()
      save(Unfinished(epoch, done, rows_before[done], state, so_far, seconds))
      raise preemption.Preempted
  return state, concatenate(losses), time.perf_counter() - start


def _save_if_due(
  checkpoints: checkpoint.Checkpoints, state: State, epoch: int, log: logs.RunLog, every: int
) -> None:
  """Saves every `every` epochs, and before it stops for a signal.

  Raises:
    Preempted: after saving, if a signal asks to stop.
  """
  must_stop = _must_stop()
  if must_stop or saving.is_due(state, epoch, every):
    saving.save(checkpoints, epoch, state, log.digest())
  if must_stop:
    raise preemption.Preempted


def _must_stop() -> bool:
  """Returns whether a signal asks any host to stop; all hosts must call it."""
  return parallel.any_host(preemption.requested())


def _stop_if_requested() -> None:
  """Raises Preempted if a signal asks any host to stop; all hosts must call it."""
  if _must_stop():
    raise preemption.Preempted


def _print_summary(run: Run, schema: data.Schema, workdir: str) -> None:
  progress.print_summary(
    devices=parallel.describe_devices(run.devices.devices),
    model=run.config.model.name,
    parameters=run.parameters,
    rows=run.rows.count,
    workdir=workdir,
  )
  if line := table_updates.describe(run.config, schema):
    print(line, file=sys.stderr)


def _evaluate_splits(
  run: Run, variables: Any, splits: Mapping[str, data.Split | data.StoredSplit]
) -> dict[str, Any]:
  """Returns metrics of the best variables on each split, and notes on how they were measured."""
  results: dict[str, Any] = {"notes": {}, "train_rows": run.rows.count}
  if isinstance(run.rows, train_rows.Streamed):
    splits = {**splits, "train": run.rows.sample}
    results["notes"]["train"] = f"measured on a random sample of {len(run.rows.sample):,} rows"
  for name, split in splits.items():
    _stop_if_requested()
    batch = run.place(evaluate.make_eval_batch(split))
    metrics = jax.device_get(run.evaluate(variables, batch))
    evaluate.add_metrics(results, name, metrics)
  return results


def _summarise(
  run: Run, state: State, epoch: int, log: logs.RunLog, verbose: bool
) -> dict[str, Any]:
  """Returns the entries of results.json on the course of training."""
  rates = [record.get("rows_per_second", 0.0) for record in log.records]
  best_epoch = int(state.best.epoch)
  best_record = records.find_record(log.records, best_epoch)
  return records.describe_gates(best_record, verbose) | {
    "best_epoch": best_epoch,
    "epochs": epoch,
    "rows_per_second": float(np.median(rates or [0.0])),
    "parameters": run.parameters,
  }


def _is_out_of_patience(state: State, epoch: int, config: Any) -> bool:
  return records.is_out_of_patience(int(state.best.epoch), epoch, config.select.patience)
