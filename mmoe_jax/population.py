"""Trains many runs as one program: python -m mmoe_jax.population --config FILE --workdir DIR.

For example 16 seeds of two learning rates: --seeds 16 --vary
optimizer.dense.learning_rate=2e-3,5e-3
"""

from absl import flags

from mmoe_jax import commands
from mmoe_jax.config import check_structure, parse_vary
from mmoe_jax.errors import require

_MAX = 100_000  # More members are most likely a typing error.


def main(argv: list[str]) -> None:
  """Trains the members and prints a table of their metrics."""
  del argv
  from mmoe_jax import cache, parallel
  from mmoe_jax.evaluation.results_table import format_population
  from mmoe_jax.training import population
  from mmoe_jax.workdir import contract, preemption, remote

  parallel.use_all_cores()
  parallel.initialize()
  cache.keep_programs()
  parallel.warn_of_unused_accelerator()
  config = _CONFIG.value
  check_structure(config)
  require(1 <= _SEEDS.value <= _MAX, f"--seeds={_SEEDS.value}: must be from 1 to {_MAX:,}")
  members = [
    {"seed": config.seed + seed, **settings}
    for settings in parse_vary(_VARY.value)
    for seed in range(_SEEDS.value)
  ]
  with remote.work_directory(_WORKDIR.value) as workdir:
    # A host that left before training would let the others wait.
    with preemption.deferred(when=parallel.has_several_hosts()):
      population.train_population(config, members, workdir, at_once=_AT_ONCE.value)
    if parallel.is_first_host():
      print(format_population(contract.read_results(workdir), _WORKDIR.value))


if __name__ == "__main__":
  _CONFIG = commands.define_config()
  _WORKDIR = flags.DEFINE_string(
    "workdir", None, "Work directory, new or of a population to resume.", required=True
  )
  _SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds per setting, from config.seed up.")
  _VARY = flags.DEFINE_multi_string("vary", [], "KEY=VALUE,VALUE: a float of the config to vary.")
  _AT_ONCE = flags.DEFINE_integer(
    "at_once", 0, "Members per device that share each operation; 0 chooses."
  )
  flags.mark_flag_as_required("config")
  commands.run(main, resumes=True)
