"""Times the parts of an epoch, by programs that do more and more of a step, in interleaved rounds.

  python -m benchmarks.epoch_parts --config configs/census.py --out runs/epoch_parts/table.json

Each program scans over the batches of an epoch on one device, and adds one part to the program
before it. The lower bound is arithmetic: the matrix products of a forward and a backward pass, at
the measured speed of the model's largest product. Writes --out, and the same as Markdown, and with
--results the result file epoch_parts.json.
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
from absl import flags
from ml_collections import config_flags

from benchmarks import records
from benchmarks.machine import describe_machine
from mmoe_jax import cache, commands, data, models, parallel
from mmoe_jax.errors import require
from mmoe_jax.evaluation import tables
from mmoe_jax.files import write_atomically, write_json
from mmoe_jax.training import checks, losses
from mmoe_jax.training.learner import create_learner
from mmoe_jax.training.shuffle import permutation
from mmoe_jax.training.step import Batch, make_train_epoch
from mmoe_jax.training.train_rows import make_batch, steps_per_epoch

Array = jax.Array
Program = Callable[[Any, Any, Array], Any]
WHOLE = "+ optimizer, moving average: the whole step"
PRODUCTS = 8  # Pairs of products that the ceiling is measured over.


def programs(config: Any, schema: data.Schema, rows: int) -> dict[str, tuple[Program, Any]]:
  """Returns, by the part that it adds, a program (state, batch, key) -> state and its first state.

  Args:
    config: settings of the run.
    schema: features and tasks of the run.
    rows: number of train rows.
  """
  learner = create_learner(config, schema, steps_per_epoch(config, rows))
  loss_fn = losses.elementwise(schema.tasks)
  one_row = {
    "ids": np.zeros((1, schema.id_count), np.uint8),
    "numeric": np.zeros((1, schema.numeric_count), np.float32),
  }
  init = parallel.jit_once(learner.init)
  first = lambda: init(jax.random.key(config.seed), one_row)
  stats = first().batch_stats

  def over_batches(step: Callable[[Any, Any, Array], Any]) -> Program:
    """Returns an epoch with another step."""

    def numbered(carry: Any, batch: Any, key: Array) -> tuple[Any, Array]:
      held, number = carry  # Dropout differs in each step, as in training.
      return (step(held, batch, jax.random.fold_in(key, number)), number + 1), number

    epoch = make_train_epoch(numbered, config.train.batch_size, shuffle=config.train.shuffle)
    return lambda held, *rest: epoch((held, jnp.int32(0)), *rest)[0][0]

  def loss(params: Any, batch: Any, key: Array, train: bool) -> Array:
    logits_BxO, updates = learner.model.apply(
      {"params": params, "batch_stats": stats},
      batch.features,
      train=train,
      rngs={"dropout": key, "shared": key},
      mutable=["batch_stats", "losses"],
    )
    weights_BxT = losses.label_weights(batch.labels, batch.weights)
    losses_T = losses.weighted_mean(loss_fn(logits_BxO, batch.labels), weights_BxT)
    return losses_T.sum() + sum(jax.tree.leaves(updates.get("losses", {})))

  def shuffle(carry: Array, batch: Batch, key: Array) -> Array:
    return carry + permutation(key, batch.labels.shape[0]).sum()

  def gather(carry: Array, batch: Any, key: Array) -> Array:
    del key
    return carry + sum(a.sum(dtype=jnp.float32) for a in jax.tree.leaves(batch))

  def forward(params: Any, batch: Any, key: Array, train: bool) -> Any:
    # Parameters depend on the loss, so that the compiler cannot remove or reorder steps.
    value = loss(params, batch, key, train)
    return jax.tree.map(lambda p: p + 1e-12 * value, params)

  def descend(params: Any, batch: Any, key: Array) -> Any:
    grads = jax.grad(loss)(params, batch, key, True)
    return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads)

  return {
    "shuffle": (shuffle, jnp.int32(0)),
    "+ gather the batches": (over_batches(gather), jnp.float32(0)),
    "+ forward": (over_batches(functools.partial(forward, train=False)), first().params),
    "+ dropout": (over_batches(functools.partial(forward, train=True)), first().params),
    "+ backward, gradient descent": (over_batches(descend), first().params),
    WHOLE: (lambda *arguments: learner.epoch(*arguments)[0], first()),
  }


def kernels(config: Any, schema: data.Schema) -> list[tuple[int, ...]]:
  """Returns the shapes of the model's kernels, (…, inputs, units), without embedding tables."""
  model = models.create_model(config.model, schema)
  one_row = {
    "ids": jnp.zeros((1, schema.id_count), jnp.uint8),
    "numeric": jnp.zeros((1, schema.numeric_count), jnp.float32),
  }
  shapes = jax.eval_shape(model.init, jax.random.key(0), one_row)["params"]
  leaves, _ = jax.tree_util.tree_flatten_with_path(shapes)
  return [leaf.shape for path, leaf in leaves if "kernel" in jax.tree_util.keystr(path)]


