"""Plots of the gates of a run, from its measurements (prediction/gate_measurements.py)."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mmoe_jax.evaluation.gate_statistics import PREFIX
from mmoe_jax.evaluation.gate_tables import mean_gate, mean_similarity, similarity

_MAX_GROUPS = 25  # Rows of a plot.


def plot_gates(report: Mapping[str, Any]) -> dict[str, Figure]:
  """Plots the measurements of a run's gates.

  Args:
    report: result of gate_measurements.measure_gates.

  Returns:
    Figures by name: `experts`, `similarity`, `by_epoch`, `by_COLUMN`.
  """
  figures = {"experts": _experts_figure(report)}
  if len(report["tasks"]) > 1:
    figures["similarity"] = _similarity_figure(report)
  if report["by_epoch"]:
    step = math.ceil(len(report["by_epoch"]) / _MAX_GROUPS)
    records = report["by_epoch"][::-1][::step][::-1]  # Includes the last epoch.
    labels = [str(record["epoch"]) for record in records]
    figures["by_epoch"] = _groups_figure(report, "epoch (validation rows)", records, labels)
  for column, groups in report["by"].items():
    plotted = groups[:_MAX_GROUPS]
    labels = [f"{_shorten(g['value'])}  ({g['rows']:,})" for g in plotted]
    more = f", {len(plotted)} of {len(groups)} values" if len(plotted) < len(groups) else ""
    figures[f"by_{column}"] = _groups_figure(report, f"{column} (rows{more})", plotted, labels)
  return figures


def _experts_figure(report: Mapping[str, Any]) -> Figure:
  tasks, experts = report["tasks"], range(report["experts"])
  values = np.stack([mean_gate(report["all"], task, experts) for task in tasks])
  width = 3.2 + min(max(0.5 * len(experts), 2.0), 12.0)
  figure = Figure(figsize=(width, 1.4 + 0.5 * len(tasks)), layout="constrained")
  axis = figure.subplots()
  image = _heat_map(axis, values, tasks, list(map(str, experts)), values.max(), len(experts) <= 16)
  axis.set(xlabel="expert", title=f"mean gate weight, {report['rows']:,} {report['split']} rows")
  figure.colorbar(image, ax=axis)
  return figure


def _similarity_figure(report: Mapping[str, Any]) -> Figure:
  tasks = report["tasks"]
  values = np.array([[similarity(report["all"], a, b) for b in tasks] for a in tasks])
  size = 2.4 + 0.7 * len(tasks)
  figure = Figure(figsize=(size + 0.6, size), layout="constrained")
  axis = figure.subplots()
  image = _heat_map(axis, values, tasks, tasks, 1.0, annotate=len(tasks) <= 8)
  axis.tick_params(axis="x", rotation=30)
  axis.set_title("similarity of gates")
  figure.colorbar(image, ax=axis, label="1 - total variation distance")
  return figure


def _groups_figure(
  report: Mapping[str, Any], ylabel: str, groups: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> Figure:
  """Plots a heat map per task, groups by experts, next to effective experts and similarity."""
  tasks, experts = report["tasks"], range(report["experts"])
  values_TxGxE = np.array([[mean_gate(g, t, experts) for g in groups] for t in tasks])
  map_width = min(max(0.4 * len(experts), 2.0), 8.0)
  widths = [*[map_width] * len(tasks), 2.2, *[2.0] * (len(tasks) > 1)]
  size = (sum(widths) + 1.2 + 0.075 * max(map(len, labels)), 1.5 + 0.27 * max(len(groups), 3))
  figure = Figure(figsize=size, layout="constrained")
  axes = figure.subplots(1, len(widths), sharey=True, width_ratios=widths, squeeze=False)[0]
  top, annotate = values_TxGxE.max(), len(experts) <= 8
  for axis, task, values_GxE in zip(axes, tasks, values_TxGxE, strict=False):
    image = _heat_map(axis, values_GxE, labels, list(map(str, experts)), top, annotate)
    axis.set(title=f"{task}\nmean gate weight", xlabel="expert")
  axes[0].set_ylabel(ylabel)
  figure.colorbar(image, ax=axes[len(tasks) - 1])
  positions = range(len(groups))
  effective = axes[len(tasks)]
  for task, marker in zip(tasks, itertools.cycle("osD^v"), strict=False):
    counts = [g[f"{PREFIX}{task}/effective_experts"] for g in groups]
    effective.plot(counts, positions, marker=marker, linestyle="", label=task)
  effective.set(title="effective experts", xlim=(0.5, len(experts) + 0.5))
  effective.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.4 / size[1]))
  if len(tasks) > 1:
    values = [mean_similarity(g, tasks) for g in groups]
    axes[-1].plot(values, positions, "o", color="black")
    axes[-1].set(title="similarity\nof gates", xlim=(-0.03, 1.03))
  for axis in axes[len(tasks) :]:
    axis.grid(alpha=0.3)
    axis.tick_params(axis="y", left=False)
  return figure


def _heat_map(
  axis: Any,
  values: np.ndarray,
  rows: Sequence[str],
  columns: Sequence[str],
  top: float,
  annotate: bool,
) -> Any:
  """Draws values from 0 to `top` as a heat map, with numbers if `annotate`."""
  image = axis.imshow(values, vmin=0.0, vmax=top, cmap="Blues", aspect="auto")
  step = math.ceil(len(columns) / 16)  # With many columns, only some are labelled.
  axis.set_xticks(range(0, len(columns), step), columns[::step])
  axis.set_yticks(range(len(rows)), rows)
  axis.tick_params(length=0)
  if annotate:
    for r, c in np.ndindex(*values.shape):
      colour = "white" if values[r, c] > 0.6 * top else "black"
      text = f"{values[r, c]:.2f}"
      axis.text(c, r, text, ha="center", va="center", fontsize=8, color=colour)
  return image


def _shorten(text: str, length: int = 34) -> str:
  return text if len(text) <= length else text[: length - 1] + "…"
