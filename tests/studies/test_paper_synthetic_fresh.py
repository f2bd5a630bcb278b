"""Study of fresh rows: a real population of drawn rows, and search and report on fake trainings."""

import pytest

from configs import synthetic as recipe
from mmoe_jax.errors import UserError
from mmoe_jax.training import population
from studies import fresh_rows


def tiny(epochs=2):
  config = recipe.get_config()
  config.train.batch_size, config.train.epochs, config.train.devices = 64, epochs, 1
  return config


def members(order):
  """Returns the members' seeds, schema and splits; each has its own task."""
  made = [fresh_rows.splits(seed, 0.9, rows=1000, held_out=200) for seed in order]
  return [{"seed": s} for s in order], {"schema": made[0][0], "splits": [s for _, s in made]}


def test_members_on_drawn_rows_train_on_their_own(tmp_path):
  train = population.train_population
  seeds, arguments = members((3, 4))
  arguments |= {"report_on": ("validation", "test"), "verbose": False}
  whole = train(tiny(), seeds, str(tmp_path / "whole"), **arguments)
  swapped_seeds, swapped = members((4, 3))
  swapped = train(tiny(), swapped_seeds, str(tmp_path / "swapped"), **(arguments | swapped))
  for ours, theirs in zip(whole, swapped[::-1], strict=True):
    assert ours["test"] == theirs["test"]
    assert ours["train_rows"] == 1000
  assert whole[0]["test"] != whole[1]["test"]
  with pytest.raises(UserError, match="remove 'train'"):
    train(tiny(), seeds, str(tmp_path / "other"), **(arguments | {"report_on": ("train",)}))
