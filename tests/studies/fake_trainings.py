"""Fake trainings with scores of known quality, and checks of files."""

import json
import os

import numpy as np
import sklearn.metrics
from matplotlib import image

from mmoe_jax import data
from studies import paper_census, paper_synthetic

TASKS = paper_census.GROUPS["group1"]
STRENGTH = {"shared_bottom": 0.6, "mmoe": 3.0}


def strict_json(path):
  """Reads JSON and refuses NaN."""

  def refuse(constant):
    raise AssertionError(constant)

  with open(path, encoding="utf-8") as file:
    return json.load(file, parse_constant=refuse)


def assert_png(path):
  pixels = image.imread(path)
  assert min(pixels.shape[:2]) > 200
  assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20


class FakeTraining:
  """Replaces train_population: scores of known quality, and a count of trainings."""

  def __init__(self, diverged=()):
    self.calls, self.diverged = [], diverged

  def __call__(
    self,
    config,
    members,
    workdir,
    splits=None,
    schema=None,
    save_logits=(),
    report_on=(),
    verbose=True,
  ):
    del report_on, verbose  # Reports on validation and on splits whose logits are saved.
    self.calls.append((config.model.name, [dict(m) for m in members]))
    os.makedirs(workdir, exist_ok=True)
    if splits is not None:
      return self._regression(config, members, workdir)
    schema, shared = data.load(config.data_dir, **config.data)
    results, logits = [], []
    for m, member in enumerate(members):
      result = {"member": dict(member), "parameters": 1234, "best_epoch": 1, "epochs": 2}
      rng = np.random.default_rng([member.get("seed", 0), len(config.model.name)])
      # No test rows for the search, which must not use them.
      for name in ("validation", *save_logits):
        labels_NxT = np.asarray(shared[name].labels, float)
        scores_NxT = STRENGTH[config.model.name] * labels_NxT + rng.normal(size=labels_NxT.shape)
        if "model.embedding_dropout" in member:
          scores_NxT = scores_NxT - 0.5 * labels_NxT * member["model.embedding_dropout"]
        aucs = {
          f"{task.name}/auc": sklearn.metrics.roc_auc_score(labels_NxT[:, t], scores_NxT[:, t])
          for t, task in enumerate(schema.tasks)
        }
        if m not in self.diverged:
          result[name] = aucs
        if name == "test":
          logits.append(scores_NxT)
      results.append(result | ({"error": "not finite"} if m in self.diverged else {}))
    for name in save_logits:
      np.save(os.path.join(workdir, f"logits_{name}.npy"), np.float32(logits))
    return results

  def _regression(self, config, members, workdir):
    width = {"shared_bottom": 0.2, "omoe": 0.05, "mmoe": 0.01}[config.model.name]
    results, curves = [], []
    for m, member in enumerate(members):
      rng = np.random.default_rng([member["seed"], len(config.model.name)])
      rate = member.get(paper_synthetic.RATE, config.optimizer.dense.learning_rate)
      loss = 0.05 + 4 * width + width * rng.random() + abs(np.log10(rate) + 3)
      curves.append(loss * np.array([3.0, 2.0, 1.0]))
      metrics = {"task_1/mse": loss - 0.01, "task_2/mse": loss + 0.01, "task_1/r2": 0.9}
      if m in self.diverged:
        results.append({"member": dict(member), "parameters": 7, "error": "not finite"})
      else:
        each = {s: dict(metrics) for s in data.SPLITS}
        results.append({"member": dict(member), "parameters": 7, **each})
    with open(os.path.join(workdir, "metrics.jsonl"), "w", encoding="utf-8") as file:
      for epoch, losses_M in enumerate(np.transpose(curves), 1):
        names = ("validation/task_1/mse", "validation/task_2/mse")
        record = {name: losses_M.tolist() for name in names}
        file.write(json.dumps({"epoch": epoch, **record}) + "\n")
    return results
