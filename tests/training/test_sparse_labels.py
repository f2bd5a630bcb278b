"""Task weighting where a task has labels in few batches, against its fully labelled twin."""

import jax
import numpy as np
import optax

from mmoe_jax.training import task_weighting
from mmoe_jax.training.step import Batch, make_train_step
from tests import reference
from tests.training.test_task_weighting import (
  KEY,
  RATE,
  SETTINGS,
  ToyModel,
  create,
  every_method,
  problem,
  squared_error,
  start,
  train,
)


@every_method
def test_batches_without_a_label_leave_the_state_of_that_task_alone(name):
  batches, params, scales = problem(reference.fresh_rng())
  weighting, tx = create(name), optax.sgd(RATE)
  step = jax.jit(make_train_step(ToyModel(scales), tx, weighting, squared_error))
  state = start(params, tx, weighting)
  # Three labelled steps, so that all states have moved.
  for i in range(3):
    state, _ = step(state, jax.tree.map(lambda a, i=i: a[i], batches), KEY)
  batch = jax.tree.map(lambda a: a[3], batches)
  batch.labels[:, 1] = np.nan
  after, task_losses = step(state, batch, KEY)
  assert task_losses.weights[1] == 0

  def of_task(tree, k):
    return [leaf[k] for leaf in jax.tree.leaves(tree) if np.ndim(leaf) and len(leaf) == 3]

  before_1, after_1 = of_task(state.weighting, 1), of_task(after.weighting, 1)
  if name != "dwa":  # Whose epoch ends here, for all tasks.
    np.testing.assert_array_equal(before_1, after_1)
  if name in ("uncertainty", "gradnorm"):
    assert not np.array_equal(of_task(state.weighting, 0), of_task(after.weighting, 0))
  batch.labels[:] = np.nan
  after, _ = step(after, batch, KEY)
  for leaf in jax.tree.leaves((after.params, after.weighting)):
    assert np.isfinite(leaf).all()


def scarce(labels, rng, share=0.22):
  """Removes the second task's labels from all but a share of the steps."""
  labels = labels.copy()
  labels[rng.random(len(labels)) > share, :, 1] = np.nan
  return labels


@every_method
def test_weights_of_a_sparsely_labelled_task_are_those_of_its_twin(name):
  # Two tasks with the same labels; the second has them in 22 % of the batches of 64.
  rng, steps = reference.fresh_rng(), 3000
  x = rng.normal(size=(steps, 64, 4)).astype(np.float32)
  y = (x @ [1.0, -2.0, 0.5, 0.0] + rng.normal(size=(steps, 64))).astype(np.float32)
  features = {"x": x, "z": rng.normal(size=(steps, 64, 2)).astype(np.float32)}
  full = Batch(features, np.stack([y, y], -1), np.ones((steps, 64), np.float32))
  sparse = full._replace(labels=scarce(full.labels, rng))
  params = {
    "experts": {"u": np.zeros(4, np.float32)},
    "towers": {"v": np.zeros((2, 2), np.float32)},
  }
  slower = {"learning_rate": 1e-2, "alpha": 0.12}
  settings = {key: slower.get(key, value) for key, value in SETTINGS[name].items()}
  kinds, scales = ("regression", "regression"), np.ones(2, np.float32)
  weighting = task_weighting.create_task_weighting(settings, (1.0, 1.0), kinds, 300)
  # Weights follow the noise of single batches, so they are averaged over the last half.
  run = jax.jit(lambda batches: train(weighting, batches, params, scales)[2][steps // 2 :].mean(0))
  of_full, of_sparse = np.asarray(run(full)), np.asarray(run(sparse))
  np.testing.assert_allclose(of_sparse, of_full, rtol=0.1)
