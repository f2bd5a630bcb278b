"""The page: collects the facts, arranges the sections, writes one self-contained file."""

import datetime
import importlib.metadata
import importlib.resources
import os
import platform
from collections.abc import Sequence
from typing import Any

from mmoe_jax.config import flatten
from mmoe_jax.errors import require
from mmoe_jax.files import write_atomically
from mmoe_jax.html_report import advice as advice_rules
from mmoe_jax.html_report import (
  model_sections,
  numbers,
  operations,
  population_sections,
  results_sections,
  search_page,
  what_if,
)
from mmoe_jax.html_report.advice import Advice
from mmoe_jax.html_report.facts import RunFacts, collect, read_records
from mmoe_jax.html_report.markup import Html, details, element, join, paragraph, section, with_code
from mmoe_jax.workdir import contract, remote

MOST_BYTES = 3_000_000
_MARGIN = 20_000  # Bytes for the parts around the what-if that are not written yet.
_MOST_CURVES = 40  # Members whose curves are drawn as context.
# Nothing is loaded, whatever a text of the data contains.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_SCRIPTS = ("encoder.js", "model.js", "what_if.js")
_Section = tuple[str, str, Html]


def write_report(
  workdir: str,
  out: str,
  data_dir: str = "",
  member: int | str | None = None,
  examples: bool = True,
) -> str:
  """Writes the page about a work directory; returns a line on what was written.

  Args:
    workdir: work directory of a run, a population or a search.
    out: the HTML file; its folder is created if absent.
    data_dir: folder of the prepared data; empty for that of the run.
    member: member of a population, or predictor.MEAN; None for the best member on validation rows.
    examples: whether the what-if starts from test rows, which are then part of the page.

  Raises:
    UserError: if there is no finished run or search, or a setting does not fit.
    OSError: if the file cannot be written.
  """
  workdir = remote.local_copy(workdir)
  contract.require_free(workdir, out)
  is_search = os.path.exists(os.path.join(workdir, search_page.TRIALS)) and not os.path.exists(
    os.path.join(workdir, contract.RESULTS)
  )
  if is_search:
    require(member is None, f"--member={member}: {workdir} holds a search, not a population")
    text = _search_page(workdir)
  else:
    text = run_page(collect(workdir, data_dir, member), examples)
  size = len(text.encode())
  require(size <= MOST_BYTES, f"{workdir}: the page would take {size / 1e6:.1f} MB, more than 3 MB")
  os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
  write_atomically(out, text)
  return f"{out}: {size / 1e6:.2f} MB, opens in any browser without a network"


def run_page(facts: RunFacts, examples: bool = True) -> str:
  """Returns the page about a run, a member of a population, or the mean of its members."""
  others = _curves_of_others(facts)
  found: list[_Section] = [
    ("next", "What to try next", _advice_section(advice_rules.advise(facts))),
    ("results", "Results", results_sections.results_section(facts)),
  ]
  if contract.MEMBERS in facts.whole:
    found.append(("members", "Members", population_sections.members_section(facts)))
  found.append(("curves", "Learning curves", results_sections.curves_section(facts, others)))
  if facts.held_out is not None:
    found.append(("scores", "ROC and calibration", results_sections.scores_section(facts)))
  if facts.effects is not None:
    found.append(("columns", "Columns", model_sections.columns_section(facts)))
  if facts.gates is not None:
    found.append(("gates", "Gates", model_sections.gates_section(facts)))
  if facts.gates_of_members:
    found.append(("gates", "Gates", population_sections.gates_of_members_section(facts)))
  settings = results_sections.settings_section(_settings_of(facts), _versions(facts))
  used = sum(len(part.encode()) for _, _, part in found) + len(settings.encode())
  found.append(("what-if", "What if", _what_if_section(facts, MOST_BYTES - used, examples)))
  found.append(("settings", "Settings and versions", settings))
  tasks = numbers.sentence([task.name for task in facts.tasks])
  lead = f"{_kind(facts)} of the model {facts.config['model']['name']} for {tasks}."
  notes = [paragraph(line, class_="note") for line in facts.absent]
  figures = results_sections.key_figures(facts)
  return _page(_name_of(facts.workdir), lead, join([figures, *notes]), found)


def _kind(facts: RunFacts) -> str:
  if facts.is_mean:
    return f"The mean of the scores of {len(facts.predictor.members)} members of a population"
  return "A run" if facts.member is None else f"A member, {facts.member}, of a population"


