"""Drafts the spec of a table from a sample of its rows, for the user to correct.

  python -m data_prep.inspect --input rows.csv --out spec.toml

docs/your_own_table.md is a walk from a file to a trained model; docs/spec.md has every key.
"""

import os
import tempfile

from absl import flags

from data_prep import drafting
from mmoe_jax import commands
from mmoe_jax.data import locations, tables
from mmoe_jax.errors import require
from mmoe_jax.files import write_atomically


def inspect(
  inputs: list[str], separator: str = "", sample: int = 100_000, tasks: tuple[str, ...] = ()
) -> tuple[str, list[str]]:
  """Drafts a spec.

  Args:
    inputs: CSV files with a header, or Parquet files.
    separator: separator of values in CSV files; empty: the most likely one.
    sample: number of rows to look at.
    tasks: columns of labels; empty: the most likely ones.

  Returns:
    The spec as TOML, and warnings, which are comments in it, too.

  Raises:
    UserError: if the files are not tables, or a column of `tasks` does not exist.
  """
  require(sample > 0, f"--sample={sample}: must be at least 1")
  separator = separator or drafting.guess_separator(inputs)
  form = tables.Format(separator=separator)
  rows, found = 0, []
  with tempfile.TemporaryDirectory(prefix="mmoe_jax_") as scratch:
    for part in tables.plan(inputs, form, scratch, tables.PART_BYTES):
      for table in tables.read(part):
        found.append(table)
        rows += len(table)
      if rows >= sample:
        break
  draft = drafting.draft(found, inputs, separator, sample, tasks)
  return draft.text, draft.warnings


def main(argv: list[str]) -> None:
  """Drafts a spec and writes it."""
  del argv
  out = _OUT.value
  require(
    not os.path.exists(out) or _FORCE.value,
    f"--out={out}: exists; your corrections would be lost. Use another file, or --force",
  )
  inputs = locations.expand(_INPUT.value)
  text, warnings = inspect(inputs, _SEPARATOR.value, _SAMPLE.value, tuple(_TASKS.value))
  if locations.is_remote(out):
    with tempfile.TemporaryDirectory(prefix="mmoe_jax_") as scratch:
      path = os.path.join(scratch, "spec.toml")
      write_atomically(path, text)
      locations.upload(path, out)
  else:
    write_atomically(out, text)
  for warning in warnings:
    print(f"note: {warning}")
  print(
    f"wrote {out}; correct it, then: python -m data_prep.tabular --spec {out} "
    f"--input {','.join(_INPUT.value)} --out data/table"
  )


if __name__ == "__main__":
  _INPUT = flags.DEFINE_list(
    "input", None, "CSV files with a header, or Parquet files; commas between them.", required=True
  )
  _OUT = flags.DEFINE_string("out", None, "Spec to write.", required=True)
  _TASKS = flags.DEFINE_list("tasks", [], "Columns of labels; default: the most likely ones.")
  _SEPARATOR = flags.DEFINE_string("separator", "", "Separator of values in CSV files.")
  _SAMPLE = flags.DEFINE_integer("sample", 100_000, "Rows to look at.")
  _FORCE = flags.DEFINE_bool("force", False, "Whether to replace an existing --out.")
  commands.run(main)
