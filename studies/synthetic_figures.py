"""Figures of the synthetic study as numbers, intervals and Markdown.

Figure 2 is the correlation of the labels; figures 4 and 5 are the losses of models, their spread
and their order. paper_synthetic.py trains.

Shape letters: R runs, K epochs, M members of a population, G models, D draws of a bootstrap.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_prep import synthetic
from mmoe_jax.evaluation import statistics, tables
from studies import published

METRIC = "mse"


def final_losses(results: Sequence[Mapping[str, Any]], split: str) -> np.ndarray:
  """Returns the mean squared error over tasks of each member (M,); NaN if it diverged."""
  losses = []
  for result in results:
    values = [v for k, v in result.get(split, {}).items() if k.split("/")[1] == METRIC]
    losses.append(np.mean(values) if values else np.nan)
  return np.array(losses, np.float64)


def runs_of(populations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns the runs of the result file: final test loss of each p, model and run.

  Args:
    populations: `results` of the members, `correlation`, `model` and `start`, the first's number.
  """
  return [
    {"correlation": p["correlation"], "model": p["model"], "run": p["start"] + i, "loss": loss}
    for p in populations
    for i, loss in enumerate(final_losses(p["results"], "test"))
  ]


def label_correlations(cosines: Sequence[float], seeds: int, rows: int) -> list[dict[str, float]]:
  """Computes Pearson's correlation of the two tasks' labels over data sets of each cosine.

  Args:
    cosines: cosines p of the tasks' weights.
    seeds: number of data sets per cosine.
    rows: rows of a data set.

  Returns:
    For each cosine the mean, the half width of its 95 % interval, the ends of the middle 95 % of
    data sets, and the value in the paper's figure.
  """
  points = []
  for cosine in cosines:
    drawn = []
    for seed in range(seeds):
      _, splits = synthetic.splits(seed, cosine, rows, held_out=1)
      labels_NxT = np.asarray(splits["train"].labels, np.float64)
      drawn.append(np.corrcoef(labels_NxT.T)[0, 1])
    found = statistics.over_seeds(drawn)
    low, high = statistics.percentile_interval(drawn)
    points.append(
      {"cosine": cosine, "mean": found.value, "half": found.half_seeds, "low": low, "high": high}
      | {"paper": published.LABEL_CORRELATION.get(cosine), "drawn": drawn}
    )
  return points


def summarise(
  correlation: float, losses: Mapping[str, np.ndarray], draws: int = 10_000
) -> list[dict[str, Any]]:
  """Returns a row for each model at one correlation: level and spread of its final loss.

  Args:
    correlation: p.
    losses: model -> final loss of each run, (R,); NaN where it diverged.
    draws: bootstrap draws over runs.
  """
  rows = []
  for model, loss_R in losses.items():
    kept_R = loss_R[np.isfinite(loss_R)]
    low, high = statistics.percentile_interval(statistics.bootstrap(kept_R[None], draws=draws)[0])
    q05, q25, median, q75, q95 = np.quantile(kept_R, (0.05, 0.25, 0.5, 0.75, 0.95))
    std = float(kept_R.std(ddof=1)) if len(kept_R) > 1 else None
    rows.append(
      {"correlation": correlation, "model": model, "runs": len(kept_R)}
      | {"diverged": len(loss_R) - len(kept_R), "mean": float(kept_R.mean())}
      | {"mean_low": low, "mean_high": high, "median": float(median), "std": std}
      | {"interquartile_range": float(q75 - q25), "range_5_to_95": float(q95 - q05)}
      | {"least": float(kept_R.min()), "largest": float(kept_R.max())}
      | {"paper_loss": published.SYNTHETIC_LOSS.get(correlation, {}).get(model)}
      | {"paper_spread": published.SYNTHETIC_SPREAD.get(model)}
    )
  return rows


def compare(
  correlation: float, losses: Mapping[str, np.ndarray], draws: int = 10_000
) -> list[dict[str, Any]]:
  """Returns a row for each pair of models, comparing the second with the first.

  Args:
    correlation: p.
    losses: model -> final loss of each run; run r has the same data for all. Runs in which any
      model diverged are left out.
    draws: bootstrap draws over runs.

  Returns:
    `difference` of the means (second − first) with its percentile interval, the bootstrap
    `probability` that the second's mean is lower, the `share` of runs in which its loss is lower
    with its exact interval, and `ratio_of_std` (second / first) with its percentile interval and
    the bootstrap `probability_std` that the second spreads less.
  """
  models = list(losses)
  kept_R = np.isfinite(np.stack(list(losses.values()))).all(0)
  loss_GxR = np.stack([losses[m][kept_R] for m in models])
  means_GxD = statistics.bootstrap(loss_GxR, draws=draws)
  std_GxD = statistics.bootstrap(loss_GxR, np.std, draws)
  rows = []
  for i in range(len(models)):
    for j in range(i + 1, len(models)):
      lower = int((loss_GxR[j] < loss_GxR[i]).sum())
      low, high = statistics.percentile_interval(means_GxD[j] - means_GxD[i])
      least, largest = statistics.share_interval(lower, loss_GxR.shape[1])
      rows.append(
        {"correlation": correlation, "first": models[i], "second": models[j]}
        | {"runs": loss_GxR.shape[1]}
        | {"difference": float((loss_GxR[j] - loss_GxR[i]).mean()), "low": low, "high": high}
        | {"probability": statistics.probability_below(means_GxD[j], means_GxD[i])}
        | {"share": lower / loss_GxR.shape[1], "share_low": least, "share_high": largest}
        | _spread(loss_GxR[i], loss_GxR[j], std_GxD[i], std_GxD[j])
      )
  return rows


