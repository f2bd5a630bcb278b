"""Writes the tables and figures of the documents from the result files, or compares them.

  python -m studies.tables
  python -m studies.tables --check

A document has a table between `<!-- table: NAME -->` and `<!-- end -->`, and a figure in a sentence
as `<!-- result: NAME -->0.1<!-- end -->`. A name is one of `TABLES` or `FIGURES` of a module in
SOURCES, which state their result files (benchmarks/records.py); or a table is a transcribed file
(`results/NAME.json`), and a figure FILE/KEY is the run of one whose `figure` is KEY.

--check prints a line for each difference, for each missing or broken file, for a table without
marker, and for each measured figure in a sentence without one, and exits with 1 if there are any.
"""

import os
import sys
from collections.abc import Iterable

from absl import flags

from benchmarks import records
from mmoe_jax import commands
from mmoe_jax.files import write_atomically
from studies import benchmark_tables, documents, fresh_tables, study_tables

DOCUMENTS = ("README.md", "studies/README.md", "benchmarks/README.md")
SOURCES = (study_tables, fresh_tables, benchmark_tables)


def sources() -> tuple[dict[str, documents.Table], dict[str, documents.Figure]]:
  """Returns all tables and figures."""
  known_tables: dict[str, documents.Table] = {}
  known_figures: dict[str, documents.Figure] = {}
  for module in SOURCES:
    known_tables |= module.TABLES
    known_figures |= module.FIGURES
  return known_tables, known_figures


def process(
  paths: Iterable[str], root: str, folder: str, check: bool
) -> list[documents.Difference]:
  """Rewrites or checks documents; returns what is wrong.

  Args:
    paths: documents in `root`.
    root: the checkout.
    folder: folder of result files.
    check: whether to only compare.
  """
  known, wrong = sources(), []
  for document in paths:
    path = os.path.join(root, document)
    with open(path, encoding="utf-8") as file:
      before = file.read()
    after, stale, broken = documents.rewrite(document, before, known, folder)
    wrong += broken
    if check:
      wrong += [*stale, *documents.find_loose(document, before)]
    elif after != before:
      write_atomically(path, after)
      print(f"{document}: {len(stale)} changed")
  return wrong + (documents.check_size(folder) if check else [])


def main(argv: list[str]) -> None:
  """Rewrites or checks the documents."""
  del argv
  wrong = process(DOCUMENTS, records.ROOT, _RESULTS.value, _CHECK.value)
  print("\n".join(map(str, wrong)) or f"{len(DOCUMENTS)} documents agree with their result files")
  sys.stdout.flush()
  if wrong:
    sys.exit(1)


if __name__ == "__main__":
  _CHECK = flags.DEFINE_bool("check", False, "Compare only; exit with 1 where something differs.")
  _RESULTS = flags.DEFINE_string("results", records.FOLDER, "Folder of the result files.")
  commands.run(main)
