"""Plots of the benchmarks, as PNG files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from studies.plots import OURS, PAPER, remove_frame, save


def scaling(path: str, points: Sequence[Mapping[str, Any]]) -> None:
  """Plots rows/s and memory against sizes, one column per axis.

  Args:
    path: path of the PNG.
    points: `axis`, `size`, `rows_per_second` of each round, their `median`, `peak_bytes`.
  """
  names = list(dict.fromkeys(p["axis"] for p in points))
  figure, axes = plt.subplots(
    2, len(names), figsize=(2.6 * len(names) + 0.6, 5), squeeze=False, sharex="col", sharey="row"
  )
  for (upper, lower), name in zip(axes.T, names, strict=True):
    of_axis = [p for p in points if p["axis"] == name]
    sizes = [p["size"] for p in of_axis]
    median = np.array([p["median"] for p in of_axis])
    least = np.array([min(p["rows_per_second"]) for p in of_axis])
    most = np.array([max(p["rows_per_second"]) for p in of_axis])
    upper.errorbar(sizes, median, (median - least, most - median), color=OURS, marker="o", ms=4)
    lower.plot(sizes, [p["peak_bytes"] / 2**30 for p in of_axis], "o-", color=PAPER, markersize=4)
    upper.set_title(name, fontsize=11)
    for axis in (upper, lower):
      axis.set_xscale("log", base=2)
      axis.set_yscale("log")
      axis.grid(color="#eeeeee")
      remove_frame(axis)
    lower.set_xlabel(name)
  axes[0, 0].set_ylabel("rows/s")
  axes[1, 0].set_ylabel("peak memory, GiB")
  figure.tight_layout()
  save(figure, path)


def vocabularies(path: str, points: Sequence[Mapping[str, Any]]) -> None:
  """Plots rows/s against table rows, a panel per batch size.

  Args:
    path: path of the PNG.
    points: `contender`, `table_rows`, `batch_size`, `median`.
  """
  batches = list(dict.fromkeys(p["batch_size"] for p in points))
  figure, axes = plt.subplots(
    1, len(batches), figsize=(4.2 * len(batches) + 1.6, 3.6), squeeze=False, sharey=True
  )
  for axis, batch_size in zip(axes[0], batches, strict=True):
    chosen = [p for p in points if p["batch_size"] == batch_size]
    for name in dict.fromkeys(p["contender"] for p in chosen):
      of_name = [p for p in chosen if p["contender"] == name]
      color, style = (OURS, "-") if name.startswith("ours") else (PAPER, "--")
      marker = {"dense_adam": "s", "adam": "^", "rowwise_adagrad": "o"}.get(
        name.partition("_")[2].replace("lazy_", "").replace("sparse_", ""), "v"
      )
      sizes, medians = [p["table_rows"] for p in of_name], [p["median"] for p in of_name]
      axis.plot(sizes, medians, style, color=color, marker=marker, markersize=4, label=name)
    axis.set_title(f"batches of {batch_size:,}", fontsize=11)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("table rows")
    axis.grid(color="#eeeeee")
    remove_frame(axis)
  axes[0, 0].set_ylabel("rows/s")
  axes[0, -1].legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
  save(figure, path)
