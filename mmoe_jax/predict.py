"""Scores raw rows: python -m mmoe_jax.predict --workdir DIR --input FILE --output FILE.csv."""

import sys

from absl import flags

from mmoe_jax import commands


def main(argv: list[str]) -> None:
  """Scores files and writes one file, atomically."""
  del argv
  from mmoe_jax import cache
  from mmoe_jax.data import locations
  from mmoe_jax.prediction.predictor import Predictor, parse_member
  from mmoe_jax.prediction.scoring import score_files

  cache.keep_programs()
  predictor = Predictor(_WORKDIR.value, parse_member(_MEMBER.value))
  inputs = locations.expand(_INPUT.value)
  totals = score_files(
    predictor,
    inputs,
    _OUTPUT.value,
    keep=_KEEP.value if _KEEP.value is not None else predictor.schema.keep,
    bad_rows=_BAD_ROWS.value,
    show_progress=sys.stderr is not None and sys.stderr.isatty(),
  )
  for line in totals.lines(predictor.schema, inputs[0] if len(inputs) == 1 else "the input"):
    print(line, file=sys.stderr)
  for column, (count, _) in totals.unknown.items():
    print(f"column '{column}': {count:,} values that its vocabulary does not contain")
  tasks = ", ".join(task.name for task in predictor.schema.tasks)
  print(f"{totals.rows:,} rows scored for {tasks} in {_OUTPUT.value}")
  if _BAD_ROWS.value:
    print(f"{totals.bad:,} bad rows in {_BAD_ROWS.value}")


if __name__ == "__main__":
  _WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a run.", required=True)
  _MEMBER = flags.DEFINE_string(
    "member", "", "If WORKDIR is a population's: a member's number, or `mean` for all of them."
  )
  _INPUT = flags.DEFINE_list(
    "input", None, "Raw rows: CSV or Parquet files, with commas between them.", required=True
  )
  _OUTPUT = flags.DEFINE_string(
    "output", None, "File to write: Parquet if it ends so, otherwise CSV.", required=True
  )
  _KEEP = flags.DEFINE_list("keep", None, "Columns to copy; default: those the spec keeps.")
  _BAD_ROWS = flags.DEFINE_string("bad_rows", "", "CSV file for rows that cannot be scored.")
  commands.run(main, resumes=True)
