"""Measures speed and memory along one size at a time, from those of census.py.

  python -m benchmarks.scaling --out runs/scaling

Each point is a separate process: it compiles, trains one warm-up epoch, then --rounds epochs, and
reports rows/s (of all members together) and its peak memory. Large sizes train on fewer rows.
Writes `table.json`, `table.md` and `scaling.png`, and with --results the result file scaling.json.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import plots, records
from benchmarks.machine import describe_machine
from configs import census
from mmoe_jax import cache, commands, data, parallel
from mmoe_jax.errors import require, require_known
from mmoe_jax.evaluation import tables
from mmoe_jax.files import write_atomically, write_json
from mmoe_jax.training.learner import create_learner
from mmoe_jax.training.run import compile_run
from mmoe_jax.training.step import State
from mmoe_jax.training.train_rows import make_batch, steps_per_epoch

# Axis -> its sizes. Other sizes are those of census.py: batches of 1,024, 8 experts, 2 tasks,
# embeddings of 4, Census once, one member, one device.
AXES = {
  "batch": (256, 512, 1024, 2048, 4096, 8192, 16_384, 65_536),
  "experts": (2, 4, 8, 16, 32, 64, 128, 256),
  "tasks": (2, 4, 8, 16, 32),
  "embedding": (2, 4, 8, 16, 32, 64),
  "rows": (1, 4, 16, 64),
  "members": (1, 2, 4, 8, 16, 32, 64),
  "devices": (1, 2, 4, 8),
}
_MAX_PRODUCTS = 3e10  # Products of kernel entries and rows per epoch; larger epochs are cut.


def measure(axis: str, size: int, data_dir: str, rounds: int) -> dict[str, Any]:
  """Trains at one size, in this process.

  Args:
    axis: the axis.
    size: size on the axis.
    data_dir: prepared data.
    rounds: number of timed epochs.

  Returns:
    `rows_per_second` of each epoch, of all members together; `peak_bytes` of the process;
    `parameters`; `rows`.
  """
  config = census.get_config("mmoe")
  schema, splits = data.load(data_dir, **config.data)
  split = splits["train"]
  if axis == "batch":
    config.train.batch_size = size
  elif axis == "experts":
    config.model.experts = size
  elif axis == "embedding":
    config.model.embedding_dim = size
  elif axis == "rows":
    split = _map(split, lambda a: np.tile(a, (size,) + (1,) * (a.ndim - 1)))
  elif axis == "tasks":
    schema, labels = _repeat_tasks(schema, split.labels, size)
    split = data.Split(split.features, labels, split.weights, {})
  kernels = 16 * config.model.experts * config.model.embedding_dim * len(schema.id_features)
  rows = len(split)
  least = min(rows, 8 * config.train.batch_size)
  if axis not in ("rows", "members"):
    rows = int(np.clip(_MAX_PRODUCTS // kernels, least, rows))
  split = _map(split, lambda a: a[:rows])
  del splits  # Only the devices' copy counts as memory that training needs.
  members = parallel.Members(size if axis == "members" else 1)
  if axis == "members":
    train = _make_population(config, schema, split, members)
  else:
    config.train.devices = size if axis == "devices" else 1
    train = _make_run(config, schema, split)
  del split
  rates = []
  for number in range(rounds + 1):
    start = time.perf_counter()
    parameters = train()
    if number:
      rates.append(members.count * rows / (time.perf_counter() - start))
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return {"rows_per_second": rates, "peak_bytes": peak, "parameters": parameters, "rows": rows}


def _map(split: data.Split, function: Any) -> data.Split:
  features = {name: function(a) for name, a in split.features.items()}
  return data.Split(features, function(split.labels), function(split.weights), {})


def _make_run(config: Any, schema: data.Schema, split: data.Split) -> Any:
  """Returns a function that trains one epoch of a run and returns its number of parameters."""
  run = compile_run(config, schema, split)
  held = [run.state]

  def train() -> int:
    state, _ = run.train_epoch(held.pop(), 1)
    held.append(jax.block_until_ready(state))
    return sum(a.size for a in jax.tree.leaves(state.params))

  return train


def _make_population(
  config: Any, schema: data.Schema, split: data.Split, members: parallel.Members
) -> Any:
  """Returns a function that trains one epoch of all members, as `_make_run`."""
  learner = create_learner(config, schema, steps_per_epoch(config, len(split)))
  shared = members.replicate(make_batch(split, config))
  seeds = members.shard(np.arange(members.count, dtype=np.uint32))

  def one_epoch(state: State, seed: Any, shared: Any) -> Any:
    return learner.epoch(state, shared, jax.random.key(seed))

  one_row = {name: a[:1] for name, a in split.features.items()}
  keys = [jax.random.key(m) for m in range(members.count)]
  held = [members.init(learner.init, [(key, one_row) for key in keys])]
  epoch = members.compile(one_epoch, held[0], seeds, shared)

  def train() -> int:
    state, losses = epoch(held.pop(), seeds, shared)
    held.append(jax.block_until_ready(state))
    del losses
    return sum(a.size for a in jax.tree.leaves(state.params)) // members.padded

  return train


def _repeat_tasks(
  schema: data.Schema, labels_NxT: np.ndarray, tasks: int
) -> tuple[data.Schema, np.ndarray]:
  """Returns a number of tasks by repeating those of the run."""
  chosen = [schema.tasks[i % len(schema.tasks)] for i in range(tasks)]
  more = tuple(data.Task(f"{t.name}_{i}", t.column) for i, t in enumerate(chosen))
  columns = np.arange(tasks) % labels_NxT.shape[1]
  return data.Schema((), schema.id_features, schema.numeric, more), labels_NxT[:, columns]


def in_a_process(axis: str, size: int, data_dir: str, rounds: int) -> dict[str, Any]:
  """Returns the result of `measure` in a process with the devices that it needs."""
  devices = size if axis == "devices" else 1
  if axis == "members":
    devices = min(size, len(os.sched_getaffinity(0)))
  command = [sys.executable, "-m", "benchmarks.scaling", f"--measure={axis}={size}", "--out=-"]
  command += [f"--data_dir={data_dir}", f"--rounds={rounds}"]
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
  process = subprocess.run(command, stdout=subprocess.PIPE, env=env, text=True, check=False)
  require(process.returncode == 0, f"{' '.join(command)} failed")
  found = json.loads(process.stdout.splitlines()[-1])
  found["median"] = float(np.median(found["rows_per_second"]))
  return {"axis": axis, "size": size, **found}


def markdown(points: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> str:
  """Formats the points as one table per axis."""
  parts = []
  for axis in dict.fromkeys(p["axis"] for p in points):
    lines = [
      [
        f"{p['size']:,}",
        f"{p['median']:,.0f}",
        f"{min(p['rows_per_second']):,.0f} to {max(p['rows_per_second']):,.0f}",
        f"{p['peak_bytes'] / 2**30:.2f}",
        f"{p['parameters']:,}",
        f"{p['rows']:,}",
      ]
      for p in points
      if p["axis"] == axis
    ]
    header = (axis, "rows/s", "range", "peak, GiB", "parameters", "rows per epoch")
    parts.append(tables.markdown(header, lines))
  parts.append(f"{machine['cores']} cores of {machine['processor']}, jax {machine['jax']}.")
  return "\n\n".join(parts) + "\n"


def main(argv: list[str]) -> None:
  """Measures all points in separate processes, or one point in this one."""
  del argv
  cache.keep_programs()
  require(_ROUNDS.value >= 1, f"--rounds={_ROUNDS.value}: must be at least 1")
  if _MEASURE.value:
    axis, _, size = _MEASURE.value.partition("=")
    print(json.dumps(measure(axis, int(size), _DATA_DIR.value, _ROUNDS.value)))
    return
  for axis in _AXES.value:
    require_known(axis, AXES, "a name in --axes")
  points, machine = [], describe_machine()
  for axis in _AXES.value:
    for size in AXES[axis]:
      points.append(in_a_process(axis, size, _DATA_DIR.value, _ROUNDS.value))
      print(f"{axis} {size}: {points[-1]['median']:,.0f} rows/s", flush=True)
      found = {"machine": machine, "points": points}
      write_json(os.path.join(_OUT.value, "table.json"), found)
  records.write(_RESULTS.value, "scaling", points, settings={"rounds": _ROUNDS.value})
  text = markdown(points, machine)
  write_atomically(os.path.join(_OUT.value, "table.md"), text)
  plots.scaling(os.path.join(_OUT.value, "scaling.png"), points)
  print(text)


if __name__ == "__main__":
  _AXES = flags.DEFINE_list("axes", list(AXES), "Axes to measure.")
  _MEASURE = flags.DEFINE_string("measure", "", "AXIS=SIZE: one point, in this process.")
  _ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed epochs.")
  _DATA_DIR = flags.DEFINE_string("data_dir", "data/census", "Prepared data.")
  _OUT = flags.DEFINE_string("out", None, "Output folder.", required=True)
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  commands.run(main)
