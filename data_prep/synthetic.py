"""Generates the synthetic regression tasks of the MMoE paper, with a given task correlation.

  python -m data_prep.synthetic --out data/synthetic --correlation 0.9 --seed 0

Two weight vectors have the cosine p, the task correlation (Ma et al., KDD 2018, section 3.2,
https://doi.org/10.1145/3219819.3220007):

  w_1 = c u_1,   w_2 = c (p u_1 + sqrt(1 − p²) u_2),   u_1, u_2 orthonormal in R^d
  y_k = w_k·x + sum_i sin(alpha_i w_k·x + beta_i) + e_k,   x ~ N(0, I),   e_k ~ N(0, 0.01)

The paper gives d = 100 and the variance of the noise, but not c, alpha and beta. Here they are the
same for both tasks and all seeds. SCALE, ALPHA and BETA were chosen so that the correlation of the
labels follows the paper's figure 2 (read by eye):

  cosine of the weights        0.5    0.7    0.9    0.98   1
  label correlation, paper     0.08   0.14   0.31   0.66   1
  label correlation, here      0.082  0.137  0.313  0.664  0.992

The differences are at most 0.008, for every seed; with one sine at best 0.04. With alpha and beta
drawn from N(0, 1) for each data set, differences are 0.46 or more, for one to ten sines and c from
0.5 to 8. With a larger variance of alpha the median over data sets fits, but single data sets range
from 0.15 to 0.55 at p = 0.9. The variance of a label is 1.19, 0.01 of it noise.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from absl import flags

from data_prep import arrays, output
from mmoe_jax import commands, data, errors

DIMENSION = 100
SCALE = 0.43
ALPHA = (7.0, 16.0)
BETA = (1.5, 1.0)
NOISE_VARIANCE = 0.01
ROWS = 100_000
HELD_OUT = 10_000


def weight_vectors(
  rng: np.random.Generator,
  correlation: float,
  dimension: int = DIMENSION,
  scale: float = SCALE,
) -> np.ndarray:
  """Draws w_1 and w_2 (2, d) of length `scale` and cosine `correlation`."""
  errors.require(-1 <= correlation <= 1, f"correlation = {correlation}: must be from -1 to 1")
  errors.require(dimension >= 2, f"dimension = {dimension}: must be at least 2")
  first, second = rng.standard_normal((2, dimension))
  first /= np.linalg.norm(first)
  second -= (second @ first) * first
  second /= np.linalg.norm(second)
  return scale * np.stack([first, correlation * first + np.sqrt(1 - correlation**2) * second])


def generate(
  seed: int | np.random.Generator,
  rows: int,
  correlation: float,
  dimension: int = DIMENSION,
  scale: float = SCALE,
  alpha: Sequence[float] = ALPHA,
  beta: Sequence[float] = BETA,
  noise_variance: float = NOISE_VARIANCE,
) -> tuple[np.ndarray, np.ndarray]:
  """Draws a pair of tasks and rows.

  Args:
    seed: seed of weights, rows and noise, or a generator.
    rows: number of rows N.
    correlation: p, the cosine of the tasks' weight vectors.
    dimension: d.
    scale: c, the length of the weight vectors.
    alpha: frequencies of the sines.
    beta: phases of the sines.
    noise_variance: variance of the labels' noise.

  Returns:
    x (N, d) and y (N, 2), float64.
  """
  errors.require(rows >= 1, f"rows = {rows}: must be at least 1")
  rng = np.random.default_rng(seed)
  weights_2xd = weight_vectors(rng, correlation, dimension, scale)
  x_Nxd = rng.standard_normal((rows, dimension))
  y_Nx2 = x_Nxd @ weights_2xd.T
  y_Nx2 = y_Nx2 + sum(np.sin(a * y_Nx2 + b) for a, b in zip(alpha, beta, strict=True))
  return x_Nxd, y_Nx2 + np.sqrt(noise_variance) * rng.standard_normal(y_Nx2.shape)


def label_correlation(
  correlation: float,
  scale: float = SCALE,
  alpha: Sequence[float] = ALPHA,
  beta: Sequence[float] = BETA,
  noise_variance: float = NOISE_VARIANCE,
) -> float:
  """Computes Pearson's correlation of the two labels exactly, as in the paper's figure 2.

  w_1·x and w_2·x are jointly normal with variance c² and correlation p. So with a = alpha c and
  E cos(s + b) = cos(b) exp(−Var(s) / 2) for a centred normal s, products of sines and
  of a sine and a number have expectations in closed form.

  Args:
    correlation: p, the cosine of the weight vectors.
    scale: see `generate`.
    alpha: see `generate`.
    beta: see `generate`.
    noise_variance: see `generate`.
  """
  a, b = np.asarray(alpha) * scale, np.asarray(beta)

  def covariance(p: float) -> float:
    squares = (a**2)[:, None] + a**2
    products = 2 * p * np.multiply.outer(a, a)
    minus = np.cos(np.subtract.outer(b, b)) * np.exp((products - squares) / 2)
    plus = np.cos(np.add.outer(b, b)) * np.exp((-products - squares) / 2)
    means = np.sin(b) * np.exp(-(a**2) / 2)
    sines = ((minus - plus) / 2).sum() - means.sum() ** 2
    mixed = 2 * p * scale * (a * np.cos(b) * np.exp(-(a**2) / 2)).sum()
    return p * scale**2 + mixed + sines

  return float(covariance(correlation) / (covariance(1.0) + noise_variance))


def splits(
  seed: int, correlation: float, rows: int = ROWS, held_out: int = HELD_OUT, **settings: object
) -> tuple[data.Schema, dict[str, data.Split]]:
  """Returns a new data set in the form of data.load: two regressions, `task_1` and `task_2`.

  Labels are not standardised (mean 0 and standard deviation 1 in the schema), so that mean squared
  errors are those of the paper.

  Args:
    seed: see `generate`.
    correlation: see `generate`.
    rows: rows of the train split.
    held_out: rows of validation, and of test.
    **settings: further arguments of `generate`.
  """
  schema, encoded = _encoded(seed, correlation, rows, held_out, **settings)
  return schema, {
    name: data.Split(data.to_features(schema, rows), rows.labels, rows.weights, {})
    for name, rows in encoded.items()
  }


def prepare(
  out: str,
  seed: int,
  correlation: float,
  rows: int = ROWS,
  held_out: int = HELD_OUT,
  **settings: object,
) -> data.Schema:
  """Writes the data set of `splits` to a folder for data.load; see output.replace_folder."""
  schema, encoded = _encoded(seed, correlation, rows, held_out, **settings)
  with output.replace_folder(out) as tmp_path:
    counts, start = {}, 0
    for name, split in encoded.items():
      numbers = np.arange(start, start + len(split.labels))
      start += len(split.labels)
      files = arrays.store(split, numbers, os.path.join(tmp_path, name), name)
      counts[name] = arrays.merge_counts(schema, [arrays.count(schema, split.labels)])
      counts[name]["bytes"] = sum(entry["bytes"] for entry in files.values())
    schema = dataclasses.replace(schema, counts=counts)
    data.save_schema(schema, os.path.join(tmp_path, data.SCHEMA_FILE))
    data.write_manifest(tmp_path)
  return schema


def _encoded(
  seed: int, correlation: float, rows: int, held_out: int, **settings: object
) -> tuple[data.Schema, dict[str, data.EncodedRows]]:
  for name, value in (("rows", rows), ("held_out", held_out)):
    errors.require(value >= 1, f"{name} = {value}: must be at least 1")
  x_Nxd, y_Nx2 = generate(seed, rows + 2 * held_out, correlation, **settings)
  inputs = tuple(f"x_{i + 1}" for i in range(x_Nxd.shape[1]))
  sources = {"seed": seed, "correlation": correlation, **settings}
  schema = data.Schema(
    columns=(*inputs, "y_1", "y_2"),
    id_features=(),
    numeric=tuple(data.NumericFeature(name, 0.0, 1.0, "identity") for name in inputs),
    tasks=tuple(data.Task(f"task_{k}", f"y_{k}", kind="regression") for k in (1, 2)),
    protocols={"none": ()},
    sources={name: str(value) for name, value in sources.items()},
  )
  encoded = {}
  ends = (rows, rows + held_out, rows + 2 * held_out)
  for name, end, count in zip(data.SPLITS, ends, (rows, held_out, held_out), strict=True):
    part = slice(end - count, end)
    encoded[name] = data.EncodedRows(
      ids=np.zeros((count, 0), np.uint8),
      numbers=x_Nxd[part].astype(np.float32),
      labels=y_Nx2[part].astype(np.float32),
      weights=np.ones(count, np.float32),
      slices=np.zeros((count, 0), bool),
    )
  return schema, encoded


def main(argv: list[str]) -> None:
  """Generates and stores a data set."""
  del argv
  errors.require(_SEED.value >= 0, f"--seed={_SEED.value}: must be at least 0")
  schema = prepare(_OUT.value, _SEED.value, _CORRELATION.value, _ROWS.value, _HELD_OUT.value)
  for split, count in schema.counts.items():
    stds = ", ".join(f"{name} {std:.4f}" for name, std in count["stds"].items())
    print(f"{split:<12}{count['rows']:>9,} rows, standard deviations of labels: {stds}")
  print(f"label correlation {label_correlation(_CORRELATION.value):.3f}; saved in {_OUT.value}")


if __name__ == "__main__":
  _OUT = flags.DEFINE_string("out", None, "Folder for the arrays and schema.json.", required=True)
  _CORRELATION = flags.DEFINE_float("correlation", 0.9, "Cosine of the tasks' weight vectors.")
  _SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, rows and noise.")
  _ROWS = flags.DEFINE_integer("rows", ROWS, "Rows of the train split.")
  _HELD_OUT = flags.DEFINE_integer("held_out", HELD_OUT, "Rows of validation, and of test.")
  commands.run(main)
