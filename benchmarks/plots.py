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
