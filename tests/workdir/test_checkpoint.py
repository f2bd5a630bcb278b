"""Checkpoints: saving, restoring, and errors of broken ones."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmoe_jax.errors import UserError
from mmoe_jax.workdir import checkpoint

STATE = {"w": jnp.arange(6.0).reshape(2, 3), "n": jnp.int32(7), "none": {}}
BEST = {"w": -jnp.arange(6.0)}


def save(workdir, epoch):
  with checkpoint.Checkpoints(str(workdir)) as saver:
    saver.save(epoch, STATE, BEST)


def test_last_and_best_come_back_as_they_were(tmp_path):
  save(tmp_path, 1)
  save(tmp_path, 2)
  with checkpoint.Checkpoints(str(tmp_path), read_only=True) as saver:
    jax.tree.map(np.testing.assert_array_equal, saver.restore_state(STATE), STATE)
    jax.tree.map(np.testing.assert_array_equal, saver.restore_best(BEST), BEST)
  assert os.listdir(tmp_path / "checkpoints") == ["2"]
  assert {"state", "best"} <= set(os.listdir(tmp_path / "checkpoints" / "2"))


def test_no_checkpoint_is_none_and_no_folder_an_error(tmp_path):
  with checkpoint.Checkpoints(str(tmp_path)) as saver:
    assert saver.restore_state(STATE) is None
  with pytest.raises(UserError, match="contains no checkpoints"):
    checkpoint.Checkpoints(str(tmp_path / "other"), read_only=True)
  assert not (tmp_path / "other").exists()


def test_saving_an_epoch_twice_keeps_the_first(tmp_path):
  save(tmp_path, 1)
  with checkpoint.Checkpoints(str(tmp_path)) as saver:
    saver.save(1, jax.tree.map(lambda x: x + 1, STATE), BEST)
    np.testing.assert_array_equal(saver.restore_state(STATE)["w"], STATE["w"])


def test_other_shapes_and_broken_files_end_in_one_line(tmp_path):
  save(tmp_path, 1)
  with (
    checkpoint.Checkpoints(str(tmp_path), read_only=True) as saver,
    pytest.raises(UserError, match=r"1: cannot restore 'best'"),
  ):
    saver.restore_best({"other": jnp.ones(3)})
  for folder, _, files in os.walk(tmp_path / "checkpoints" / "1" / "state"):
    for name in files:
      with open(os.path.join(folder, name), "wb") as file:
        file.write(b"rubbish")
  with (
    checkpoint.Checkpoints(str(tmp_path), read_only=True) as saver,
    pytest.raises(UserError, match=r"1: cannot restore 'state'"),
  ):
    saver.restore_state(STATE)


def test_a_half_written_checkpoint_is_not_taken_for_one(tmp_path):
  save(tmp_path, 1)
  half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
  half.mkdir()
  (half / "state").write_text("half")
  with checkpoint.Checkpoints(str(tmp_path)) as saver:
    np.testing.assert_array_equal(saver.restore_state(STATE)["n"], 7)


@pytest.mark.parametrize("call", ["save", "wait_until_finished", "close"])
def test_a_full_disk_is_one_line_at_any_time(tmp_path, monkeypatch, call):
  state = {"a": np.ones(3, np.float32)}
  with checkpoint.Checkpoints(str(tmp_path)) as saver:
    saver.save(1, state, state)

  def full(*_, **__):
    raise ValueError("RESOURCE_EXHAUSTED: Error writing x\nand more")

  def fill_up():
    with checkpoint.Checkpoints(str(tmp_path)) as saver:
      monkeypatch.setattr(saver._manager, call, full)
      saver.save(2, state, state)
      saver.wait()

  with pytest.raises(UserError, match=r"\(no space left on the disk\); free some space"):
    fill_up()
  with checkpoint.Checkpoints(str(tmp_path), read_only=True) as saver:
    np.testing.assert_array_equal(saver.restore_best(state)["a"], state["a"])
