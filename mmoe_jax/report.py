"""The table of a run's metrics: python -m mmoe_jax.report --workdir DIR."""

from typing import Any

import numpy as np
from absl import flags

from mmoe_jax import errors, workdirs
from mmoe_jax.data import SPLITS

_SHOWN = (
  *("auc", "auc_16_and_over", "auc_weighted"),
  *("accuracy", "accuracy_16_and_over", "log_loss", "pcoc"),
  *("mse", "mae", "r2", "r2_16_and_over"),
)


def table(results: dict[str, Any], workdir: str) -> str:
  """Lays out what results.json holds, for reading.

  Args:
    results: as `train_and_evaluate` returns.
    workdir: named in the last line.

  Returns:
    One line for each task and metric of its kind with a column for each split, and how training
    went.
  """
  names = list(results["test"])
  tasks = list(dict.fromkeys(name.split("/")[0] for name in names))
  shown = {task: [m for m in _SHOWN if f"{task}/{m}" in names] for task in tasks}
  wide = max(18, *(len(m) + 2 for of_task in shown.values() for m in of_task))
  lines = [f"{'':<18}{'':<{wide}}" + "".join(f"{split:>12}" for split in SPLITS)]
  for task in tasks:
    for metric in shown[task]:
      values = [results[split][f"{task}/{metric}"] for split in SPLITS]
      cells = "".join(f"{'undefined' if v is None else format(v, '.4f'):>12}" for v in values)
      lines.append(f"{task:<18}{metric:<{wide}}{cells}")
  # A note on a split says what it was measured on, any other why a metric is undefined.
  for name, note in results["notes"].items():
    lines.append(f"{name}: {note}" if name in SPLITS else f"undefined: {name}: {note}")
  rate, rows = results["rows_per_second"], results["train_rows"]
  epoch = f"{rows / rate:.2f} s an epoch, {rate:,.0f} rows a second, " if rate else ""
  lines.append(
    f"best epoch {results['best_epoch']} of {results['epochs']}, {epoch}"
    f"{results['wall_seconds']:.1f} s in all, {results['parameters']:,} parameters"
  )
  lines.append(f"everything is in {workdir}")
  return "\n".join(lines)


def population_table(results: dict[str, Any], workdir: str) -> str:
  """Lays out what the results.json of a population holds: a line a member.

  Args:
    results: as workdirs.read_results gives them.
    workdir: named in the last line.
  """
  members = results["members"]
  whole = [m for m in members if "error" not in m]
  splits = [s for s in ("validation", "test") if whole and s in whole[0]]
  metrics = list(whole[0][splits[0]]) if splits else []
  names = [n for n in metrics if n.split("/")[1] in _MAIN]
  keys = list(members[0]["member"])
  shorts = [".".join(key.split(".")[-2:]) for key in keys]
  width = max([len(s) for s in shorts] + [12]) + 2
  head = [f"{'':>7}", *(f"{s:>{width}}" for s in shorts), f"{'best/epochs':>13}"]
  columns = [f"{split} {name}" for split in splits for name in names]
  lines = ["".join([*head, *(f"{c:>{len(c) + 2}}" for c in columns)])]
  for i, member in enumerate(members):
    cells = [f"{i:>7}", *(f"{_short(member['member'][k]):>{width}}" for k in keys)]
    cells.append(f"{member['best_epoch']}/{member['epochs']}".rjust(13))
    if "error" in member:
      lines.append("".join(cells) + f"  {member['error']}")
      continue
    values = [member[split][name] for split in splits for name in names]
    lines.append("".join(cells) + _cells(values, columns))
  for label, statistic in (("mean", np.mean), ("std", np.std)):
    if len(whole) > 1:
      values = [
        float(statistic([m[split][name] for m in whole])) for split in splits for name in names
      ]
      lines.append(f"{label:>7}" + " " * (width * len(keys) + 13) + _cells(values, columns))
  lines.append(
    f"{len(members)} members, {results['rows_per_second']:,.0f} rows a second together, "
    f"{results['wall_seconds']:.1f} s in all, {members[0]['parameters']:,} parameters each"
  )
  lines.append(f"everything is in {workdir}")
  return "\n".join(lines)


_MAIN = ("auc", "accuracy", "mse")


def _cells(values: list[float | None], columns: list[str]) -> str:
  texts = ["undefined" if v is None else f"{v:.4f}" for v in values]
  return "".join(f"{t:>{len(c) + 2}}" for t, c in zip(texts, columns, strict=True))


def _short(value: Any) -> str:
  return format(value, ".4g") if isinstance(value, float) else str(value)


def main(argv: list[str]) -> None:
  """The command line: prints the table of a run that has ended."""
  del argv
  results = workdirs.read_results(_WORKDIR.value)
  lay_out = population_table if workdirs.MEMBERS in results else table
  print(lay_out(results, _WORKDIR.value))


if __name__ == "__main__":
  _WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of a run.", required=True)
  errors.run(main)
