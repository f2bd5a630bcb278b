"""Plots of the studies, as PNG files, from numbers and names.

Shape letters: R runs, K epochs.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's colours, which are distinguishable with colour blindness.
OURS, PAPER, THIRD, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
COLORS = {"shared_bottom": PAPER, "omoe": THIRD, "mmoe": OURS}


class Row(NamedTuple):
  """Line of a dot plot.

  Attributes:
    label: label of the line.
    value: position of the dot.
    half: half width of the wide interval, or None.
    half_inner: half width of the narrow interval, or None.
    seeds: single values, or none.
    paper: the paper's value, or None.
  """

  label: str
  value: float
  half: float | None = None
  half_inner: float | None = None
  seeds: Sequence[float] = ()
  paper: float | None = None


def dots(
  path: str,
  panels: Mapping[str, Sequence[Row]],
  title: str,
  xlabel: str,
  notes: Mapping[str, str],
  zero: bool = False,
) -> None:
  """Writes a dot plot with a panel per key and a line per row.

  A distant value of the paper becomes an arrow at the edge, so that the scale fits the others.

  Args:
    path: path of the PNG.
    panels: title of a panel -> its rows, from top to bottom.
    title: title of the figure.
    xlabel: label of each panel.
    notes: names of `half`, `half_inner`, `seeds` and `paper` in the legend.
    zero: whether to draw a line at zero.
  """
  most = max(map(len, panels.values()))
  figure, axes = plt.subplots(
    1, len(panels), figsize=(5.2 * len(panels) + 1, 0.42 * most + 1.9), squeeze=False, sharey=True
  )
  for axis, (name, rows) in zip(axes[0], panels.items(), strict=True):
    low, high = _limits(rows, zero)
    for y, row in enumerate(rows):
      _row(axis, y, row, low, high)
    if zero:
      axis.axvline(0, color=GREY, linewidth=1, zorder=0)
    axis.set_xlim(low, high)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_yticks(range(len(rows)), [row.label for row in rows])
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", color="#eeeeee")
    axis.set_axisbelow(True)
    axis.set_title(name, fontsize=11)
    axis.set_xlabel(xlabel)
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
    axis.ticklabel_format(axis="x", useOffset=False, style="plain")
    remove_frame(axis)
  shapes = {
    "half": {"color": OURS, "linewidth": 1.2, "marker": "o", "markersize": 5},
    "half_inner": {"color": OURS, "linewidth": 3.5},
    "seeds": {"color": GREY, "linestyle": "", "marker": "o", "markersize": 3},
    "paper": {
      **{"color": PAPER, "linestyle": "", "marker": "D", "markersize": 5},
      **{"markerfacecolor": "none"},
    },
  }
  handles = [matplotlib.lines.Line2D([], [], **shapes[k], label=v) for k, v in notes.items()]
  figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9)
  figure.suptitle(title, fontsize=12)
  figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
  save(figure, path)


def _row(axis: Any, y: int, row: Row, low: float, high: float) -> None:
  if len(row.seeds):
    # Next to the interval, at reproducible positions.
    spread = 0.18 + 0.18 * ((np.arange(len(row.seeds)) * 0.618) % 1)
    axis.plot(row.seeds, y + spread, "o", color=GREY, markersize=2.5, alpha=0.7, markeredgewidth=0)
  for half, width in ((row.half, 1.2), (row.half_inner, 3.5)):
    if half is not None:
      axis.plot([row.value - half, row.value + half], [y, y], color=OURS, linewidth=width)
  axis.plot(row.value, y, "o", color=OURS, markersize=5, zorder=3)
  if row.paper is None:
    return
  if low <= row.paper <= high:
    axis.plot(row.paper, y, "D", color=PAPER, markersize=5, markerfacecolor="none", zorder=3)
    return
  left = row.paper < low
  edge, inward = (low, 1) if left else (high, -1)
  axis.annotate(
    f"{row.paper:.4f}",
    (edge, y),
    (edge + inward * 0.06 * (high - low), y),
    color=PAPER,
    fontsize=8,
    va="center",
    ha="left" if left else "right",
    arrowprops={"arrowstyle": "->", "color": PAPER},
  )


def _limits(rows: Sequence[Row], zero: bool) -> tuple[float, float]:
  inside = [0.0] if zero else []
  for row in rows:
    inside += [row.value - (row.half or 0), row.value + (row.half or 0), *row.seeds]
    inside += [row.value - (row.half_inner or 0), row.value + (row.half_inner or 0)]
  papers = np.array([row.paper for row in rows if row.paper is not None])
  if len(papers):
    middle = np.median(papers)
    typical = max(np.median(np.abs(papers - middle)), 1e-4)
    inside += papers[np.abs(papers - middle) < 10 * typical].tolist()
  low, high = min(inside), max(inside)
  margin = 0.05 * (high - low) or 1e-4
  return low - margin, high + margin


def curves(
  path: str,
  panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]],
  title: str,
  ylabel: str,
) -> None:
  """Writes mean curves with intervals, one panel per key.

  Args:
    path: path of the PNG.
    panels: title of a panel -> model -> (mean_K, low_K, high_K) over epochs.
    title: title of the figure.
    ylabel: label of the curves.
  """
  figure, axes = plt.subplots(
    1, len(panels), figsize=(4 * len(panels) + 0.6, 3.6), squeeze=False, sharey=True
  )
  for axis, (name, models) in zip(axes[0], panels.items(), strict=True):
    for model, (mean_K, low_K, high_K) in models.items():
      epochs = np.arange(1, len(mean_K) + 1)
      color = COLORS.get(model, GREY)
      axis.plot(epochs, mean_K, color=color, label=model)
      axis.fill_between(epochs, low_K, high_K, color=color, alpha=0.25, linewidth=0)
    axis.set_title(name, fontsize=11)
    axis.set_xlabel("epoch")
    axis.set_yscale("log")
    remove_frame(axis)
  axes[0, 0].set_ylabel(ylabel)
  axes[0, -1].legend(frameon=False)
  figure.suptitle(title, fontsize=12)
  figure.tight_layout()
  save(figure, path)


def histograms(
  path: str, panels: Mapping[str, Mapping[str, np.ndarray]], title: str, xlabel: str
) -> None:
  """Writes histograms of values_R with equal bins: one row per model, one column per panel.

  The last bin includes all larger values, so that the scale fits the others.

  Args:
    path: path of the PNG.
    panels: title of a column -> model -> values_R.
    title: title of the figure.
    xlabel: label of the values.
  """
  models = list(dict.fromkeys(model for column in panels.values() for model in column))
  every = np.concatenate([v for column in panels.values() for v in column.values()])
  top = max(np.quantile(every, 0.995), every.min() + 1e-6)
  bins = np.linspace(every.min(), top, 41)
  figure, axes = plt.subplots(
    len(models),
    len(panels),
    figsize=(3.6 * len(panels) + 0.6, 1.6 * len(models) + 1),
    squeeze=False,
    sharex=True,
    sharey=True,
  )
  for column, (name, values) in enumerate(panels.items()):
    axes[0, column].set_title(name, fontsize=11)
    axes[-1, column].set_xlabel(xlabel)
    for axis, model in zip(axes[:, column], models, strict=True):
      remove_frame(axis)
      if model in values:
        axis.hist(np.minimum(values[model], top), bins, color=COLORS.get(model, GREY))
        axis.axvline(min(np.mean(values[model]), top), color="black", linewidth=1, linestyle=":")
  for axis, model in zip(axes[:, 0], models, strict=True):
    axis.set_ylabel(f"{model}\nruns")
  figure.suptitle(title, fontsize=12)
  figure.tight_layout()
  save(figure, path)


def correlations(
  path: str,
  measured: Sequence[tuple[float, float, float, float]],
  paper: Mapping[float, float],
  title: str,
) -> None:
  """Writes label correlation against weight cosine.

  Args:
    path: path of the PNG.
    measured: (cosine, mean, low, high) of each cosine, in order; low and high enclose the middle
      of the draws.
    paper: cosine -> correlation as published.
    title: title of the plot.
  """
  cosine, mean, low, high = map(np.array, zip(*measured, strict=True))
  figure, axis = plt.subplots(figsize=(5.2, 4))
  axis.fill_between(cosine, low, high, color=OURS, alpha=0.2, linewidth=0, label="95 % of draws")
  axis.plot(cosine, mean, "o-", color=OURS, markersize=4, label="measured, mean")
  axis.plot(
    *zip(*paper.items(), strict=True),
    **{"color": PAPER, "marker": "D", "linestyle": "", "markerfacecolor": "none"},
    label="paper, figure 2, read by eye",
  )
  axis.set_xlabel("cosine of the tasks' weights, p")
  axis.set_ylabel("Pearson correlation of the labels")
  axis.legend(frameon=False)
  remove_frame(axis)
  axis.set_title(title, fontsize=12)
  figure.tight_layout()
  save(figure, path)


def remove_frame(axis: Any) -> None:
  """Removes the upper and right lines of an axis."""
  axis.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: str) -> None:
  """Writes a figure as PNG and closes it; the folder is created if absent."""
  os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
  figure.savefig(path, dpi=130)
  plt.close(figure)
