"""Prints the results of a finished run: python -m mmoe_jax.report --workdir DIR.

With --html FILE it writes one self-contained page instead, about a run, a population or a search.
"""

from absl import flags

from mmoe_jax import commands
from mmoe_jax.errors import require
from mmoe_jax.evaluation.results_table import format_population, format_results
from mmoe_jax.workdir import contract, remote


def main(argv: list[str]) -> None:
  """Prints the table of a run, or of a population; or writes the page."""
  del argv
  if _HTML.value:
    from mmoe_jax import cache
    from mmoe_jax.html_report.page import write_report
    from mmoe_jax.prediction.predictor import parse_member

    cache.keep_programs()
    member = parse_member(_MEMBER.value)
    print(write_report(_WORKDIR.value, _HTML.value, _DATA.value, member, _EXAMPLES.value))
    return
  for flag in (_DATA, _MEMBER, _EXAMPLES):
    require(not flag.present, f"--{flag.name}: needs --html FILE, the page that it is for")
  results = contract.read_results(remote.local_copy(_WORKDIR.value, contract.RESULTS))
  format_table = format_population if contract.MEMBERS in results else format_results
  print(format_table(results, _WORKDIR.value))


if __name__ == "__main__":
  _WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a run.", required=True)
  _HTML = flags.DEFINE_string("html", "", "HTML file to write, instead of printing the table.")
  _DATA = flags.DEFINE_string("data", "", "Prepared data for --html; that of the run, if empty.")
  _MEMBER = flags.DEFINE_string(
    "member",
    "",
    "For --html of a population: a member's number, or `mean` for the mean of all; default: the "
    "best one.",
  )
  _EXAMPLES = flags.DEFINE_boolean(
    "examples", True, "Whether the page of --html contains five test rows to start from."
  )
  commands.run(main)
