"""Small MMoE that trains in seconds, for tests. Its AUCs have no meaning.

  python -m mmoe_jax.main --config configs/smoke.py --workdir runs/smoke

Hardware: two CPU cores, about 10 seconds. No expected AUC.
"""

from ml_collections import ConfigDict

from configs import census


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns configs/census.py with fewer experts and three epochs; `arg` as there."""
  config = census.get_config(arg)
  census.set_model(
    config, experts=4, expert_hidden=(8,), bottom_hidden=(8,), ranks=(4, 4, 2), tower_hidden=(4,)
  )
  config.train.epochs = 3
  return config
