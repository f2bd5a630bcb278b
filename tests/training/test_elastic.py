"""Devices: a run resumes on any number of them, with the same batches and the same dropout."""

import contextlib

import jax
import numpy as np
import pytest

from mmoe_jax import parallel
from mmoe_jax.models import kernels
from mmoe_jax.training import loop
from mmoe_jax.workdir import checkpoint, preemption
from tests.training.test_preemption import records, short_segments, stop_at

__all__ = ["short_segments", "stop_at"]  # Fixtures.

pytestmark = pytest.mark.usefixtures("_shared_programs")
KEY = jax.random.key(3)


@pytest.mark.parametrize("shape", [(16, 8), (8, 5), (3, 7), (4,)])
@pytest.mark.parametrize("count", [2, 8])
def test_masks_of_a_row_do_not_depend_on_the_devices(shape, count):
  share = lambda _: kernels.keep_mask(KEY, 100, shape, parallel.devices.AXIS)
  parts = jax.pmap(share, axis_name=parallel.devices.AXIS)(np.arange(count))
  whole = kernels.keep_mask(KEY, 100, (count * shape[0], *shape[1:]))
  np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.fixture
def drawing(config):
  """A config with everything that is drawn for rows, and batches that 8 devices can share."""
  config.train.batch_size = 64
  config.train.epochs = 2
  config.train.average_decay = 0.99
  for part in ("embedding", "expert", "tower", "gate"):
    config.model[f"{part}_dropout"] = 0.2
  config.model.expert_norm = "layer"
  for group in ("dense", "embedding"):  # Adam would amplify rounding errors of small gradients.
    config.optimizer[group].name, config.optimizer[group].learning_rate = "sgd", 0.1
  return config


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(8, 2, 1), (1, 4, 8)])
@pytest.mark.usefixtures("short_segments")
def test_a_run_that_changes_devices_is_that_of_one(drawing, tmp_path, counts, stop_at):
  """Stopped within epochs 1 and 2, and each time resumed on other devices."""
  stop_at(1000)
  one = loop.train_and_evaluate(drawing, str(tmp_path / "one"))
  for count, question in zip(counts, (5, 8, 1000), strict=True):
    drawing.train.devices = count
    stop_at(question)
    with pytest.raises(preemption.Preempted) if question < 1000 else contextlib.nullcontext():
      several = loop.train_and_evaluate(drawing, str(tmp_path / "several"))
  for name, value in one["test"].items():
    assert several["test"][name] == pytest.approx(value, abs=1e-4), name
  a, b = (checkpoint.read_arrays(str(tmp_path / name)) for name in ("one", "several"))
  for name in a:
    np.testing.assert_allclose(b[name], a[name], rtol=1e-3, atol=1e-5, err_msg=name)
  # Losses of the same batches, and every row once.
  for x, y in zip(*(records(tmp_path / name) for name in ("one", "several")), strict=True):
    assert x["loss"] == pytest.approx(y["loss"], rel=1e-5)
