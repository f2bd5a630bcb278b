"""Mean scores of several models, against float64."""

import jax.numpy as jnp
import numpy as np
from scipy.special import expit, log_softmax, logsumexp

from mmoe_jax.data import Task
from mmoe_jax.models import mean_scores
from tests import reference

TASKS = (
  Task("a", "a"),
  Task("b", "b", kind="multiclass", classes=("x", "y", "z")),
  Task("c", "c", kind="regression"),
)


def test_the_mean_is_that_of_probabilities_and_finite_for_any_logits():
  rng = reference.fresh_rng()
  logits = rng.normal(0, 3, (4, 50, 5)).astype(np.float32)
  logits[:, 0] = [40, 300, -300, 0, 7]  # Probabilities that float32 rounds to 0 and 1.
  logits[:, 1, 0] = [-90, -95, -100, -80]
  sums = ()
  for each in logits:
    sums = mean_scores.add_scores(TASKS, sums, jnp.asarray(each))
  got = np.asarray(mean_scores.to_logits(TASKS, sums, len(logits)), np.float64)
  assert np.isfinite(got).all()
  exact = logits.astype(np.float64)
  z = exact[:, :, 0]
  # log p is -log(1 + exp(-z)).
  mean = logsumexp(-np.logaddexp(0, -z), 0) - logsumexp(-np.logaddexp(0, z), 0)
  np.testing.assert_allclose(got[:, 0], mean, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(expit(got[2:, 0]), expit(z[:, 2:]).mean(0), rtol=1e-5)
  classes = logsumexp(log_softmax(exact[:, :, 1:4], axis=2), 0) - np.log(4)
  np.testing.assert_allclose(log_softmax(got[:, 1:4], axis=1), classes, rtol=1e-5, atol=1e-4)
  np.testing.assert_allclose(got[:, 4], exact[:, :, 4].mean(0), rtol=1e-5, atol=1e-5)
