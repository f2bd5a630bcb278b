"""Where an epoch's time goes: programs that do more and more of a step, timed in turns.

  python -m benchmarks.epoch_parts --config configs/census.py --out runs/epoch_parts/table.json

Each program scans over the batches of an epoch as the engine does, on one device, and leaves out
what those after it add. The floor is the arithmetic: the matrix products that a forward and a
backward pass need, at the speed of the largest product that the model has, measured beside.
Leaves --out and, beside it, the same as Markdown.
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

from benchmarks import studies, tables
from mmoe_jax import cache, data, engine, errors, losses, models, parallel
from mmoe_jax.errors import require
from mmoe_jax.shuffle import permutation
from mmoe_jax.table import write_atomically

Array = jax.Array
Program = Callable[[Any, Any, Array, Array], Any]
WHOLE = "+ optimizer, moving average: the whole step"
PRODUCTS = 8  # Pairs of products that the ceiling is measured over.


def programs(config: Any, schema: data.Schema, rows: int) -> dict[str, tuple[Program, Any]]:
  """Programs by what they add to the one before: (state, arrays, key, shard) -> state, and a state.

  Args:
    config: of the run.
    schema: of its data.
    rows: of the train split.
  """
  learner = engine.create_learner(config, schema, engine.steps_per_epoch(config, rows))
  loss_of = losses.elementwise(schema.tasks)
  blank = {
    "ids": np.zeros((1, len(schema.id_features)), np.uint8),
    "numeric": np.zeros((1, len(schema.numeric)), np.float32),
  }
  init = parallel.jit_once(learner.init)
  first = lambda: init(jax.random.key(config.seed), blank)
  stats = first().batch_stats

  def over_batches(step: Callable[[Any, Any, Array], Any]) -> Program:
    """The engine's epoch, with another step in it."""

    def stepped(carry: Any, batch: Any, key: Array, shard: Array) -> tuple[Any, Array]:
      held, number = carry  # Dropout draws anew in each step, as in training.
      return (step(held, batch, jax.random.fold_in(key, number)), number + 1), shard

    epoch = engine.make_train_epoch(stepped, config.train.batch_size, 1, config.train.shuffle)
    return lambda held, *rest: epoch((held, jnp.int32(0)), *rest)[0][0]

  def loss(params: Any, batch: Any, key: Array, train: bool) -> Array:
    logits_BxO, updated = learner.model.apply(
      {"params": params, "batch_stats": stats},
      batch["features"],
      train=train,
      rngs={"dropout": key},
      mutable=["batch_stats", "losses"],
    )
    weights_BxT = losses.label_weights(batch["labels"], batch["weights"])
    losses_T = losses.weighted_mean(loss_of(logits_BxO, batch["labels"]), weights_BxT)
    return losses_T.sum() + sum(jax.tree.leaves(updated.get("losses", {})))

  def shuffle(carry: Array, arrays: Any, key: Array, shard: Array) -> Array:
    return carry + permutation(key, len(arrays["labels"])).sum() + shard

  def gather(carry: Array, batch: Any, key: Array) -> Array:
    del key
    return carry + sum(a.sum(dtype=jnp.float32) for a in jax.tree.leaves(batch))

  def forward(params: Any, batch: Any, key: Array, train: bool) -> Any:
    # The parameters move with the loss, so that no step can be left out or taken ahead.
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
    "+ backward, plain descent": (over_batches(descend), first().params),
    WHOLE: (lambda *arguments: learner.epoch(*arguments)[0], first()),
  }


def kernels(config: Any, schema: data.Schema) -> list[tuple[int, ...]]:
  """Shapes of the model's kernels, inputs last but one; embedding tables are none."""
  model = models.create_model(config.model, schema)
  blank = {
    "ids": jnp.zeros((1, len(schema.id_features)), jnp.uint8),
    "numeric": jnp.zeros((1, len(schema.numeric)), jnp.float32),
  }
  shapes = jax.eval_shape(model.init, jax.random.key(0), blank)["params"]
  leaves, _ = jax.tree_util.tree_flatten_with_path(shapes)
  return [leaf.shape for path, leaf in leaves if "kernel" in jax.tree_util.keystr(path)]


def operations(shapes: Sequence[tuple[int, ...]]) -> int:
  """Floating-point operations of a row's matrix products, from the shapes of the kernels.

  Two an entry, in the forward pass and twice in the backward one: to the inputs and to the kernel.
  Activations, softmaxes and the mixture, which are no products with a kernel, are not counted.
  """
  return 3 * 2 * sum(map(math.prod, shapes))