def _spread(
  first_R: np.ndarray, second_R: np.ndarray, first_D: np.ndarray, second_D: np.ndarray
) -> dict[str, float | None]:
  names = ("ratio_of_std", "ratio_low", "ratio_high", "probability_std")
  if not (first_R.std() > 0 and (first_D > 0).all()):
    return dict.fromkeys(names)
  low, high = statistics.percentile_interval(second_D / first_D)
  values = (float(second_R.std() / first_R.std()), low, high)
  return dict(zip(names, (*values, statistics.probability_below(second_D, first_D)), strict=True))


def curve_summary(
  curves_KxR: np.ndarray, level: float = statistics.LEVEL
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns mean over runs per epoch and the ends of its interval, by Student's t; each (K,)."""
  estimates = [statistics.over_seeds(c[np.isfinite(c)], level=level) for c in curves_KxR]
  mean_K = np.array([e.value for e in estimates])
  half_K = np.array([e.half_seeds or 0.0 for e in estimates])
  return mean_K, mean_K - half_K, mean_K + half_K


def markdown(
  figure_2: Sequence[Mapping[str, Any]],
  rows: Sequence[Mapping[str, Any]],
  pairs: Sequence[Mapping[str, Any]],
  untuned: Sequence[str] = (),
) -> str:
  """Formats the study next to the paper's figures, as Markdown."""
  number = tables.number
  parts = []
  if figure_2:
    lines = [
      [
        f"{r['cosine']:g}",
        number(r["mean"], 3) + tables.plus_minus(r["half"], 3),
        f"{number(r['low'], 3)} to {number(r['high'], 3)}",
        number(r["paper"], 2),
      ]
      for r in figure_2
    ]
    header = ("p", "label correlation, mean", "middle 95 % of data sets", "paper")
    parts += ["### Figure 2: correlation of labels", tables.markdown(header, lines)]
  header = ("p, model", "mean loss", "95 % interval", "median", "std", "middle half")
  header += ("5 % to 95 %", "largest", "paper, figure 4")
  lines = [
    [
      f"{r['correlation']:g}, {r['model']}"
      + (f" ({r['diverged']} diverged)" if r["diverged"] else ""),
      number(r["mean"]),
      f"{number(r['mean_low'])} to {number(r['mean_high'])}",
      number(r["median"]),
      number(r["std"]),
      number(r["interquartile_range"]),
      number(r["range_5_to_95"]),
      number(r["largest"]),
      number(r["paper_loss"], 3),
    ]
    for r in rows
  ]
  parts += ["### Figures 4 and 5: final loss", tables.markdown(header, lines)]
  header = ("p, pair", "difference of means", "95 % interval", "P(lower mean)")
  header += ("lower in … of runs", "ratio of std", "P(lower std)")
  lines = [
    [
      f"{r['correlation']:g}, {r['second']} against {r['first']}",
      tables.signed(r["difference"]),
      f"{tables.signed(r['low'])} to {tables.signed(r['high'])}",
      number(r["probability"], 3),
      f"{number(100 * r['share'], 0)} % ({number(100 * r['share_low'], 0)} to "
      f"{number(100 * r['share_high'], 0)})",
      tables.DASH
      if r["ratio_of_std"] is None
      else f"{number(r['ratio_of_std'], 2)} ({number(r['ratio_low'], 2)} to "
      f"{number(r['ratio_high'], 2)})",
      number(r["probability_std"], 3),
    ]
    for r in pairs
  ]
  if lines:
    parts += ["### Orderings", tables.markdown(header, lines)]
  runs = max(r["runs"] + r["diverged"] for r in rows)
  text = (
    f"{runs} runs of each model and p. The loss is the mean over both tasks of the squared error "
    "on test rows, by the weights of the best validation epoch. Intervals, and P, come from "
    "resampling runs, the same for all models. The paper's values are read off its figures by eye, "
    "and it does not give the scale of its labels: compare orders, ratios and spread."
  )
  if untuned:
    text += f" With the config's own learning rate, not searched: {', '.join(untuned)}."
  return "\n\n".join([*parts, text]) + "\n"


def join_curves(parts: Sequence[np.ndarray]) -> np.ndarray:
  """Joins curves of populations to (K, R); after early stopping a curve keeps its last value."""
  epochs = max(map(len, parts))
  longer = [np.pad(p, ((0, epochs - len(p)), (0, 0)), mode="edge") for p in parts]
  return np.concatenate(longer, 1)
