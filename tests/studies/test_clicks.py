"""Study of clicks: distances to the best possible AUC, and differences between models."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from studies import clicks


def test_auc_and_distances_are_those_of_scikit_learn():
  rng = np.random.default_rng(0)
  truth = {task: rng.random(4000) for task in clicks.TRUTH}
  labels = np.stack([rng.random(4000) < p for p in truth.values()], axis=1).astype(np.float32)
  scores = {
    model: np.stack(
      [np.stack(list(truth.values()), 1) + noise * rng.normal(size=(4000, 2)) for _ in range(3)]
    )
    for model, noise in (("mmoe", 0.5), ("esmm", 0.1))
  }
  rows = clicks.summarise(scores, truth, labels)
  assert [(r["task"], r["model"]) for r in rows[:3]] == [
    ("click", "true probabilities"),
    ("click", "mmoe"),
    ("click", "esmm"),
  ]
  best = roc_auc_score(labels[:, 0], truth["click"])
  aucs = {m: [roc_auc_score(labels[:, 0], s[:, 0]) for s in each] for m, each in scores.items()}
  assert rows[0]["auc"] == pytest.approx(best)
  for row in rows[1:3]:
    mean = np.mean(aucs[row["model"]])
    assert row["auc"] == pytest.approx(mean)
    assert row["short"] == pytest.approx(best - mean)
    assert 0 < row["half_short"] <= row["half"]
  difference = np.mean(aucs["esmm"]) - np.mean(aucs["mmoe"])
  assert rows[2]["difference"] == pytest.approx(difference)
  assert difference > rows[2]["half_difference"] > 0
  text = clicks.table(rows)
  assert text.count("\n") == 7
  assert f"| click | esmm | {np.mean(aucs['esmm']):.4f} ± " in text