def product_chain(x_BxD: Array, arrays: Any, key: Array, shard: Array) -> Array:
  """PRODUCTS pairs of products x @ w and (x @ w) @ w.T, and nothing else."""
  del key, shard
  w_DxH = arrays["w"]
  return jax.lax.fori_loop(0, PRODUCTS, lambda _, x_BxD: (x_BxD @ w_DxH) @ w_DxH.T, x_BxD)


def measure(named: Mapping[str, tuple[Program, Any, Any]], rounds: int) -> dict[str, list[float]]:
  """Seconds of programs in turns; the first call of each, which warms up, is not counted.

  Args:
    named: name -> program, first state, arrays.
    rounds: how often.
  """
  devices, key = parallel.Devices(1), jax.random.key(1)
  compiled = {n: devices.compile(p, state, arrays, key) for n, (p, state, arrays) in named.items()}
  states = {name: state for name, (_, state, _) in named.items()}
  seconds: dict[str, list[float]] = {name: [] for name in named}
  for number in range(rounds + 1):
    for name, run in compiled.items():
      start = time.perf_counter()
      states[name] = jax.block_until_ready(run(states[name], named[name][2], key))
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
  """Milliseconds a step of each part, and how near the whole comes to the matrix products' speed.

  Args:
    seconds: of each program, in the order in which they add up.
    shapes: of the kernels.
    rows, steps: of an epoch.
    products: seconds of the chain of products, and how many operations that is.
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
  """What was measured at each batch size."""
  text = []
  for batch_size, found in tables_of.items():
    lines = [
      [p["part"], f"{p['ms']:.3f}", f"{p['added_ms']:.3f}", f"{p['share']:.0%}"]
      for p in found["parts"]
    ]
    header = ("program", "ms a step", "more than before", "share")
    text += [f"### Batches of {batch_size:,}", tables.markdown(header, lines)]
    text.append(
      f"{found['rows_per_second']:,.0f} rows a second; {found['operations_per_row']:,} operations "
      f"of matrix products a row: {found['operations_per_second'] / 1e9:.1f} of "
      f"{found['ceiling_per_second'] / 1e9:.1f} GFLOP/s that the largest product alone reaches, "
      f"**{found['fraction_of_ceiling']:.2f}**."
    )
  text.append(
    f"One device, one of {machine['cores']} cores of {machine['processor']}, jax {machine['jax']}."
  )
  return "\n\n".join(text) + "\n"


def main(argv: list[str]) -> None:
  """The command line."""
  del argv
  cache.keep_programs()
  config = _CONFIG.value
  require(_ROUNDS.value >= 1, f"--rounds={_ROUNDS.value}: must be at least 1")
  sizes = [int(b) if b.isdigit() else 0 for b in _BATCHES.value]
  require(bool(sizes) and min(sizes) > 0, f"--batches={','.join(_BATCHES.value)}: give numbers > 0")
  schema, splits = data.load(config.data_dir, **config.data)
  engine.check_config(config, schema)
  arrays = jax.device_put(engine.train_arrays(splits["train"], config))
  rows, shapes = len(splits["train"]), kernels(config, schema)
  largest = max(shapes, key=math.prod)
  inputs, units = largest[-2], math.prod(largest) // largest[-2]
  found = {}
  for batch_size in sizes:
    config.train.batch_size = batch_size
    named = {name: (*pair, arrays) for name, pair in programs(config, schema, rows).items()}
    # Of norm 1 at most, so that a chain of products neither grows nor ends.
    w_DxH = jax.random.normal(jax.random.key(0), (inputs, units)) / (inputs**0.5 + units**0.5)
    named["products"] = (product_chain, jnp.ones((batch_size, inputs)), {"w": w_DxH})
    seconds = measure(named, _ROUNDS.value)
    products = (seconds.pop("products"), 2 * PRODUCTS * 2 * batch_size * inputs * units)
    steps = engine.steps_per_epoch(config, rows)
    found[batch_size] = summarise(seconds, shapes, rows, steps, products)
  machine = studies.machine()
  studies.write_json(_OUT.value, {"machine": machine, "batches": found})
  text = markdown(found, machine)
  write_atomically(os.path.splitext(_OUT.value)[0] + ".md", text)
  print(text)


if __name__ == "__main__":
  _CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/census.py", "FILE.py or FILE.py:ARG; --config.KEY=VALUE overrides."
  )
  _BATCHES = flags.DEFINE_list("batches", ["1024", "4096"], "Rows of a step.")
  _ROUNDS = flags.DEFINE_integer("rounds", 5, "Epochs of each program that are counted.")
  _OUT = flags.DEFINE_string("out", None, "The JSON file to write.", required=True)
  errors.run(main)
