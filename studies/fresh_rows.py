"""Synthetic tasks whose train rows are drawn on the device in each step: no row occurs twice.

The distribution is that of data_prep/synthetic.py. A run keeps its weight vectors, its constants
of the labels and a number that distinguishes its rows; the rows of a step are a function of these
and of the key of (seed, epoch, step).

Shape letters: B rows, D numbers of a row, I sines.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_prep import synthetic
from mmoe_jax import data
from mmoe_jax.training.step import Batch, DrawnRows

Array = jax.Array


def draw(task: Mapping[str, Array], key: Array, rows: int) -> Batch:
  """Draws rows of a pair of tasks.

  y_k = w_k·x + sum_i sin(alpha_i w_k·x + beta_i) + e_k,   x ~ N(0, I),   e_k ~ N(0, variance)

  Args:
    task: `weights` (2, D), `alpha` (I,), `beta` (I,), `noise`, the standard deviation of e_k, and
      `stream`, a number of the sequence of rows.
    key: random key.
    rows: number of rows B.
  """
  x_key, noise_key = jax.random.split(jax.random.fold_in(key, task["stream"]))
  x_BxD = jax.random.normal(x_key, (rows, task["weights"].shape[1]))
  # The default precision of an accelerator's products would change the labels.
  s_Bx2 = jnp.einsum("bd,td->bt", x_BxD, task["weights"], precision="highest")
  alpha_1x1xI, beta_1x1xI = task["alpha"][None, None], task["beta"][None, None]
  angles_Bx2xI = alpha_1x1xI * s_Bx2[..., None] + beta_1x1xI
  noise_Bx2 = task["noise"] * jax.random.normal(noise_key, s_Bx2.shape)
  features = {"ids": jnp.zeros((rows, 0), jnp.uint8), "numeric": x_BxD}
  return Batch(features, s_Bx2 + jnp.sin(angles_Bx2xI).sum(-1) + noise_Bx2, jnp.ones(rows))


def splits(
  seed: int, correlation: float, rows: int, held_out: int, stream: int = 0
) -> tuple[data.Schema, dict[str, Any]]:
  """Returns the tasks of a seed: train rows that are drawn, and held-out rows in arrays.

  Weight vectors are those of `synthetic.splits` with this seed.

  Args:
    seed: seed of the weights and of the held-out rows.
    correlation: p.
    rows: train rows per epoch.
    held_out: rows of validation, and of test.
    stream: number of the sequence of train rows.
  """
  schema, made = synthetic.splits(seed, correlation, rows=1, held_out=held_out)
  weights_2xD = synthetic.weight_vectors(np.random.default_rng(seed), correlation)
  task = {
    "weights": weights_2xD,
    "alpha": synthetic.ALPHA,
    "beta": synthetic.BETA,
    "noise": np.sqrt(synthetic.NOISE_VARIANCE),
  }
  arguments = {name: np.asarray(value, np.float32) for name, value in task.items()}
  arguments["stream"] = np.uint32(stream)
  return schema, {**made, "train": DrawnRows(arguments, draw, rows)}