def operations(shapes: Sequence[tuple[int, ...]]) -> int:
  """Counts the floating-point operations of the matrix products per row, from kernel shapes.

  There are two per entry, once in the forward and twice in the backward pass: to the inputs and to
  the kernel. Activations, softmaxes and the mixture are not counted.
  """
  return 3 * 2 * sum(map(math.prod, shapes))


def product_chain(x_BxD: Array, arrays: Any, key: Array) -> Array:
  """Computes PRODUCTS pairs of products x @ w and (x @ w) @ w.T."""
  del key
  w_DxH = arrays["w"]
  return jax.lax.fori_loop(0, PRODUCTS, lambda _, x_BxD: (x_BxD @ w_DxH) @ w_DxH.T, x_BxD)


def measure(cases: Mapping[str, tuple[Program, Any, Any]], rounds: int) -> dict[str, list[float]]:
  """Returns seconds of programs in interleaved rounds, after one warm-up call of each.

  Args:
    cases: name -> program, first state, arrays.
    rounds: number of rounds.
  """
  devices, key = parallel.Devices(1), jax.random.key(1)
  compiled = {n: devices.compile(p, state, arrays, key) for n, (p, state, arrays) in cases.items()}
  states = {name: state for name, (_, state, _) in cases.items()}
  seconds: dict[str, list[float]] = {name: [] for name in cases}
  for number in range(rounds + 1):
    for name, run in compiled.items():
      start = time.perf_counter()
      states[name] = jax.block_until_ready(run(states[name], cases[name][2], key))
      if number:
        seconds[name].append(time.perf_counter() - start)
  return seconds


def summarise(
  seconds: Mapping[str, Sequence[float]],
  shapes: Sequence[tuple[int, ...]],
  rows: int,
  steps: int,
  products: tuple[Sequence[float], float],
) -> dict[str, Any]:
  """Computes milliseconds per step of each part, and the fraction of the products' speed.

  Args:
    seconds: seconds of each program, in the order of the parts.
    shapes: shapes of the kernels.
    rows: rows per epoch.
    steps: steps per epoch.
    products: seconds of the chain of products, and its number of operations.
  """
  per_step = {name: 1e3 * float(np.median(each)) / steps for name, each in seconds.items()}
  total = per_step[WHOLE]
  parts, before = [], 0.0
  for name, value in per_step.items():
    parts.append({"part": name, "ms": value, "added_ms": value - before})
    parts[-1]["share"] = (value - before) / total
    before = value
  reached = operations(shapes) * rows / float(np.median(seconds[WHOLE]))
  ceiling = products[1] / float(np.median(products[0]))
  return {
    "parts": parts,
    "rows_per_second": rows / float(np.median(seconds[WHOLE])),
    "operations_per_row": operations(shapes),
    "operations_per_second": reached,
    "ceiling_per_second": ceiling,
    "fraction_of_ceiling": reached / ceiling,
  }


