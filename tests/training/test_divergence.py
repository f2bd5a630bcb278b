"""Runs that diverge name task, step and layer, and keep the last checkpoint that is finite."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmoe_jax import data
from mmoe_jax.errors import UserError
from mmoe_jax.training import divergence, loop, population
from mmoe_jax.training.not_finite import Origin, find_origin, not_finite_leaves
from mmoe_jax.training.run import compile_run
from mmoe_jax.training.step import fold_in, order_rows
from mmoe_jax.workdir import contract


def test_the_first_operation_that_matters_is_found():
  def forward(x):
    with jax.named_scope("Tower"):
      with jax.named_scope("Dense_1"):
        y = jnp.exp(x * 100)
      return jnp.log(y)

  found = find_origin(forward, jnp.ones(2))
  assert found == Origin("Tower/Dense_1", False, "exp")
  assert find_origin(forward, jnp.zeros(2)) is None

  def gradient(x):
    with jax.named_scope("Norm"):
      return (x * 1e30 * 1e30).sum()

  found = find_origin(jax.grad(gradient), jnp.zeros(2))
  assert (found.layer, found.is_gradient) == ("Norm", True)


def test_branches_that_are_not_taken_do_not_count():
  guarded = lambda x: jnp.where(x > 0, jnp.log(x), 0.0).sum() + jnp.nan_to_num(x / x).sum()
  assert find_origin(jax.jit(guarded), jnp.zeros(3)) is None
  loop_of_one = lambda x: jax.lax.scan(lambda c, r: (c / r, c / r), x, jnp.zeros(1))
  assert find_origin(loop_of_one, jnp.float32(1)).operation == "div"
  assert not_finite_leaves({"a": {"b": jnp.array([1, jnp.inf])}, "c": jnp.arange(2)}) == ["a/b"]


def with_huge_row(row: int, from_epoch: int):
  """Returns compile_run whose rows hold, from an epoch on, one that overflows in a layer."""

  def compile_broken(*arguments):
    run = compile_run(*arguments)

    def segment_calls(epoch, done=0):
      for call in run.segment_calls(epoch, done):
        numeric = call.rows.features["numeric"]
        if epoch >= from_epoch:
          numeric = numeric.at[row].set(3e38)
        features = {**call.rows.features, "numeric": numeric}
        yield call._replace(rows=call.rows._replace(features=features))

    return run._replace(segment_calls=segment_calls)

  return compile_broken


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_diverged_run_names_task_step_and_layer(config, tmp_path, devices):
  config.train.devices = devices
  config.optimizer.dense.learning_rate = 1e30
  with pytest.raises(UserError) as raised:
    loop.train_and_evaluate(config, str(tmp_path / "run"))
  assert re.search(
    r"task '\w+' is not finite in epoch 1, step 2 of 16; .*; first was the (gradient|output) of "
    r"layer '\w+[^']*' \(\w+\) in epoch 1, step 2\. No checkpoint was saved before",
    str(raised.value),
  ), raised.value


@pytest.mark.slow
def test_steps_are_repeated_from_the_last_checkpoint(config, tmp_path, monkeypatch):
  """The square of a gradient overflows, which no loss or metric shows: Adam would stand still."""
  config.checkpoint.every_epochs = 1
  monkeypatch.setattr(loop, "compile_run", with_huge_row(77, 2))
  with pytest.raises(UserError) as raised:
    loop.train_and_evaluate(config, str(tmp_path / "run"))
  key = fold_in(jax.random.key(config.seed), "epoch", 2)
  place = int(np.flatnonzero(np.asarray(order_rows(key, 2003, True)) == 77)[0])
  step = place // 128 + 1  # The batch that contains the row.
  assert re.search(
    r"optimizer's state are not finite after epoch 2; .*; first was the update of the optimizer's "
    rf"state '[^']+' in epoch 2, step {step}\. The last checkpoint, of epoch 1, is",
    str(raised.value),
  ), raised.value
  assert contract.saved_epochs(str(tmp_path / "run")) == [1]


def test_repeated_steps_are_bitwise_those_of_the_run(config):
  schema, splits = data.load(config.data_dir, **config.data)
  run = compile_run(config, schema, splits["train"])
  whole, losses = run.train_epoch(run.state, 1)
  again, found = run.start_from(None), []
  for call in run.segment_calls(1, 0):
    for i in range(call.segment.steps):
      segment = call.segment._replace(first=call.segment.first + i, steps=1)
      again, part = run.train_segment(again, call._replace(segment=segment))
      found.append(part.losses)
  np.testing.assert_array_equal(np.concatenate(found), losses.losses)
  jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)


def test_a_state_with_a_row_that_nothing_reads_is_not_sound(config, tmp_path):
  """An embedding of a rare value may be infinite and no metric shows it."""
  schema, splits = data.load(config.data_dir, **config.data)
  run = compile_run(config, schema, splits["train"])
  assert divergence._is_sound(run.state, None)
  state, _ = run.train_epoch(run.state, 1)
  leaves, tree = jax.tree.flatten(state.params)
  leaves[0] = leaves[0].at[(0,) * leaves[0].ndim].set(jnp.inf)
  state = state.replace(params=jax.tree.unflatten(tree, leaves))
  assert not divergence._is_sound(state, None)


@pytest.mark.slow
def test_a_diverged_member_of_a_population_has_its_step_and_layer(config, tmp_path):
  members = [{"optimizer.dense.learning_rate": rate} for rate in (5e-3, 1e30)]
  config.train.epochs = 1
  results = population.train_population(config, members, str(tmp_path / "p"), verbose=False)
  assert "error" not in results[0]
  assert re.search(
    r"epoch 1, step 2 of 16; .*; first was the \w+ of layer '[^']+' \(\w+\) in epoch 1, step 2",
    results[1]["error"],
  )
