"""Reports on the gates of a run: python -m mmoe_jax.gate_report --workdir DIR --out DIR.

Writes gates.json, gates.md and plots gates_*.png: the weights that each task gives the experts,
over all rows of a split, by the values of columns, and by epoch.
"""

import os
import re
import sys

from absl import flags

from mmoe_jax import commands


def main(argv: list[str]) -> None:
  """Measures the gates and writes the report."""
  del argv
  from mmoe_jax import cache
  from mmoe_jax.evaluation.gate_plots import plot_gates
  from mmoe_jax.evaluation.gate_statistics import PREFIX
  from mmoe_jax.evaluation.gate_tables import format_gates
  from mmoe_jax.files import write_atomically, write_json
  from mmoe_jax.prediction.gate_measurements import measure_gates

  cache.keep_programs()
  out = _OUT.value
  report = measure_gates(_WORKDIR.value, _DATA.value, _SPLIT.value, _BY.value, _MEMBER.value)
  for line in report["warnings"]:
    print(f"warning: {line}", file=sys.stderr)
  os.makedirs(out, exist_ok=True)
  plots = []
  for name, figure in plot_gates(report).items():
    plots.append(f"gates_{re.sub(r'[^A-Za-z0-9_-]', '_', name)}.png")
    figure.savefig(os.path.join(out, plots[-1]), dpi=120)
  write_json(os.path.join(out, "gates.json"), report)
  write_atomically(os.path.join(out, "gates.md"), format_gates(report, plots))
  for task in report["tasks"]:
    effective = report["all"][f"{PREFIX}{task}/effective_experts"]
    print(f"{task}: {effective:.2f} of {report['experts']} effective experts")
  print(f"report: {out}: gates.md, gates.json, {', '.join(plots)}")


if __name__ == "__main__":
  _WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a run.", required=True)
  _MEMBER = flags.DEFINE_integer("member", None, "Member, if WORKDIR is a population's.")
  _DATA = flags.DEFINE_string("data", "", "Prepared data; that of the run, if empty.")
  _SPLIT = flags.DEFINE_string("split", "validation", "train, validation or test.")
  _BY = flags.DEFINE_list("by", None, "Columns; age,sex,education by default.")
  _OUT = flags.DEFINE_string("out", None, "Output folder, created if absent.", required=True)
  commands.run(main)
