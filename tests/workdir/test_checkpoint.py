"""Checkpoints: saving, restoring, and errors of broken ones."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mmoe_jax.errors import UserError
from mmoe_jax.workdir import array_digests, checkpoint

STATE = {"w": jnp.arange(6.0).reshape(2, 3), "n": jnp.int32(7), "none": {}}
BEST = {"w": -jnp.arange(6.0)}


def save(workdir, epoch):
  with checkpoint.Checkpoints(str(workdir)) as saver:
    saver.save(epoch, STATE, BEST)


def test_last_and_best_come_back_as_they_were(tmp_path):
  save(tmp_path, 1)
  save(tmp_path, 2)
  with checkpoint.Checkpoints(str(tmp_path), read_only=True) as saver:
    state, best = saver.restore_state(STATE, BEST), saver.restore_best(BEST)
  assert (state.epoch, best.epoch) == (2, 2)
  jax.tree.map(np.testing.assert_array_equal, state.item, STATE)
  jax.tree.map(np.testing.assert_array_equal, best.item, BEST)
  save(tmp_path, 3)
  # The one before is kept for the case that the newest is damaged.
  assert set(os.listdir(tmp_path / "checkpoints")) == {"2", "3"}
  assert {"state", "best", "manifest"} <= set(os.listdir(tmp_path / "checkpoints" / "2"))


def test_a_checkpoint_that_a_killed_process_was_deleting_is_removed(tmp_path):
  for epoch in (1, 2):
    save(tmp_path, epoch)
  shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "half")
  save(tmp_path, 3)
  shutil.rmtree(tmp_path / "half" / "state")
  (tmp_path / "half").rename(tmp_path / "checkpoints" / "1")
  save(tmp_path, 3)  # Saved already: orbax deletes nothing.
  assert set(os.listdir(tmp_path / "checkpoints")) == {"2", "3"}


def test_no_checkpoint_is_none_and_no_folder_an_error(tmp_path):
  with checkpoint.Checkpoints(str(tmp_path)) as saver:
    assert saver.restore_state(STATE, BEST) is None
  with pytest.raises(UserError, match="contains no checkpoints"):
    checkpoint.Checkpoints(str(tmp_path / "other"), read_only=True)
  assert not (tmp_path / "other").exists()


def test_saving_an_epoch_twice_keeps_the_first(tmp_path):
  save(tmp_path, 1)
  with checkpoint.Checkpoints(str(tmp_path)) as saver:
    saver.save(1, jax.tree.map(lambda x: x + 1, STATE), BEST)
    np.testing.assert_array_equal(saver.restore_state(STATE, BEST).item["w"], STATE["w"])


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
    saver.restore_state(STATE, BEST)


def test_a_half_written_checkpoint_is_not_taken_for_one(tmp_path):
  save(tmp_path, 1)
  half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
  half.mkdir()
  (half / "state").write_text("half")
  with checkpoint.Checkpoints(str(tmp_path)) as saver:
    np.testing.assert_array_equal(saver.restore_state(STATE, BEST).item["n"], 7)


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
    np.testing.assert_array_equal(saver.restore_best(state).item["a"], state["a"])


def flip_bits(folder, rng):
  """Flips a bit in the middle of each file of at least 100 bytes; returns their number."""
  flipped = 0
  for parent, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(parent, name)
      if (size := os.path.getsize(path)) >= 100:
        with open(path, "r+b") as file:
          file.seek(size // 2)
          byte = file.read(1)[0]
          file.seek(size // 2)
          file.write(bytes([byte ^ 1 << int(rng.integers(8))]))
        flipped += 1
  return flipped


BIG = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(40, 50)), jnp.float32)}


def save_big(workdir, epochs=(1, 2), scale=1):
  with checkpoint.Checkpoints(str(workdir)) as saver:
    for epoch in epochs:
      tree = jax.tree.map(lambda a, epoch=epoch: scale * epoch * a, BIG)
      saver.save(epoch, tree, tree, log=f"log {epoch}")
      saver.wait()


def test_damage_falls_back_to_the_older_checkpoint_with_a_line(tmp_path, capfd):
  save_big(tmp_path)
  assert flip_bits(tmp_path / "checkpoints" / "2" / "best" / "d", np.random.default_rng(1))
  with checkpoint.Checkpoints(str(tmp_path), read_only=True) as saver:
    found = saver.restore_best(BIG)
  assert (found.epoch, found.log) == (1, "log 1")
  np.testing.assert_array_equal(found.item["w"], BIG["w"])
  lines = capfd.readouterr().err.strip().splitlines()
  assert len(lines) == 1
  assert lines[0].startswith("warning: ")
  assert "checkpoints/2: damaged (" in lines[0]
  assert lines[0].endswith("using the checkpoint of epoch 1")


def test_a_damaged_checkpoint_is_replaced_when_its_epoch_is_saved_again(tmp_path, capfd):
  save_big(tmp_path)
  flip_bits(tmp_path / "checkpoints" / "2" / "state" / "d", np.random.default_rng(2))
  with checkpoint.Checkpoints(str(tmp_path)) as saver:
    found = saver.restore_state(BIG, BIG)
    assert found.epoch == 1
    saver.save(2, BIG, BIG)
  assert "using the checkpoint of epoch 1" in capfd.readouterr().err
  with checkpoint.Checkpoints(str(tmp_path), read_only=True) as saver:
    assert saver.restore_state(BIG, BIG).epoch == 2
  assert not capfd.readouterr().err


def test_a_damaged_best_beside_a_whole_state_is_written_again(tmp_path, capfd):
  save_big(tmp_path)
  flip_bits(tmp_path / "checkpoints" / "2" / "best" / "d", np.random.default_rng(3))
  with checkpoint.Checkpoints(str(tmp_path)) as saver:
    found = saver.restore_state(BIG, BIG)
    assert found.epoch == 2
    saver.save(2, found.item, found.item)
  assert "'best' is damaged" in capfd.readouterr().err
  with checkpoint.Checkpoints(str(tmp_path), read_only=True) as saver:
    np.testing.assert_array_equal(saver.restore_best(BIG).item["w"], 2 * BIG["w"])


@pytest.mark.parametrize("fault", ["manifest", "epoch", "other run's arrays", "all"])
def test_faults_that_orbax_does_not_notice(tmp_path, capfd, fault):
  save_big(tmp_path)
  folder = tmp_path / "checkpoints"
  if fault == "manifest":
    path = folder / "2" / "manifest" / "metadata"
    path.write_text(path.read_text().replace('"epoch":2', '"epoch":3').replace("log 2", "log 3"))
  elif fault == "epoch":
    shutil.rmtree(folder / "2")
    shutil.copytree(folder / "1", folder / "2")
  else:
    save_big(tmp_path / "other", scale=10)
    for epoch in ("2",) if fault != "all" else ("1", "2"):
      shutil.rmtree(folder / epoch / "best")
      shutil.copytree(tmp_path / "other" / "checkpoints" / epoch / "best", folder / epoch / "best")
  with checkpoint.Checkpoints(str(tmp_path), read_only=True) as saver:
    if fault == "all":
      with pytest.raises(UserError, match=r"2: cannot restore 'best' .*nor from any older"):
        saver.restore_best(BIG)
      return
    assert saver.restore_best(BIG).epoch == 1
  reason = {"manifest": "its manifest changed", "epoch": "saved as epoch 1"}
  assert reason.get(fault, "'best' is not what was saved") in capfd.readouterr().err


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
  for belongs_to, message in (
    ({"config.json": "a", "data": "b"}, None),
    ({"config.json": "a"}, None),
    ({"config.json": "x"}, r"config\.json: changed since the run began"),
    ({"config.json": "a", "data": "x"}, "holds a run on differently prepared data"),
  ):
    with checkpoint.Checkpoints(str(tmp_path), belongs_to=belongs_to) as saver:
      saver.save(1, STATE, BEST)
      saver.wait()
      if message is None:
        assert saver.restore_best(BEST).epoch == 1
      else:
        with pytest.raises(UserError, match=message):
          saver.restore_best(BEST)


def test_a_checkpoint_of_before_manifests_is_read_with_a_line(tmp_path, capfd):
  save_big(tmp_path)
  shutil.rmtree(tmp_path / "checkpoints" / "2" / "manifest")
  with checkpoint.Checkpoints(str(tmp_path), read_only=True) as saver:
    found = saver.restore_best(BIG)
  assert (found.epoch, found.log) == (2, None)
  assert "saved by an older version; cannot be verified" in capfd.readouterr().err


def test_a_reader_finds_a_checkpoint_while_training_deletes_older_ones(tmp_path, monkeypatch):
  save_big(tmp_path)
  restore = ocp.Checkpointer.restore

  def slow(self, path, *args, **kwargs):
    if path.endswith("/2"):  # The trainer saves 3 and 4 in the meantime.
      save_big(tmp_path, (3, 4))
    return restore(self, path, *args, **kwargs)

  monkeypatch.setattr(ocp.Checkpointer, "restore", slow)
  with checkpoint.Checkpoints(str(tmp_path), read_only=True) as reader:
    found = reader.restore_best(BIG)
  assert found.epoch == 4
  np.testing.assert_array_equal(found.item["w"], 4 * BIG["w"])


def test_digest_depends_on_names_types_shapes_and_values():
  tree = {"a": jnp.arange(4.0), "b": {"c": jnp.int32(1)}}
  same = array_digests.digest_arrays({"b": {"c": np.int32(1)}, "a": np.arange(4, dtype=np.float32)})
  assert array_digests.digest_arrays(tree) == same
  others = [
    {"a": jnp.arange(4.0), "b": {"d": jnp.int32(1)}},
    {"a": jnp.arange(4), "b": {"c": jnp.int32(1)}},
    {"a": jnp.arange(4.0).reshape(2, 2), "b": {"c": jnp.int32(1)}},
    {"a": jnp.arange(4.0) + 1e-7, "b": {"c": jnp.int32(1)}},
    {"a": jnp.arange(4.0)},
  ]
  assert len({same, *map(array_digests.digest_arrays, others)}) == 6
