"""Populations: many members (seeds, learning rates, any scalar setting) trained as one program.

  python -m mmoe_jax.population --config configs/census.py --workdir DIR --seeds 16 \
    --vary optimizer.dense.learning_rate=2e-3,5e-3

Members share the shapes of everything and may differ in `seed` and in any float. Each has its own
order of rows, early stop and best weights, and ends where a run of its own would end.
"""

import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from mmoe_jax import (
  cache,
  checkpoint,
  data,
  engine,
  errors,
  evaluate,
  layers,
  logs,
  parallel,
  report,
  workdirs,
)
from mmoe_jax.config import override
from mmoe_jax.errors import UserError, require
from mmoe_jax.table import save_array
from mmoe_jax.train import describe_epoch, describe_gates, out_of_patience

Array = jax.Array
Override = Mapping[str, Any]


def train_population(
  config: Any,
  members: Sequence[Override],
  workdir: str,
  splits: Sequence[Mapping[str, data.Split]] | None = None,
  schema: data.Schema | None = None,
  save_logits: Sequence[str] = (),
  at_once: int = 0,
  report_on: Sequence[str] = data.SPLITS,
) -> list[dict[str, Any]]:
  """Trains members together, then evaluates the best variables of each. It goes on when cut off.

  Args:
    config: as configs/census.py gives it.
    members: for each, dotted keys of the config and its own values: `seed`, floats, or tuples of
      floats; all members name the same keys.
    workdir: where config.json, schema.json, metrics.jsonl (a line an epoch, a list over members
      for each metric), checkpoints/ and results.json go; predict.py reads it.
    splits: data of its own for each member, of the same shapes, with its `schema`; else all
      members share what `config.data_dir` holds.
    save_logits: splits whose logits (M, N, O) float32 go to `logits_SPLIT.npy`.
    at_once: members of a device that share each operation; 0 chooses (parallel.Members).
    report_on: splits to measure the best variables on; a search leaves out the test rows.

  Returns:
    For each member what a run's results.json holds, but for its times, and `member`: its
    settings. One whose training diverged has `error` in place of metrics.

  Raises:
    UserError: for what the user can mend.
  """
  start = time.perf_counter()
  require(
    not config.train.memory_gib, "config.train.memory_gib: populations hold their rows in memory"
  )
  if schema is None:
    schema, shared = data.load(config.data_dir, **config.data)
    splits = [shared]
  _check_members(config, members, schema, splits)
  run = _Run(config, members, schema, splits, at_once)
  with (
    workdirs.claim(workdir, config, schema, 1, True, members),
    checkpoint.Checkpoints(workdir) as saver,
  ):
    restored = saver.restore_state(run.fetch())
    if restored is not None:
      run.states = run.spread.spread(restored)
    epoch = saver.latest_epoch() or 0
    with logs.RunLog(workdir, epoch, config.train.epochs) as log:
      last = log.records[-1] if log.records else {}
      spent = last.get("wall_seconds", 0.0)
      errors_M = {int(m): error for m, error in last.get("errors", {}).items()}
      active_M = run.active(epoch, errors_M)
      while epoch < config.train.epochs and any(active_M):
        epoch += 1
        began = time.perf_counter()
        losses_MxSxT, seen_M = run.train_epoch(epoch, active_M)
        seconds = time.perf_counter() - began
        values = run.read(epoch, losses_MxSxT, seen_M, active_M, errors_M)
        log.write(
          {"epoch": epoch, "active": active_M, "errors": dict(errors_M)}
          | {**values, "seconds": seconds}
          | {"rows_per_second": sum(active_M) * run.train_rows / seconds}
          | {"wall_seconds": spent + time.perf_counter() - start}
        )
        active_M = run.active(epoch, errors_M)
        if epoch % config.checkpoint.every_epochs == 0:
          states = run.fetch()
          saver.save(epoch, states, states.best.variables)
    states = run.fetch()
    saver.save(epoch, states, states.best.variables)
    results = run.evaluate(errors_M, workdir, save_logits, report_on)
    run.release()
    _add_training(results, states.best.epoch, log.records)
    summary = _summary(results, run.train_rows, log.records)
    summary["wall_seconds"] = spent + time.perf_counter() - start
  workdirs.write_results(workdir, summary)
  return results


