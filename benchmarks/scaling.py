"""How speed and memory change as the work grows, one size at a time from those of census.py.

  python -m benchmarks.scaling --out runs/scaling

Each point is a process of its own: it compiles, trains one epoch to warm up, then --rounds more,
and says rows a second (of all members together) and the most memory that it held. Sizes that take
long train on fewer rows. Leaves `table.json`, `table.md` and `scaling.png`.
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
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import plots, studies, tables
from configs import census
from mmoe_jax import cache, data, engine, errors, parallel
from mmoe_jax.errors import require, require_known
from mmoe_jax.table import write_atomically

# Axis -> its sizes. What an axis does not name is as in census.py: batches of 1,024, 8 experts, 2
# tasks, embeddings of 4, Census once, one member, one device.
AXES = {
  "batch": (256, 512, 1024, 2048, 4096, 8192, 16_384, 65_536),
  "experts": (2, 4, 8, 16, 32, 64, 128, 256),
  "tasks": (2, 4, 8, 16, 32),
  "embedding": (2, 4, 8, 16, 32, 64),
  "rows": (1, 4, 16, 64),
  "members": (1, 2, 4, 8, 16, 32, 64),
  "devices": (1, 2, 4, 8),
}
_ENOUGH = 3e10  # Multiplications of kernels with rows: an epoch need not have more.


def measure(axis: str, size: int, data_dir: str, rounds: int) -> dict[str, Any]:
  """Trains at one size, in this process.

  Args:
    axis, size: which and how much.
    data_dir: prepared data.
    rounds: epochs that count.

  Returns:
    `rows_per_second` of each epoch, of all members together; `peak_bytes` of the process;
    `parameters`, `train_rows`.
  """
  config = census.get_config("mmoe")
  schema, splits = data.load(data_dir, **config.data)
  arrays = engine.train_arrays(splits["train"], config)
  if axis == "batch":
    config.train.batch_size = size
  elif axis == "experts":
    config.model.experts = size
  elif axis == "embedding":
    config.model.embedding_dim = size
  elif axis == "rows":
    arrays = jax.tree.map(lambda a: np.tile(a, (size,) + (1,) * (a.ndim - 1)), arrays)
  elif axis == "tasks":
    schema, arrays["labels"] = _more_tasks(schema, arrays["labels"], size)
  kernels = 16 * config.model.experts * config.model.embedding_dim * len(schema.id_features)
  least = min(len(arrays["labels"]), 8 * config.train.batch_size)
  rows = len(arrays["labels"])
  if axis not in ("rows", "members"):
    rows = int(np.clip(_ENOUGH // kernels, least, rows))
  arrays = jax.tree.map(lambda a: a[:rows], arrays)
  del splits  # Beside the devices' copy, no other may count as memory that training needs.
  members = parallel.Members(size if axis == "members" else 1)
  train = _members(config, schema, arrays, members) if axis == "members" else None
  train = train or _alone(config, schema, arrays, size if axis == "devices" else 1)
  del arrays
  rates = []
  for number in range(rounds + 1):
    start = time.perf_counter()
    parameters = train()
    if number:
      rates.append(members.count * rows / (time.perf_counter() - start))
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return {"rows_per_second": rates, "peak_bytes": peak, "parameters": parameters, "rows": rows}


def _alone(config: Any, schema: data.Schema, arrays: Any, count: int) -> Any:
  devices = parallel.Devices(count)
  steps = engine.steps_per_epoch(config, len(arrays["labels"]))
  learner = engine.create_learner(config, schema, steps, count, devices.axis_name)
  sample = {name: a[:1] for name, a in arrays["features"].items()}
  init = parallel.jit_once(learner.init)
  state, placed = devices.replicate((init(jax.random.key(0), sample), arrays))
  epoch = devices.compile(learner.epoch, state, placed, jax.random.key(0))
  held = [state]

  def train() -> int:
    state, losses = epoch(held.pop(), placed, jax.random.key(0))
    held.append(jax.block_until_ready(state))
    del losses
    return sum(a.size for a in jax.tree.leaves(state.params))

  return train


def _members(config: Any, schema: data.Schema, arrays: Any, members: parallel.Members) -> Any:
  steps = engine.steps_per_epoch(config, len(arrays["labels"]))
  learner = engine.create_learner(config, schema, steps)
  shared = members.share(arrays)
  seeds = members.spread(np.arange(members.count, dtype=np.uint32))

  def one_epoch(state: engine.State, seed: Any, shared: Any) -> Any:
    return learner.epoch(state, shared, jax.random.key(seed), jnp.int32(0))

  sample = {name: a[:1] for name, a in arrays["features"].items()}
  keys = [jax.random.key(m) for m in range(members.count)]
  held = [members.start(learner.init, [(key, sample) for key in keys])]
  epoch = members.compile(one_epoch, held[0], seeds, shared)

  def train() -> int:
    state, losses = epoch(held.pop(), seeds, shared)
    held.append(jax.block_until_ready(state))
    del losses
    return sum(a.size for a in jax.tree.leaves(state.params)) // members.padded

  return train


def _more_tasks(
  schema: data.Schema, labels_NxT: np.ndarray, tasks: int
) -> tuple[data.Schema, np.ndarray]:
  """As many tasks as asked for: those of the run, again and again."""
  chosen = [schema.tasks[i % len(schema.tasks)] for i in range(tasks)]
  more = tuple(data.Task(f"{t.name}_{i}", t.column) for i, t in enumerate(chosen))
  columns = np.arange(tasks) % labels_NxT.shape[1]
  return data.Schema((), schema.id_features, schema.numeric, more), labels_NxT[:, columns]


def in_a_process(axis: str, size: int, data_dir: str, rounds: int) -> dict[str, Any]:
  """What `measure` gives, of a process that has as many devices as it needs."""
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
  """The points as tables."""
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
    header = (axis, "rows a second", "range", "peak, GiB", "parameters", "rows of an epoch")
    parts.append(tables.markdown(header, lines))
  parts.append(f"{machine['cores']} cores of {machine['processor']}, jax {machine['jax']}.")
  return "\n\n".join(parts) + "\n"


def main(argv: list[str]) -> None:
  """The command line."""
  del argv
  cache.keep_programs()
  require(_ROUNDS.value >= 1, f"--rounds={_ROUNDS.value}: must be at least 1")
  if _MEASURE.value:
    axis, _, size = _MEASURE.value.partition("=")
    print(json.dumps(measure(axis, int(size), _DATA_DIR.value, _ROUNDS.value)))
    return
  for axis in _AXES.value:
    require_known(axis, AXES, "a name in --axes")
  points, machine = [], studies.machine()
  for axis in _AXES.value:
    for size in AXES[axis]:
      points.append(in_a_process(axis, size, _DATA_DIR.value, _ROUNDS.value))
      print(f"{axis} {size}: {points[-1]['median']:,.0f} rows a second", flush=True)
      found = {"machine": machine, "points": points}
      studies.write_json(os.path.join(_OUT.value, "table.json"), found)
  text = markdown(points, machine)
  write_atomically(os.path.join(_OUT.value, "table.md"), text)
  plots.scaling(os.path.join(_OUT.value, "scaling.png"), points)
  print(text)


if __name__ == "__main__":
  _AXES = flags.DEFINE_list("axes", list(AXES), "What to vary.")
  _MEASURE = flags.DEFINE_string("measure", "", "AXIS=SIZE: one point, in this process.")
  _ROUNDS = flags.DEFINE_integer("rounds", 3, "Epochs that are counted.")
  _DATA_DIR = flags.DEFINE_string("data_dir", "data/census", "What data preparation wrote.")
  _OUT = flags.DEFINE_string("out", None, "The folder to write.", required=True)
  errors.run(main)
