"""Prints the results of a finished run: python -m mmoe_jax.report --workdir DIR."""

from absl import flags

from mmoe_jax import commands
from mmoe_jax.evaluation.results_table import format_population, format_results
from mmoe_jax.workdir import contract


def main(argv: list[str]) -> None:
  """Prints the table of a run, or of a population."""
  del argv
  results = contract.read_results(_WORKDIR.value)
  format_table = format_population if contract.MEMBERS in results else format_results
  print(format_table(results, _WORKDIR.value))


if __name__ == "__main__":
  _WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a run.", required=True)
  commands.run(main)