class _Run:
  """The compiled programs of a population, the states of its members and their data.

  Attributes:
    states: engine.State with a leading axis of members, spread over devices.
    spread: which member is on which device.
    train_rows: rows of an epoch of one member.
  """

  def __init__(
    self,
    config: Any,
    members: Sequence[Override],
    schema: data.Schema,
    splits: Sequence[Mapping[str, data.Split]],
    at_once: int,
  ):
    self.config, self.members, self.splits, self._at_once = config, members, splits, at_once
    self.tasks = [task.name for task in schema.tasks]
    self.train_rows = len(splits[0]["train"])
    self.spread = parallel.Members(len(members), config.train.devices)
    self._schema = schema
    keys = [key for key in members[0] if key != "seed"]
    seeds = [np.uint32(m.get("seed", config.seed)) for m in members]
    self._of_members = self.spread.spread(
      {
        "seed": np.array(seeds),
        "settings": {k: np.array([m[k] for m in members], np.float32) for k in keys},
      }
    )
    arrays = [engine.train_arrays(each["train"], config) for each in splits]
    held_out = [evaluate.eval_arrays(each["validation"], all_views=False) for each in splits]
    self._own, self._shared = self._place({"train": arrays, "held_out": held_out})
    sample = {name: a[:1] for name, a in arrays[0]["features"].items()}
    self.states = self.spread.start(
      self._init, [(s, self._settings(m), sample) for s, m in zip(seeds, members, strict=True)]
    )
    arguments = self._arguments(0, [True] * len(members))
    self._train_epoch = self._compile(self._epoch, self.states, *arguments)

  def _settings(self, member: Override) -> dict[str, np.ndarray]:
    return {k: np.array(v, np.float32) for k, v in member.items() if k != "seed"}

  def release(self) -> None:
    """Gives the data back at once: what was compiled refers to the run, and the run to its data."""
    jax.tree.map(lambda a: a.delete(), (self._own, self._shared))
    self.splits = []

  def fetch(self) -> engine.State:
    """The states on the host, (M, …)."""
    return self.spread.gather(self.states)

  def active(self, epoch: int, errors_M: Mapping[int, str]) -> list[bool]:
    """Which members train on after an epoch."""
    best_M = self.spread.gather(self.states.best.epoch)
    patience = self.config.select.patience
    return [
      m not in errors_M and not out_of_patience(int(best), epoch, patience)
      for m, best in enumerate(best_M)
    ]

  def train_epoch(
    self, epoch: int, active_M: Sequence[bool]
  ) -> tuple[np.ndarray, engine.Assessment]:
    """Trains the active members for an epoch: their losses (M, S, T) and assessments (M, …)."""
    self.states, seen = self._train_epoch(self.states, *self._arguments(epoch, active_M))
    return self.spread.gather(seen)

  def read(
    self,
    epoch: int,
    losses_MxSxT: np.ndarray,
    seen_M: engine.Assessment,
    active_M: Sequence[bool],
    errors_M: dict[int, str],
  ) -> dict[str, Any]:
    """An epoch's losses and metrics as lists over members, NaN for those that did not train.

    A member whose numbers are not finite is added to `errors_M`.
    """
    nothing = [math.nan] * len(self.members)
    values: dict[str, Any] = {}
    warnings: dict[int, list[str]] = {}
    for m in np.flatnonzero(active_M):
      own = override(self.config, self.members[m])
      each = jax.tree.map(lambda a, m=m: a[m], seen_M)
      try:
        learnt = describe_epoch(epoch, losses_MxSxT[m], each, own, self.tasks)
      except UserError as error:
        errors_M[int(m)] = str(error)
        continue
      for line in learnt.pop("warnings", {}).get("gates", []):
        warnings.setdefault(int(m), []).append(line)
      for name, value in learnt.items():
        values.setdefault(name, list(nothing))[m] = value
    return values | ({"warnings": warnings} if warnings else {})

  def evaluate(
    self,
    errors_M: Mapping[int, str],
    workdir: str,
    save_logits: Sequence[str],
    report_on: Sequence[str],
  ) -> list[dict[str, Any]]:
    """The metrics of each member's best variables on each of the splits."""
    best = self.states.best.variables
    results = [{"member": dict(m), "notes": {}} for m in self.members]
    for m, result in enumerate(results):
      result |= {"error": errors_M[m]} if m in errors_M else {}
      result["train_rows"] = self.train_rows
      result["parameters"] = self._parameters()
    compiled: dict[Any, Callable] = {}
    for name in report_on:
      arrays = [evaluate.eval_arrays(each[name]) for each in self.splits]
      own, shared = self._place({"held_out": arrays})
      member = {**self._of_members, **own, "variables": best}
      wanted = name in save_logits
      # Validation and test often have the same shapes.
      shapes = (wanted, str(jax.tree.map(jnp.shape, (own, shared))))
      if shapes not in compiled:
        measure = functools.partial(self._measure, with_logits=wanted)
        compiled[shapes] = self._compile(measure, (), member, shared)
      named_M, logits_MxKxO = self.spread.gather(compiled[shapes]((), member, shared))
      for m, result in enumerate(results):
        if m not in errors_M:
          evaluate.add_report(result, name, {k: v[m] for k, v in named_M.items()})
      if wanted:
        rows = len(self.splits[0][name])
        save_array(os.path.join(workdir, f"logits_{name}.npy"), logits_MxKxO[:, :rows])
    return results

  def _arguments(self, epoch: int, active_M: Sequence[bool]) -> tuple[Any, Any]:
    active = {"active": self.spread.spread(np.array(active_M))}
    return (
      self._of_members | self._own | active,
      self._shared | {"epoch": self.spread.share(np.int32(epoch))},
    )

  def _place(self, trees: Mapping[str, list[Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data on the devices: (each member's own, shared by all), one of them empty."""
    if len(self.splits) == 1:
      return {}, self.spread.share({k: each[0] for k, each in trees.items()})
    stacked = {k: jax.tree.map(lambda *a: np.stack(a), *each) for k, each in trees.items()}
    return self.spread.spread(stacked), {}

  def _compile(self, function: Callable, state: Any, member: Any, shared: Any) -> Callable:
    return self.spread.compile(function, state, member, shared, self._at_once)

  def _parameters(self) -> int:
    return layers.parameter_count(self.states.params) // self.spread.padded

  # Of one member, on one device.

  def _learner(self, member: Mapping[str, Any]) -> engine.Learner:
    config = override(self.config, member["settings"])
    steps = engine.steps_per_epoch(config, self.train_rows)
    return engine.create_learner(config, self._schema, steps)

  def _init(self, seed: Array, settings: Any, sample: dict[str, Array]) -> engine.State:
    return self._learner({"settings": settings}).init(jax.random.key(seed), sample)

  def _epoch(
    self, state: engine.State, member: dict[str, Any], shared: dict[str, Any]
  ) -> tuple[engine.State, Any]:
    learner, given = self._learner(member), shared | member
    key = engine.fold_in(jax.random.key(member["seed"]), "epoch", shared["epoch"])

    def train(state: engine.State) -> tuple[engine.State, Any]:
      state, losses_SxT = learner.epoch(state, given["train"], key, jnp.int32(0))
      state, seen = learner.assess(state, given["held_out"], shared["epoch"])
      return state, (losses_SxT, seen)

    shapes = jax.eval_shape(train, state)[1]

    def rest(state: engine.State) -> tuple[engine.State, Any]:
      return state, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    # Members that have stopped cost nothing, where members follow each other.
    return jax.lax.cond(member["active"], train, rest, state)

  def _measure(
    self, _: Any, member: dict[str, Any], shared: dict[str, Any], with_logits: bool
  ) -> tuple[dict[str, Array], Any]:
    learner, given = self._learner(member), shared | member
    named = learner.measure(given["variables"], given["held_out"])
    predict = evaluate.make_predict(learner.model)
    logits = predict(given["variables"], given["held_out"].features) if with_logits else ()
    return named, logits


def _summary(
  results: list[dict[str, Any]], rows: int, records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """What results.json of a population holds, but for its time."""
  rates = [r["rows_per_second"] for r in records]
  speed = float(np.median(rates or [0.0]))
  return {"members": results, "train_rows": rows, "rows_per_second": speed}


def _add_training(
  results: Sequence[dict[str, Any]], best_M: np.ndarray, records: Sequence[Mapping[str, Any]]
) -> None:
  """Adds to each member's results how its training went, and what its gates did at its best."""
  for m, (result, best) in enumerate(zip(results, map(int, best_M), strict=True)):
    trained = [r["epoch"] for r in records if r["active"][m]]
    result |= {"best_epoch": best, "epochs": max(trained, default=0)}
    result |= describe_gates(logs.of_member(records[best - 1], m) if best else {}, aloud=False)


def _check_members(
  config: Any,
  members: Sequence[Override],
  schema: data.Schema,
  splits: Sequence[Mapping[str, data.Split]],
) -> None:
  """Raises UserError unless each member is a run that could be, and all fit one program."""
  require(len(members) > 0, "a population has at least one member")
  require(not config.train.warm_start, "config.train.warm_start: populations start from scratch")
  for member in members:
    require(
      member.keys() == members[0].keys(),
      f"members differ in which keys they set: {sorted(member)} and {sorted(members[0])}",
    )
    for key, value in member.items():
      fits = all(isinstance(v, float) for v in (value if isinstance(value, tuple) else (value,)))
      override(config, {key: value})  # Names a key that is not there.
      whole = isinstance(_value(config, key), int)
      require(
        (fits and not whole) or (key == "seed" and isinstance(value, int)),
        f"config.{key}={value!r}: members may differ in the seed, in floats and in tuples of "
        "floats; what else differs needs a population of its own",
      )
    own = override(config, member)
    engine.check_config(own, schema)
    engine.create_learner(own, schema, 1)
  for each in splits:
    engine.check_labels(config, schema, each["train"].labels)


def _value(config: Any, key: str) -> Any:
  for name in key.split("."):
    config = config[name]
  return config


def parse_vary(texts: Sequence[str]) -> list[Override]:
  """Every combination of what `--vary KEY=VALUE,VALUE` says, as overrides.

  Raises:
    UserError: for a text of another form, or a value that is no number.
  """
  axes = []
  for text in texts:
    key, equals, values = text.partition("=")
    require(bool(equals and values), f"--vary {text}: write KEY=VALUE,VALUE")
    try:
      axes.append([(key, float(value)) for value in values.split(",")])
    except ValueError as error:
      raise UserError(f"--vary {text}: {error}") from error
  return [dict(pairs) for pairs in itertools.product(*axes)]


def main(argv: list[str]) -> None:
  """The command line."""
  del argv
  parallel.use_all_cores()
  cache.keep_programs()
  config = _CONFIG.value
  require(_SEEDS.value >= 1, f"--seeds={_SEEDS.value}: must be at least 1")
  members = [
    {"seed": config.seed + seed, **settings}
    for settings in parse_vary(_VARY.value)
    for seed in range(_SEEDS.value)
  ]
  train_population(config, members, _WORKDIR.value, at_once=_AT_ONCE.value)
  print(report.population_table(workdirs.read_results(_WORKDIR.value), _WORKDIR.value))


if __name__ == "__main__":
  _CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE.py or FILE.py:ARG; --config.KEY=VALUE overrides.", lock_config=True
  )
  _WORKDIR = flags.DEFINE_string("workdir", None, "Where it leaves everything.", required=True)
  _SEEDS = flags.DEFINE_integer("seeds", 1, "How many seeds of each setting, from config.seed up.")
  _VARY = flags.DEFINE_multi_string("vary", [], "KEY=VALUE,VALUE: a float of the config to vary.")
  _AT_ONCE = flags.DEFINE_integer(
    "at_once", 0, "Members of a device that share each operation; 0 chooses."
  )
  flags.mark_flag_as_required("config")
  errors.run(main)
