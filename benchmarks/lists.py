"""Measures training on lists with and without padding, in interleaved epochs on one device.

  python -m benchmarks.lists --out runs/lists

Four features of 1,000 ids and a list of which a row has a geometric number of values, embeddings of
16 and the MMoE of configs/census.py. Tables are updated by rows (row-wise Adagrad) or densely
(Adam); the list has a million and 20,000 ids. Writes table.json and table.md,
and with --results the result file lists.json.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import records
from benchmarks.machine import describe_machine
from configs import census
from mmoe_jax import cache, commands, data
from mmoe_jax.errors import require
from mmoe_jax.evaluation import tables
from mmoe_jax.files import write_atomically, write_json
from mmoe_jax.training import list_packing
from mmoe_jax.training.run import compile_run
from mmoe_jax.training.step import order_rows

_IDS = {"rows": 1_000_000, "dense": 20_000}


def make_rows(length: int, mean: float, ids: int, rows: int) -> tuple[data.Schema, data.Split]:
  """Returns a schema with a list of `length` columns, and random rows."""
  rng = np.random.default_rng(0)
  singles = tuple(data.IdFeature(f"f{i}", "hash", (f"f{i}",), buckets=999) for i in range(4))
  history = data.IdFeature(
    "history", "list", ("history",), buckets=ids - 1, length=length, pooling="mean", separator="|"
  )
  tasks = tuple(data.Task(name, name, ("1",), ("0",)) for name in ("a", "b"))
  schema = data.Schema(columns=(), id_features=(*singles, history), numeric=(), tasks=tasks)
  counts_N = np.minimum(rng.geometric(1 / mean, rows), length)
  values_NxL = rng.integers(1, ids, (rows, length)) * (np.arange(length) < counts_N[:, None])
  found = np.concatenate([rng.integers(0, 1000, (rows, 4)), values_NxL], axis=1)
  features = {"ids": found.astype(np.uint32), "numeric": np.zeros((rows, 0), np.float32)}
  labels = rng.integers(0, 2, (rows, 2)).astype(np.float32)
  return schema, data.Split(features, labels, np.ones(rows, np.float32), {})


def make_epoch(updates: str, is_packed: bool, schema: data.Schema, split: data.Split) -> Callable:
  """Returns train(epoch), which trains one epoch and waits for it."""
  config = census.get_config()
  config.data.tasks, config.train.devices, config.train.average_decay = ("a", "b"), 1, 0.0
  config.model.embedding_dim, config.optimizer.embedding.updates = 16, updates
  if updates == "rows":
    config.optimizer.embedding.name = "rowwise_adagrad"
  run = compile_run(config, schema, split)
  held: list[Any] = [run.state]
  order_of = lambda key, count: order_rows(key, count, True)
  lists = list_packing.find_lists(schema) if is_packed else ()
  capacities = list_packing.make_capacities(lists, config.train.batch_size, 1, order_of)
  ((_, rows),) = run.rows.blocks(1)
  programs: dict[Any, Callable[..., Any]] = {}

  def train(epoch: int) -> None:
    key = jax.random.key(epoch)
    places = capacities(rows.features["ids"], key)
    if places not in programs:
      function = functools.partial(run.learner.epoch, capacities=places)
      programs[places] = run.devices.compile(function, held[0], rows, key)
    held[0], losses = programs[places](held[0], rows, key)
    jax.block_until_ready((held[0], losses))

  return train


def measure(length: int, mean: float, updates: str, rows: int, rounds: int) -> dict[str, Any]:
  """Returns the median rows/s of padded and packed lists, and the median of their ratios."""
  schema, split = make_rows(length, mean, _IDS[updates], rows)
  epochs = {name: make_epoch(updates, name == "packed", schema, split) for name in _NAMES}
  rates: dict[str, list[float]] = {name: [] for name in _NAMES}
  for epoch in range(rounds + 1):
    for name, train in epochs.items():
      start = time.perf_counter()
      train(epoch)
      if epoch:  # The first one compiles.
        rates[name].append(rows / (time.perf_counter() - start))
  ratios = np.divide(rates["packed"], rates["padded"])
  medians = {name: float(np.median(values)) for name, values in rates.items()}
  return {"length": length, "updates": updates, **medians, "ratio": float(np.median(ratios))} | {
    f"{name}_rates": values for name, values in rates.items()
  }


_NAMES = ("padded", "packed")


def markdown(points: list[dict[str, Any]], mean: float, machine: dict[str, Any]) -> str:
  """Returns the table as Markdown."""
  header = ["columns of the list", "updates", "padded, rows/s", "packed, rows/s", "packed / padded"]
  lines = [
    [p["length"], p["updates"], f"{p['padded']:,.0f}", f"{p['packed']:,.0f}", f"{p['ratio']:.2f}"]
    for p in points
  ]
  text = tables.markdown(header, lines)
  return (
    f"{text}\n\nLists have {mean:g} values on average, as far as they fit. Medians of interleaved "
    f"epochs; {machine['processor']}, jax {machine['jax']}.\n"
  )


def main(argv: list[str]) -> None:
  """Measures each length and each kind of updates."""
  del argv
  for flag in (_ROUNDS, _ROWS):
    require(flag.value >= 1, f"--{flag.name}={flag.value}: must be at least 1")
  require(_MEAN.value >= 1, f"--mean={_MEAN.value}: must be at least 1")
  is_good = bool(_LENGTHS.value) and all(t.isdigit() and int(t) >= 2 for t in _LENGTHS.value)
  require(is_good, f"--lengths={','.join(_LENGTHS.value)}: must be whole numbers of at least 2")
  cache.keep_programs()
  os.makedirs(_OUT.value, exist_ok=True)
  machine = describe_machine()
  points = [
    measure(int(length), _MEAN.value, updates, _ROWS.value, _ROUNDS.value)
    for updates in _IDS
    for length in _LENGTHS.value
  ]
  write_json(os.path.join(_OUT.value, "table.json"), {"machine": machine, "points": points})
  settings = {"mean": _MEAN.value, "rows": _ROWS.value, "rounds": _ROUNDS.value}
  records.write(_RESULTS.value, "lists", points, settings=settings)
  text = markdown(points, _MEAN.value, machine)
  write_atomically(os.path.join(_OUT.value, "table.md"), text)
  print(text)


if __name__ == "__main__":
  _LENGTHS = flags.DEFINE_list("lengths", ["10", "20", "50", "100"], "Columns of the list.")
  _MEAN = flags.DEFINE_float("mean", 5.0, "Mean number of values.")
  _ROWS = flags.DEFINE_integer("rows", 65_536, "Rows of an epoch.")
  _ROUNDS = flags.DEFINE_integer("rounds", 7, "Counted epochs of each.")
  _OUT = flags.DEFINE_string("out", None, "Folder for the results.", required=True)
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  commands.run(main)
