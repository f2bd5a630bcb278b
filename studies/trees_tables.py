"""Tables of the comparison with trees: AUCs of single models and of mean scores, differences.

Seeds of different methods have nothing in common, so a difference adds their variances over seeds;
rows are the same, so its variance over rows is that of paired placements (DeLong et al. 1988).

Shape letters: M seeds, N rows, T tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.records import Record
from mmoe_jax.evaluation import statistics
from mmoe_jax.evaluation.tables import markdown
from studies import paired

MEAN = "_mean"  # Suffix of the mean score of a method's seeds.
TREES = ("lightgbm", "catboost")
_MINUS = "\N{MINUS SIGN}"


def mean_scores(scores_MxN: np.ndarray) -> np.ndarray:
  """Returns the log odds (N,) of the mean probability of several models."""
  scores_MxN = np.asarray(scores_MxN, np.float64)
  log_p, log_q = (-np.logaddexp(0, sign * scores_MxN) for sign in (-1, 1))
  return np.logaddexp.reduce(log_p, axis=0) - np.logaddexp.reduce(log_q, axis=0)


def log_loss(scores_N: np.ndarray, labels_N: np.ndarray) -> float:
  """Computes the mean negative log likelihood of log odds."""
  scores_N = np.asarray(scores_N, np.float64)
  return float(np.mean(np.logaddexp(0, scores_N) - labels_N * scores_N))


def summarise(
  scores: Mapping[str, np.ndarray],
  labels_NxT: np.ndarray,
  slices: Mapping[str, np.ndarray],
  tasks: Sequence[str],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Computes what a result file holds.

  Args:
    scores: method -> log odds of the test rows, (M, N, T).
    labels_NxT: their labels.
    slices: name -> (N,) bool, rows on which AUCs are computed as well.
    tasks: names of the tasks.

  Returns:
    A run per method and seed with its figures, such as `test/income_50k/auc`; and figure ->
    covariances over rows. METHOD_mean is the mean score of a method with several seeds.
  """
  every = {}
  for method, own in scores.items():
    every[method] = own
    if len(own) > 1:
      each = [mean_scores(own[:, :, t]) for t in range(len(tasks))]
      every[method + MEAN] = np.stack(each, axis=1)[None]
  runs = {(m, s): {"method": m, "seed": s} for m, own in every.items() for s in range(len(own))}
  rows = {}
  where = {"": slice(None)} | {f"_{name}": here for name, here in slices.items()}
  for t, task in enumerate(tasks):
    for suffix, here in where.items():
      placed, figure = {}, f"test/{task}/auc{suffix}"
      labels_N = labels_NxT[here, t]
      for method, own in every.items():
        own_MxN = own[:, here, t]
        for seed, scores_N in enumerate(own_MxN):
          run = runs[method, seed]
          run[figure] = statistics.placements(scores_N, labels_N).auc
          if not suffix:
            run[f"test/{task}/log_loss"] = log_loss(scores_N, labels_N)
        placed[method] = statistics.mean_placements(own_MxN, labels_N)
      rows[figure] = paired.covariances(placed)
  return list(runs.values()), rows


def difference(
  runs: Sequence[Mapping[str, Any]],
  figure: str,
  covariances: Mapping[str, Any],
  first: str,
  second: str,
) -> tuple[float, float | None]:
  """Computes the difference of two methods' means and the half width of its 95 % interval.

  Args:
    runs: runs of a result file.
    figure: name of the AUC.
    covariances: its covariances over rows.
    first: a method.
    second: method to subtract.
  """
  values = [[r[figure] for r in runs if r["method"] == m] for m in (first, second)]
  sources = [v for v in map(statistics.seed_variance, values) if v is not None]
  sources += paired.variances(covariances, first, second)
  half = statistics.half_interval(sources) if sources else None
  return float(np.mean(values[0]) - np.mean(values[1])), half


def format_comparison(
  protocol: str, runs: Sequence[Mapping[str, Any]], rows: Mapping[str, Any]
) -> str:
  """Formats a table per figure: each method's AUC and its differences to single and mean trees.

  Differences whose interval excludes zero are bold.

  Args:
    protocol: name of the protocol.
    runs: runs of a result file.
    rows: figure -> covariances over rows.
  """
  parts = []
  for figure, covariances in rows.items():
    methods = list(covariances["methods"])
    references = [m for tree in TREES for m in (tree, tree + MEAN) if m in methods]
    _, task, metric = figure.split("/")
    name = f"{protocol}, {task}{metric.removeprefix('auc').replace('_', ' ')}"
    lines = []
    for method in methods:
      found = [r for r in runs if r["method"] == method]
      own = paired.estimate(runs, figure, covariances, method)
      half = own.half if own.half is not None else own.half_rows
      spread = "" if own.half_seeds is None else f"{own.half_seeds:.5f}"
      interval = "" if half is None else f" ± {half:.4f}"
      cells = [method, str(len(found)), f"{own.value:.4f}{interval}", spread]
      for reference in references:
        same = method.removesuffix(MEAN) == reference.removesuffix(MEAN)
        pair = None if same else difference(runs, figure, covariances, method, reference)
        cells.append(_format(pair))
      lines.append(cells)
    header = [name, "seeds", "test AUC", "± over seeds", *(f"{_MINUS} {r}" for r in references)]
    parts.append(markdown(header, lines))
  return "\n\n".join(parts)


def _format(pair: tuple[float, float | None] | None) -> str:
  if pair is None:
    return ""
  value, half = pair
  text = f"{value:+.5f}".replace("-", _MINUS) + ("" if half is None else f" ± {half:.5f}")
  return f"**{text}**" if half is not None and abs(value) > half else text


def format_records(*found: Record) -> str:
  """Formats the result files trees/PROTOCOL as `format_comparison` does."""
  return "\n\n".join(format_comparison(r.settings["protocol"], r.runs, r.rows) for r in found)


def format_times(runs: Sequence[Mapping[str, Any]]) -> str:
  """Formats seconds of training one model and of scoring the test rows."""
  header = ["method", "task", "training, s", "its processor time, s", "scoring the test rows, s"]
  keys = (("train_seconds", 1), ("cpu_seconds", 1), ("score_seconds", 3))
  lines = [
    [r["method"], r["task"], *(f"{r[key]:.{digits}f}" for key, digits in keys)] for r in runs
  ]
  return markdown(header, lines)
