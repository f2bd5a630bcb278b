"""Seconds, not minutes: a small MMoE for tests and a first look. Its numbers mean nothing.

python -m mmoe_jax.main --config configs/smoke.py --workdir runs/smoke
"""

from ml_collections import ConfigDict

from configs import census


def get_config(arg: str | None = None) -> ConfigDict:
  """configs/census.py with fewer experts and three epochs; `arg` as there."""
  config = census.get_config(arg)
  census.set_model(
    config, experts=4, expert_hidden=(8,), bottom_hidden=(8,), ranks=(4, 4, 2), tower_hidden=(4,)
  )
  config.train.epochs = 3
  return config
