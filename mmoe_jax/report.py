"""The table of a run's metrics: python -m mmoe_jax.report --workdir DIR."""

from typing import Any

from absl import flags

from mmoe_jax import errors, workdirs
from mmoe_jax.data import SPLITS

_SHOWN = ("auc", "auc_16_and_over", "auc_weighted", "log_loss", "pcoc")


def table(results: dict[str, Any], workdir: str) -> str:
  """Lays out what results.json holds, for reading.

  Args:
    results: as `train_and_evaluate` returns.
    workdir: named in the last line.

  Returns:
    One line for each task and metric with a column for each split, and how training went.
  """
  names = list(results["test"])
  tasks = list(dict.fromkeys(name.split("/")[0] for name in names))
  lines = [f"{'':<18}{'':<18}" + "".join(f"{split:>12}" for split in SPLITS)]
  for task in tasks:
    for metric in (m for m in _SHOWN if f"{task}/{m}" in names):
      values = [results[split][f"{task}/{metric}"] for split in SPLITS]
      cells = "".join(f"{'undefined' if v is None else format(v, '.4f'):>12}" for v in values)
      lines.append(f"{task:<18}{metric:<18}{cells}")
  lines += [f"undefined: {name}: {reason}" for name, reason in results["notes"].items()]
  rate, rows = results["rows_per_second"], results["train_rows"]
  epoch = f"{rows / rate:.2f} s an epoch, {rate:,.0f} rows a second, " if rate else ""
  lines.append(
    f"best epoch {results['best_epoch']} of {results['epochs']}, {epoch}"
    f"{results['wall_seconds']:.1f} s in all, {results['parameters']:,} parameters"
  )
  lines.append(f"everything is in {workdir}")
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  """The command line: prints the table of a run that has ended."""
  del argv
  print(table(workdirs.read_results(_WORKDIR.value), _WORKDIR.value))


if __name__ == "__main__":
  _WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of a run.", required=True)
  errors.run(main)
