"""Runs of the study of fresh rows as flat objects: losses, gates and units of their networks.

Shape letters: N rows, D numbers of a row, U hidden units, T tasks, K epochs, M members.
"""

import glob
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmoe_jax.files import read_json_object
from mmoe_jax.workdir import checkpoint
from studies import fresh_rows, resumable
from studies import synthetic_figures as figures
from studies.paper_synthetic import mean_curves

ALIGNED = (
  0.95  # Cosine between a unit's weights and the plane of w_1 and w_2, from which it is in it.
)
HALF, MOST = 0.5, 0.75  # Parts of the training at which the validation loss is kept.
_HIDDEN = ("['params']['experts']['Dense_0']", "['params']['bottom']['Dense_0']")


def units(
  kernel_DxU: np.ndarray, bias_U: np.ndarray, x_NxD: np.ndarray, weights_2xD: np.ndarray
) -> dict[str, int]:
  """Counts the hidden units of the first layer.

  Args:
    kernel_DxU: weights of the units.
    bias_U: their biases.
    x_NxD: rows.
    weights_2xD: w_1 and w_2, on which alone the labels depend.

  Returns:
    `units`; `dead_units`: those that are 0 for every row; `aligned_units`: those that are not dead
    and whose weights have a cosine of at least ALIGNED with the plane of w_1 and w_2.
  """
  is_dead_U = ~((x_NxD @ kernel_DxU + bias_U) > 0).any(0)
  # With a correlation of 1 the plane is a line, and the second singular value 0.
  _, singular_2, axes_2xD = np.linalg.svd(weights_2xD, full_matrices=False)
  axes_KxD = axes_2xD[singular_2 > 1e-5 * singular_2[0]]
  length_U = np.maximum(np.linalg.norm(kernel_DxU, axis=0), 1e-30)
  cosine_U = np.linalg.norm(axes_KxD @ kernel_DxU, axis=0) / length_U
  is_aligned_U = (cosine_U >= ALIGNED) & ~is_dead_U
  counts = {"units": is_dead_U.size, "dead_units": is_dead_U.sum()}
  counts["aligned_units"] = is_aligned_U.sum()
  return {name: int(count) for name, count in counts.items()}


def of_population(folder: str) -> list[dict[str, Any]]:
  """Returns the runs of a trained population, with its settings, losses, gates and units."""
  done = read_json_object(os.path.join(folder, resumable.DONE))
  made, curves_KxM = done["made_of"], mean_curves(folder)
  arrays = checkpoint.read_arrays(folder, "best")
  losses = {name: figures.final_losses(done["results"], name) for name in ("validation", "test")}
  runs = []
  for m, result in enumerate(done["results"]):
    settings = done["config"]["optimizer"]["dense"]
    run: dict[str, Any] = {
      "model": done["config"]["model"]["name"],
      "correlation": made["correlation"],
      "seed": result["member"]["seed"],
      "task": made["tasks"][m],
      "stream": made["streams"][m],
      "rows": made["rows"] * done["config"]["train"]["epochs"],
      "learning_rate": result["member"].get(
        "optimizer.dense.learning_rate", settings["learning_rate"]
      ),
      "batch_size": done["config"]["train"]["batch_size"],
      "schedule": settings["schedule"],
    }
    run |= {f"{name}/mse": float(loss_M[m]) for name, loss_M in losses.items()}
    for name, part in (("half", HALF), ("three_quarters", MOST), ("end", 1)):
      run[f"validation/mse_at_{name}"] = float(curves_KxM[round(part * len(curves_KxM)) - 1, m])
    run |= {"best_epoch": result.get("best_epoch"), "parameters": result["parameters"]}
    run |= _gates(result.get("gates", {})) | _units(arrays, m, made)
    runs.append(run)
  return runs


def read(out: str, part: str) -> list[dict[str, Any]]:
  """Returns the runs of all trained populations of a part, with `group`, the folder within it."""
  root, runs = os.path.join(out, part), []
  for path in sorted(glob.glob(os.path.join(root, "**", resumable.DONE), recursive=True)):
    folder = os.path.dirname(path)
    runs += [{"group": os.path.relpath(folder, root), **run} for run in of_population(folder)]
  return runs


def _gates(gates: Mapping[str, float]) -> dict[str, float]:
  """Returns means over tasks of a run's gates; empty for a model without."""
  found = {}
  for name in ("entropy", "effective_experts", "used_experts"):
    values = [value for key, value in gates.items() if key.endswith(f"/{name}")]
    if values:
      found[name] = float(np.mean(values))
  overlap = [value for key, value in gates.items() if "similarity" in key]
  return found | ({"gate_overlap": float(np.mean(overlap))} if overlap else {})


def _units(
  arrays: Mapping[str, np.ndarray], member: int, made: Mapping[str, Any]
) -> dict[str, int]:
  layer = next(name for name in _HIDDEN if f"{name}['kernel']" in arrays)
  kernel, bias = (arrays[f"{layer}['{part}']"][member] for part in ("kernel", "bias"))
  if kernel.ndim == 3:  # A stack of experts.
    kernel, bias = np.concatenate(kernel, axis=1), bias.reshape(-1)
  task = made["tasks"][member]
  _, splits = fresh_rows.splits(task, made["correlation"], made["rows"], made["held_out"])
  weights_2xD = splits["train"].arguments["weights"]
  return units(kernel, bias, splits["test"].features["numeric"], weights_2xD)