def markdown(tables_of: Mapping[int, Mapping[str, Any]], machine: Mapping[str, Any]) -> str:
  """Formats the measurements of each batch size."""
  text = []
  for batch_size, found in tables_of.items():
    lines = [
      [p["part"], f"{p['ms']:.3f}", f"{p['added_ms']:.3f}", f"{p['share']:.0%}"]
      for p in found["parts"]
    ]
    header = ("program", "ms per step", "difference", "share")
    text += [f"### Batches of {batch_size:,}", tables.markdown(header, lines)]
    text.append(
      f"{found['rows_per_second']:,.0f} rows/s; {found['operations_per_row']:,} operations "
      f"of matrix products per row: {found['operations_per_second'] / 1e9:.1f} of "
      f"{found['ceiling_per_second'] / 1e9:.1f} GFLOP/s of the largest product, "
      f"**{found['fraction_of_ceiling']:.2f}**."
    )
  text.append(
    f"One device, one of {machine['cores']} cores of {machine['processor']}, jax {machine['jax']}."
  )
  return "\n\n".join(text) + "\n"


def main(argv: list[str]) -> None:
  """Measures the parts of an epoch at each batch size."""
  del argv
  cache.keep_programs()
  config = _CONFIG.value
  require(_ROUNDS.value >= 1, f"--rounds={_ROUNDS.value}: must be at least 1")
  sizes = [int(b) if b.isdigit() else 0 for b in _BATCHES.value]
  require(
    bool(sizes) and min(sizes) > 0, f"--batches={','.join(_BATCHES.value)}: must be numbers above 0"
  )
  schema, splits = data.load(config.data_dir, **config.data)
  checks.check_config(config, schema)
  batch = jax.device_put(make_batch(splits["train"], config))
  rows, shapes = len(splits["train"]), kernels(config, schema)
  largest = max(shapes, key=math.prod)
  inputs, units = largest[-2], math.prod(largest) // largest[-2]
  found, measured = {}, []
  for batch_size in sizes:
    config.train.batch_size = batch_size
    cases = {name: (*pair, batch) for name, pair in programs(config, schema, rows).items()}
    # The norm is at most 1, so that the chain of products does not grow.
    w_DxH = jax.random.normal(jax.random.key(0), (inputs, units)) / (inputs**0.5 + units**0.5)
    cases["products"] = (product_chain, jnp.ones((batch_size, inputs)), {"w": w_DxH})
    seconds = measure(cases, _ROUNDS.value)
    measured += [
      {"batch_size": batch_size, "program": name, "seconds": each} for name, each in seconds.items()
    ]
    products = (seconds.pop("products"), 2 * PRODUCTS * 2 * batch_size * inputs * units)
    steps = steps_per_epoch(config, rows)
    found[batch_size] = summarise(seconds, shapes, rows, steps, products)
  records.write(
    _RESULTS.value,
    "epoch_parts",
    measured,
    settings={"config": flags.FLAGS["config"].config_filename, "rows": rows}
    | {"operations_per_row": operations(shapes), "kernel": [inputs, units], "pairs": PRODUCTS},
  )
  machine = describe_machine()
  write_json(_OUT.value, {"machine": machine, "batches": found})
  text = markdown(found, machine)
  write_atomically(os.path.splitext(_OUT.value)[0] + ".md", text)
  print(text)


if __name__ == "__main__":
  _CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/census.py", "FILE.py or FILE.py:ARG; --config.KEY=VALUE overrides."
  )
  _BATCHES = flags.DEFINE_list("batches", ["1024", "4096"], "Rows per step.")
  _ROUNDS = flags.DEFINE_integer("rounds", 5, "Epochs of each program that are timed.")
  _OUT = flags.DEFINE_string("out", None, "JSON file to write.", required=True)
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  commands.run(main)
