"""Runs that diverge name task, step and layer, and keep the last checkpoint that is finite."""

import re

import pytest

from mmoe_jax.errors import UserError
from mmoe_jax.training import loop


@pytest.mark.parametrize("devices", [1, 2])
def test_a_diverging_run_names_task_step_and_layer(config, tmp_path, devices):
  config.train.devices = devices
  config.optimizer.dense.learning_rate = 1e30
  with pytest.raises(UserError) as raised:
    loop.train_and_evaluate(config, str(tmp_path / "run"))
  assert re.search(
    r"task '\w+' is not finite in epoch 1, step 2 of 16; .*; first was the (gradient|output) of "
    r"layer '\w+[^']*' \(\w+\) in epoch 1, step 2\. No checkpoint",
    str(raised.value),
  ), raised.value
