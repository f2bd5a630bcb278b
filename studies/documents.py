"""Tables and figures of documents, generated from result files or compared with them.

studies/tables.py is the command; study_tables.py and benchmark_tables.py have the formats.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import records
from mmoe_jax.errors import UserError, describe, did_you_mean, require
from mmoe_jax.evaluation import tables

LARGEST = 2_000_000  # Bytes of all result files together.
_COMMAND = "run python -m studies.tables"


class Table(NamedTuple):
  """Table of a document.

  Attributes:
    files: names of its result files.
    format: their records, in this order -> Markdown, without the caption.
    caption: sentence below it, before where the figures come from; may be empty.
    reads_transcribed: whether `format` accepts transcribed records; otherwise their table of this
      name is shown as it is.
  """

  files: Sequence[str]
  format: Callable[..., str]
  caption: str = ""
  reads_transcribed: bool = False


class Figure(NamedTuple):
  """Figure in a sentence.

  Attributes:
    files: names of its result files.
    format: their records -> text.
  """

  files: Sequence[str]
  format: Callable[..., str]


# ---- Rendering -------------------------------------------------------------------------------


def render_table(name: str, known: Mapping[str, Table], folder: str) -> str:
  """Returns a table as Markdown, with a caption that states where its figures come from."""
  table = known.get(name)
  if table is None:
    require(
      os.path.exists(os.path.join(folder, f"{name}.json")),
      f"no table and no result file has this name; {did_you_mean(name, known)}",
    )
    table = Table((name,), lambda record: verbatim(record, name), reads_transcribed=True)
  found = {file: records.read(folder, file) for file in table.files}
  copied = {file: record for file, record in found.items() if record.transcribed}
  caption = [table.caption]
  if copied and not table.reads_transcribed:
    found, caption = copied, []
    text = "\n\n".join(verbatim(record, name) for record in copied.values())
  else:
    text = table.format(*found.values())
  caption += [*dict.fromkeys(record.note for record in found.values()), *_origins(found)]
  caption = [sentence for sentence in caption if sentence]
  return "\n\n".join([text, " ".join(caption)] if caption else [text])


def render_figure(name: str, known: Mapping[str, Figure], folder: str) -> str:
  """Returns the text of a figure."""
  figure = known.get(name)
  if figure is None:
    file = name.rpartition("/")[0]
    require(
      os.path.exists(os.path.join(folder, f"{file}.json")),
      f"no figure and no result file has this name; {did_you_mean(name, known)}",
    )
    figure = Figure((file,), lambda record: _run(record, "figure", name)["text"])
  found = [records.read(folder, file) for file in figure.files]
  copied = next((record for record in found if record.transcribed), None)
  return _run(copied, "figure", name)["text"] if copied else figure.format(*found)


def verbatim(record: records.Record, name: str) -> str:
  """Formats a table of a transcribed record: the run with this `table`, `header` and `cells`."""
  run = _run(record, "table", name)
  return tables.markdown(run["header"], run["cells"], False)


def _run(record: records.Record, key: str, name: str) -> dict[str, Any]:
  found = [run for run in record.runs if run.get(key) == name]
  require(
    record.transcribed and len(found) == 1,
    f"its result file has {len(found)} runs with the {key} '{name}', and must have one; it must be "
    "transcribed, or a module of studies/tables.py must format it",
  )
  return found[0]


def origin(record: records.Record) -> str:
  """Returns where a record comes from: day, machine, versions, commit."""
  cores, processor = record.machine.get("cores"), record.machine.get("processor")
  parts = [f"{cores} cores of {processor}" if cores and processor else processor]
  parts += [f"jax {record.versions['jax']}"] if "jax" in record.versions else []
  commit, day = f"commit `{record.commit[:7]}`" if record.commit else "", record.date[:10]
  if record.transcribed:
    parts = [f"transcribed from the document of {commit} ({day}), cannot be recomputed", *parts]
  else:
    parts = [day, *parts, commit + (" with uncommitted changes" if record.dirty else "")]
  return ", ".join(part for part in parts if part)


def _origins(found: Mapping[str, records.Record]) -> list[str]:
  """Returns a sentence for each group of files of one origin."""
  groups: dict[str, list[str]] = {}
  for file, record in found.items():
    groups.setdefault(origin(record), []).append(f"`results/{file}.json`")
  return [f"From {', '.join(files)}: {text}." for text, files in groups.items()]


# ---- Documents -------------------------------------------------------------------------------

_TABLE = re.compile(r"(^<!-- table: (?P<name>\S+) -->\n)(?P<text>.*?)(^<!-- end -->$)", re.M | re.S)
_FIGURE = re.compile(r"(<!-- result: (?P<name>\S+) -->)(?P<text>.*?)(<!-- end -->)", re.S)


class Difference(NamedTuple):
  """Difference of a document from the result files."""

  document: str
  name: str
  text: str

  def __str__(self) -> str:
    return f"{self.document}: {self.name}: {self.text}"


def rewrite(
  document: str,
  text: str,
  known: tuple[Mapping[str, Table], Mapping[str, Figure]],
  folder: str,
) -> tuple[str, list[Difference], list[Difference]]:
  """Replaces the tables and figures of a document.

  Args:
    document: its path, for differences.
    text: its text.
    known: tables and figures by name.
    folder: folder of result files.

  Returns:
    The new text; what differed in the old one; what cannot be generated, which is left as it is.
  """
  stale: list[Difference] = []
  broken: list[Difference] = []

  def replace(kind: str, render: Callable[..., str], names: Mapping[str, object], end: str):
    def one(match: re.Match[str]) -> str:
      name = match["name"]
      try:
        wanted = render(name, names, folder) + end
      except (UserError, OSError, KeyError, TypeError) as error:
        reason = describe(error) if isinstance(error, UserError | OSError) else repr(error)
        broken.append(Difference(document, f"{kind} {name}", reason))
        return match[0]
      if match["text"] != wanted:
        stale.append(Difference(document, f"{kind} {name}", _first_change(match["text"], wanted)))
      return match[1] + wanted + match[4]

    return one

  text = _TABLE.sub(replace("table", render_table, known[0], "\n"), text)
  text = _FIGURE.sub(replace("figure", render_figure, known[1], ""), text)
  return text, stale, broken


def _first_change(old: str, new: str) -> str:
  lines = itertools.zip_longest(old.strip().splitlines(), new.strip().splitlines(), fillvalue="")
  for number, (a, b) in enumerate(lines, start=1):
    if a != b:
      cells = itertools.zip_longest(a.split(" | "), b.split(" | "), fillvalue="")
      a, b = next((x, y) for x, y in cells if x != y) if a and b else (a, b)
      return f"line {number} has '{a.strip(' |')}', its files give '{b.strip(' |')}'; {_COMMAND}"
  return f"only blank lines differ; {_COMMAND}"


# A measured figure in a sentence: a number with a unit of speed, time or memory, a share, a ratio,
# an AUC. Levels of intervals are not measured.
_LOOSE = re.compile(
  r"(?<![\w.])(?!95 %)(\d[\d,]*(?:\.\d+)? (?:rows/s|ms|s|min|minutes|MiB|GiB|GB/s|GFLOP/s|%|times)"
  r"(?!\w)|0?\.\d{3,})"
)


def find_loose(document: str, text: str) -> Iterator[Difference]:
  """Yields figures and tables that have no marker.

  Code, settings in code quotes, comments and tables with `<!-- not measured -->` above do not
  count.
  """
  text = _TABLE.sub(_blank, text)
  text = re.sub(r"^<!-- not measured -->\n(\|.*\n)*", _blank, text, flags=re.M)
  text = re.sub(r"^```.*?^```$|^ {4}[^\n]*$", _blank, text, flags=re.M | re.S)
  for pattern in (_FIGURE, re.compile(r"<!--.*?-->", re.S), re.compile(r"`[^`]*`")):
    text = pattern.sub(_blank, text)
  for number, line in enumerate(text.splitlines(), start=1):
    if line.startswith("|") and re.search(r"\d", line):
      yield Difference(document, f"line {number}", "a table with figures has no marker")
    elif match := _LOOSE.search(line):
      yield Difference(document, f"line {number}", f"'{match[0].strip()}' has no marker")


def _blank(match: re.Match[str]) -> str:
  return re.sub(r"[^\n]", " ", match[0])


def check_size(folder: str) -> list[Difference]:
  """Returns a finding if the result files are too large for a repository."""
  size = sum(
    os.path.getsize(os.path.join(parent, name))
    for parent, _, names in os.walk(folder)
    for name in names
  )
  return [Difference(folder, "size", f"{size:,} of {LARGEST:,} bytes")] if size > LARGEST else []
