"""Searches for settings: python -m mmoe_jax.tune --config FILE --trials N --workdir DIR.

For example with --space model.expert_dropout=uniform,0.0,0.5 --space "model.experts=int,4,16"
"""

import os

from absl import flags

from mmoe_jax import commands


def main(argv: list[str]) -> None:
  """Runs the search and prints the command that trains the best trial."""
  del argv
  from mmoe_jax import cache, parallel
  from mmoe_jax.training import search, search_space

  parallel.use_all_cores()
  cache.keep_programs()
  parallel.warn_of_unused_accelerator()
  config, flag = _CONFIG.value, flags.FLAGS["config"]
  space = search_space.parse_space(_SPACE.value) or config.search
  round_size = search.ROUND if _ROUND.value is None else _ROUND.value
  finished = search.run_search(
    config,
    space,
    _TRIALS.value,
    _WORKDIR.value,
    _SEED.value,
    round_size,
    storage=_STORAGE.value,
  )
  best = finished[0]
  overrides = {k: v for k, v in flag.override_values.items() if k != "search"}
  folder = os.path.join(_WORKDIR.value, "best")
  print(f"\nbest: trial {best['number']}, {config.select.metric} {abs(best['value']):.5f}")
  for name in config.select.tasks or config.data.tasks:
    metric = f"{name}/{config.select.metric}"
    print(f"  validation {metric} {best['validation'][metric]:.5f}")
  print(f"\n{search.command(flag.config_filename, overrides | best['settings'], folder)}\n")
  print(f"all trials: {os.path.join(_WORKDIR.value, search.TRIALS_MD)}")


if __name__ == "__main__":
  _CONFIG = commands.define_config()
  _TRIALS = flags.DEFINE_integer("trials", None, "Number of trials, earlier ones included.")
  _WORKDIR = flags.DEFINE_string("workdir", None, "Work directory, new or of a search to resume.")
  _SPACE = flags.DEFINE_multi_string(
    "space",
    [],
    "KEY[+KEY]=KIND,VALUE,… to vary, in place of config.search; log, uniform or int with the least "
    "and greatest value, or choice with all values.",
  )
  _SEED = flags.DEFINE_integer("seed", 0, "Seed of the search.")
  _ROUND = flags.DEFINE_integer("round", None, "Trials that are drawn at a time; 8 by default.")
  _STORAGE = flags.DEFINE_string(
    "storage",
    None,
    "Shared by several machines that work on one search: a journal file in a folder that all "
    "mount, or the URL of a database (sqlite:///FILE on one machine, postgresql://…, mysql://…). "
    "Start the same command on each, with separate --workdir; --trials is that of all.",
  )
  flags.mark_flags_as_required(["config", "trials", "workdir"])
  commands.run(main, resumes=True)
