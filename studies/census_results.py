"""Result file of the Census study: metrics of each seed, covariances over rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmoe_jax.evaluation import statistics
from studies import paired


def aucs_of(results: Sequence[Mapping[str, Any]], task: str) -> np.ndarray:
  """Returns the test AUC of each member (M,), NaN for one that diverged."""
  name = f"{task}/auc"
  return np.array([np.nan if "error" in r else r["test"][name] for r in results], np.float64)


def runs_of(populations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns a run per group, method and seed: its AUCs and log losses; null if it diverged.

  Args:
    populations: results of resumable.train, with their `group` and `method`.
  """
  runs = []
  for p in populations:
    names = next(r for r in p["results"] if "error" not in r)["test"]
    kept = [name for name in names if name.split("/")[1] in ("auc", "log_loss")]
    for member, result in zip(p["members"], p["results"], strict=True):
      run = {"group": p["group"], "method": p["method"], "seed": member["seed"]}
      run |= {"parameters": p["results"][0].get("parameters")}
      for split in ("validation", "test"):
        run |= {f"{split}/{name}": result.get(split, {}).get(name) for name in kept}
      runs.append(run)
  return runs


def covariances_of(
  group: str,
  tasks: Sequence[str],
  populations: Mapping[str, Mapping[str, Any]],
  scores: Mapping[str, np.ndarray],
  labels_NxT: np.ndarray,
) -> dict[str, Any]:
  """Returns covariances over test rows, `GROUP/TASK` -> result of paired.covariances.

  Args:
    group: name of the group.
    tasks: its tasks, in the order of the logits.
    populations: method -> result of resumable.train.
    scores: method -> logits of the test rows, (M, N, T).
    labels_NxT: the test rows' labels.
  """
  found = {}
  for t, task in enumerate(tasks):
    placed = {}
    for method, p in populations.items():
      seeds = np.flatnonzero(np.isfinite(aucs_of(p["results"], task)))
      placed[method] = statistics.mean_placements(scores[method][seeds, :, t], labels_NxT[:, t])
    found[f"{group}/{task}"] = paired.covariances(placed)
  return found
