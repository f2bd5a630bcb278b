"""Paired comparisons of AUCs from result files: covariances over rows in place of scores.

The variance over rows of the difference of two AUCs needs, of each class, the covariance of the
methods' placements (DeLong et al. 1988). For K methods these are two K×K matrices, which a result
file holds in its `rows`; with the AUC of each seed they give every mean, difference and interval.

Shape letters: K methods, M seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmoe_jax.errors import require, require_known
from mmoe_jax.evaluation import statistics

_CLASSES = ("positives", "negatives")


def covariances(placed: Mapping[str, statistics.Placements]) -> dict[str, Any]:
  """Computes covariances over rows of AUCs on the same rows, for `rows` of a result file.

  Args:
    placed: method -> its placements, averaged over seeds; see statistics.mean_placements.

  Returns:
    `methods`, and for `positives` and `negatives` the number of `rows` and the `covariance` (K, K)
    of the means of their placements; it is zero for a single row.
  """
  found: dict[str, Any] = {"methods": list(placed)}
  for name, values_KxR in zip(
    _CLASSES, map(np.stack, zip(*placed.values(), strict=True)), strict=True
  ):
    rows = values_KxR.shape[1]
    matrix_KxK = np.cov(values_KxR) / rows if rows > 1 else np.zeros(2 * values_KxR.shape[:1])
    found[name] = {"rows": rows, "covariance": np.atleast_2d(matrix_KxK).tolist()}
  return found


def variances(rows: Mapping[str, Any], first: str, second: str = "") -> list[statistics.Variance]:
  """Returns what statistics.auc_variances gives for the placements, from their covariances.

  Args:
    rows: result of `covariances`, as read from a result file.
    first: a method.
    second: method to subtract; empty for the AUC of the first.
  """
  methods = list(rows["methods"])
  found = []
  for name in (first, second) if second else (first,):
    require_known(name, methods, "a method")
  for part in _CLASSES:
    if rows[part]["rows"] < 2:
      return []
    matrix_KxK = np.asarray(rows[part]["covariance"], np.float64)
    i = methods.index(first)
    value = matrix_KxK[i, i]
    if second:
      j = methods.index(second)
      value += matrix_KxK[j, j] - 2 * matrix_KxK[i, j]
    # Rounding may leave a negative number for two methods with equal scores.
    found.append(statistics.Variance(max(0.0, float(value)), rows[part]["rows"] - 1))
  return found


def estimate(
  runs: Sequence[Mapping[str, Any]], key: str, rows: Mapping[str, Any], first: str, second: str = ""
) -> statistics.Estimate:
  """Computes the mean of an AUC over seeds, or of a paired difference, with its intervals.

  Args:
    runs: `runs` of a result file with `method`, `seed` and the figure; seeds with null in either
      method are left out.
    key: name of the figure in a run, such as `test/income_50k/auc`.
    rows: covariances of the same figure.
    first: a method.
    second: method to subtract; empty for the mean of the first.
  """
  a, b = (
    {r["seed"]: r[key] for r in runs if r["method"] == name and r.get(key) is not None}
    for name in (first, second)
  )
  seeds = [seed for seed in a if seed in b] if second else list(a)
  require(len(seeds) > 0, f"{first}: no seed has a value of {key}")
  values_M = [a[seed] - (b[seed] if second else 0.0) for seed in seeds]
  return statistics.over_seeds(values_M, variances(rows, first, second))


def estimate_difference(
  runs: Sequence[Mapping[str, Any]], key: str, rows: Mapping[str, Any], first: str, second: str
) -> statistics.Estimate:
  """Computes the difference of two methods whose seeds are not paired; rows are.

  Variances over seeds of both are added, with the degrees of freedom of Welch; other arguments as
  in `estimate`.

  References:
    Welch: The Generalization of Student's Problem when Several Different Population Variances are
    Involved. Biometrika 34, 1947.
  """
  a_M, b_M = (
    np.array([r[key] for r in runs if r["method"] == name and r.get(key) is not None])
    for name in (first, second)
  )
  require(len(a_M) > 0 and len(b_M) > 0, f"{first} or {second}: no seed has a value of {key}")
  value = float(a_M.mean() - b_M.mean())
  over_rows = variances(rows, first, second)
  over_seeds = [v for v in map(statistics.seed_variance, (a_M, b_M)) if v is not None]
  half_seeds = statistics.half_interval(over_seeds) if len(over_seeds) == 2 else None
  half_rows = statistics.half_interval(over_rows) if over_rows else None
  half, p = None, None
  if half_seeds is not None and half_rows is not None:
    sources = ([*over_seeds, *over_rows], over_seeds, over_rows)
    half = max(map(statistics.half_interval, sources))
    p = max(statistics.p_value(value, s) for s in sources)
  return statistics.Estimate(value, None, half_seeds, half_rows, half, p)