def _search_page(workdir: str) -> str:
  """Returns the page about a search."""
  search = search_page.read_search(workdir)
  found: list[_Section] = [
    ("next", "What to try next", _advice_section(search_page.advise(search))),
    *search_page.sections(search),
    (
      "settings",
      "Settings and versions",
      results_sections.settings_section(search.config, _software()),
    ),
  ]
  lead = (
    f"A search of {len(search.trials)} trials of the model {search.config['model']['name']}. A "
    "search keeps no trained model: train the best trial to get a page with its scores, gates and "
    "a what-if."
  )
  return _page(_name_of(workdir), lead, search_page.key_figures(search), found)


def _what_if_section(facts: RunFacts, budget: int, examples: bool) -> Html:
  prepared, reason = None, ""
  scripts = sum(len(_static(name).encode()) for name in (*_SCRIPTS, "style.css"))
  try:
    prepared = what_if.prepare(facts, budget - scripts - _MARGIN, examples)
  except (what_if.TooLargeError, operations.UnsupportedModelError) as error:
    reason = (
      f"This page does not carry the model {facts.config['model']['name']}: {error}. "
      "Score rows with python -m mmoe_jax.predict or mmoe_jax.serve instead."
    )
    if facts.is_mean:
      reason += " The page of a single member, --member=N, may carry that one."
  return model_sections.what_if_section(prepared, reason)


def _curves_of_others(facts: RunFacts) -> list[list[dict[str, Any]]]:
  if facts.member is None:
    return []
  others = list(range(len(facts.whole[contract.MEMBERS])))
  others = facts.predictor.members if facts.is_mean else [m for m in others if m != facts.member]
  return [read_records(facts.workdir, m) for m in others[:_MOST_CURVES]]


def _settings_of(facts: RunFacts) -> dict[str, Any]:
  """Returns the config, of a member with its own settings; those of members are named."""
  config = {k: v for k, v in facts.config.items() if k != contract.MEMBERS}
  own = facts.results.get("member", {}) if facts.member is not None else {}
  if facts.is_mean:
    own = dict.fromkeys(facts.whole[contract.MEMBERS][0]["member"], "see Members")
  return flatten(config) | own


def _advice_section(found: Sequence[Advice]) -> Html:
  items = [
    element(
      "li",
      element("h3", each.title),
      paragraph(with_code(each.reason)),
      paragraph(element("span", "Rule: "), each.rule, class_="small"),
    )
    for each in found
  ]
  intro = "Hints by stated rules. Each is worth an experiment, none is a proof."
  return section(
    "next", "What to try next", paragraph(intro), element("ol", *items, class_="advice")
  )


def _versions(facts: RunFacts) -> list[list[str]]:
  digests = contract.digests_of(facts.workdir)
  rows = [["work directory", facts.workdir], ["prepared data", facts.directory or "not found"]]
  rows += [[f"SHA-256 of {name}", digest] for name, digest in digests.items()]
  rows.append(["checkpoint", f"of epoch {facts.predictor.epoch}"])
  seconds = facts.whole["wall_seconds"]
  rate = facts.whole.get("rows_per_second", 0.0)
  rows.append(["training", f"{seconds:,.1f} s in total, {rate:,.0f} rows/s"])
  return rows + _software()


def _software() -> list[list[str]]:
  rows = [["page made", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")]]
  names = ("jax", "flax", "numpy", "scipy")
  versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
  rows.append(
    ["page made by", f"mmoe_jax, Python {platform.python_version()}, {', '.join(versions)}"]
  )
  return rows


def _name_of(workdir: str) -> str:
  return os.path.basename(os.path.abspath(workdir))


def _static(name: str) -> str:
  files = importlib.resources.files("mmoe_jax.html_report") / "static" / name
  return files.read_text(encoding="utf-8")


def _page(title: str, lead: str, opening: Html, found: Sequence[_Section]) -> str:
  """Returns the whole page."""
  links = [element("li", element("a", name, href=f"#{key}")) for key, name, _ in found]
  contents = element("ol", *links)
  has_script = any(key == "what-if" for key, _, _ in found)
  scripts = "\n".join(_static(name) for name in _SCRIPTS) if has_script else ""
  script = f'<script>(() => {{\n"use strict";\n{scripts}\n}})();</script>' if scripts else ""
  head = (
    f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark">'
    f"{element('title', f'{title}: mmoe_jax')}<style>{_static('style.css')}</style>"
  )
  body = join(
    [
      element("a", "Skip to the content", href="#main", class_="skip"),
      element(
        "nav",
        element("strong", title),
        contents,
        class_="side",
        aria_label="Contents",
      ),
      element(
        "main",
        element(
          "header",
          paragraph("mmoe_jax report", class_="eyebrow"),
          element("h1", title),
          paragraph(lead, class_="lead"),
          opening,
        ),
        element("nav", details("Contents", contents), class_="top", aria_label="Contents, short"),
        *[part for _, _, part in found],
        id="main",
      ),
    ]
  )
  return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{body}{script}</body></html>\n'
