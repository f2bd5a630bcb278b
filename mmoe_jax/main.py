"""Trains and evaluates: python -m mmoe_jax.main --config configs/census.py --workdir DIR."""

from absl import flags

from mmoe_jax import commands

_CONFIG = commands.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Work directory, new or of a run to resume.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
  """Trains by the config and prints the table of its metrics."""
  del argv
  from mmoe_jax import cache, parallel
  from mmoe_jax.evaluation.results_table import format_results
  from mmoe_jax.training import loop
  from mmoe_jax.workdir import preemption, remote

  parallel.initialize()
  cache.keep_programs()
  parallel.warn_of_unused_accelerator()
  with remote.work_directory(_WORKDIR.value) as workdir:
    # A host that left before training would let the others wait.
    with preemption.deferred(when=parallel.has_several_hosts()):
      results = loop.train_and_evaluate(_CONFIG.value, workdir)
    if parallel.is_first_host():
      print(format_results(results, _WORKDIR.value))


if __name__ == "__main__":
  commands.run(main, resumes=True)
