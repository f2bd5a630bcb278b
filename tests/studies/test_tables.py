"""Documents agree with their result files, and what differs is found."""

import json
import os
import shutil

import numpy as np
import pytest

from benchmarks import records
from mmoe_jax.errors import UserError
from mmoe_jax.evaluation import statistics
from studies import benchmark_tables, documents, paired, study_tables, tables

TEXT = """Before <!-- result: rate -->2.0<!-- end --> after.

<!-- table: a -->
| seed | auc |
| --- | --- |
| 0 | 0.5000 |

From `results/a.json`: 2026-12-01, 2 cores of a CPU, jax 1, commit `abcdef0`.
<!-- end -->

<!-- table: old -->
| x |
| --- |
| about 3 |

Slow. From `results/old.json`: transcribed from the document of commit `abcdef0` (2026-12-01), \
cannot be recomputed, 2 cores of a CPU, jax 1.
<!-- end -->
"""


def record(runs, **changes) -> records.Record:
  values = {"command": "c", "settings": {}, "commit": "abcdef0123", "dirty": False}
  values |= {"date": "2026-12-01T00:00:00Z", "versions": {"jax": "1"}, "runs": runs}
  values |= {"machine": {"cores": 2, "processor": "a CPU"}}
  return records.Record(**(values | changes))


@pytest.fixture
def folder(tmp_path) -> str:
  path = str(tmp_path)
  records.save(path, "a", record([{"seed": 0, "auc": 0.5}]))
  old = [{"table": "old", "header": ["x"], "cells": [["about 3"]]}]
  old.append({"figure": "old/size", "text": "3 GiB"})
  records.save(path, "old", record(old, transcribed=True, note="Slow."))
  return path


KNOWN = (
  {
    "a": documents.Table(
      ("a",),
      lambda r: (
        "| seed | auc |\n| --- | --- |\n"
        + "\n".join(f"| {x['seed']} | {x['auc']:.4f} |" for x in r.runs)
      ),
    )
  },
  {"rate": documents.Figure(("a",), lambda r: f"{4 * r.runs[0]['auc']:.1f}")},
)


def check(text: str, folder: str) -> list[str]:
  _, stale, broken = documents.rewrite("doc.md", text, KNOWN, folder)
  return [str(found) for found in (*stale, *broken)]


def test_a_document_that_agrees_is_left_as_it_is(folder):
  after, stale, broken = documents.rewrite("doc.md", TEXT, KNOWN, folder)
  assert (after, stale, broken) == (TEXT, [], [])
  assert list(documents.find_loose("doc.md", TEXT)) == []


def test_a_changed_figure_names_document_table_and_difference(folder):
  assert check(TEXT.replace("0.5000", "0.5001"), folder) == [
    "doc.md: table a: line 3 has '0.5001', its files give '0.5000'; run python -m studies.tables"
  ]
  assert check(TEXT.replace("2.0<", "2.1<"), folder) == [
    "doc.md: figure rate: line 1 has '2.1', its files give '2.0'; run python -m studies.tables"
  ]
  assert (
    "has 'about 4', its files give 'about 3'"
    in check(TEXT.replace("about 3", "about 4"), folder)[0]
  )


def test_a_stale_table_is_found_and_rewritten(folder):
  records.save(folder, "a", record([{"seed": 0, "auc": 0.6}, {"seed": 1, "auc": 0.7}]))
  found = check(TEXT, folder)
  assert [line.split(":")[1].strip() for line in found] == ["table a", "figure rate"]
  after, _, _ = documents.rewrite("doc.md", TEXT, KNOWN, folder)
  assert "| 0 | 0.6000 |\n| 1 | 0.7000 |\n\nFrom" in after
  assert "<!-- result: rate -->2.4<!-- end -->" in after
  assert check(after, folder) == []


def test_a_record_of_other_code_makes_the_caption_stale(folder):
  records.save(folder, "a", record([{"seed": 0, "auc": 0.5}], commit="1234567890", dirty=True))
  (line,) = check(TEXT, folder)
  assert "commit `1234567` with uncommitted changes" in line


def test_a_missing_or_broken_file_and_an_unknown_name_are_named(folder):
  os.remove(os.path.join(folder, "a.json"))
  found = check(TEXT, folder)
  assert len(found) == 2
  assert all("a.json: no such result file; measure it with --results" in line for line in found)
  (line,) = check("<!-- table: ab -->\n<!-- end -->\n", folder)
  assert line == "doc.md: table ab: no table and no result file has this name; did you mean 'a'?"
  records.save(folder, "a", record([{"seed": 0}]))
  assert check(TEXT, folder)[0] == "doc.md: table a: KeyError('auc')"


def test_measuring_again_replaces_a_transcribed_table(folder):
  # Its own format is then used; without one, the document cannot be generated.
  records.save(folder, "old", record([{"x": 3.1}]))
  (line,) = check(TEXT, folder)
  assert "must be transcribed, or a module of studies/tables.py must format it" in line
  known = ({**KNOWN[0], "old": documents.Table(("old",), lambda r: f"{r.runs[0]['x']}")}, KNOWN[1])
  after, _, broken = documents.rewrite("doc.md", TEXT, known, folder)
  assert "3.1\n\nFrom `results/old.json`: 2026-12-01" in after
  assert broken == []


def test_a_transcribed_figure_is_read_by_its_name(folder):
  text = "<!-- result: old/size -->3 GiB<!-- end -->"
  assert check(text, folder) == []
  assert check(text.replace("size", "speed"), folder)[0].startswith("doc.md: figure old/speed: its")


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("It took 3.1 s.", "'3.1 s' has no marker"),
    ("1,000 rows/s", "'1,000 rows/s' has no marker"),
    ("an AUC of 0.9565", "'0.9565' has no marker"),
    ("twice: 12 % more", "'12 %' has no marker"),
    ("| a | 3 |\n", "a table with figures has no marker"),
    ("a 95 % interval, 8 experts, `rate 0.002`, version 0.10.2", None),
    ("    code: 3 s\n", None),
    ("```\n3 s\n```\n", None),
    ("<!-- not measured -->\n| step | 3 |\n| a | b |\n", None),
  ],
)
def test_a_figure_without_marker_is_found(text, found):
  lines = [difference.text for difference in documents.find_loose("doc.md", text)]
  assert lines == ([found] if found else [])


def test_size_of_the_files_is_limited(folder, monkeypatch):
  assert documents.check_size(folder) == []
  monkeypatch.setattr(documents, "LARGEST", 100)
  assert "of 100 bytes" in str(documents.check_size(folder)[0])


def test_documents_of_this_checkout_agree_with_their_files():
  found = tables.process(tables.DOCUMENTS, records.ROOT, records.FOLDER, check=True)
  assert [str(difference) for difference in found] == []


def test_a_changed_figure_of_this_checkout_fails(tmp_path):
  copy = str(tmp_path / "results")
  shutil.copytree(records.FOLDER, copy)
  path = os.path.join(copy, "seeds", "census.json")
  with open(path, encoding="utf-8") as file:
    content = json.load(file)
  content["runs"][0]["test/income_50k/auc"] -= 0.01
  with open(path, "w", encoding="utf-8") as file:
    json.dump(content, file)
  found = tables.process(tables.DOCUMENTS, records.ROOT, copy, check=True)
  assert {(d.document, d.name) for d in found} == {
    ("README.md", "table seeds/output"),
    ("README.md", "table seeds/overview"),
    ("studies/README.md", "table seeds/accuracy"),
  }
  os.remove(path)
  found = tables.process(["README.md"], records.ROOT, copy, check=True)
  assert all("no such result file" in d.text for d in found)
  assert len(found) == 2


def test_formats_recompute_means_and_intervals_from_runs():
  rng = np.random.default_rng(0)
  labels_N = (rng.random(300) < 0.4).astype(float)
  placed, runs = {}, []
  for i, method in enumerate(("omoe", "mmoe")):
    scores = labels_N + rng.normal(size=(3, 300))
    placed[method] = statistics.mean_placements(scores, labels_N)
    for seed, scores_N in enumerate(scores):
      auc = statistics.placements(scores_N, labels_N).auc - 0.3 * (i == 0)
      runs.append({"group": "group1", "method": method, "seed": seed, "test/income_50k/auc": auc})
  measured = record(runs, rows={"group1/income_50k": paired.covariances(placed)})
  lines = study_tables.format_census("group1")(measured).splitlines()
  aucs = np.array([run["test/income_50k/auc"] for run in runs]).reshape(2, 3)
  omoe = next(line for line in lines if line.startswith("| omoe"))
  assert f"| {aucs[0].mean():.4f} ± " in omoe
  difference = f"{(aucs[0] - aucs[1]).mean():+.5f}".replace("-", "\u2212")
  assert f"| **{difference} ± " in omoe
  assert "(.9319)" in study_tables.format_census_overview(measured)


def test_race_takes_the_better_threads_and_ratios_per_round():
  rates = {
    "ours": [100, 300],
    "lean_torch, 1 threads": [50, 50],
    "lean_torch, 2 threads": [100, 60],
  }
  runs = [
    {"batch_size": 1024, "contender": name, "rates": r, "rows_per_second": float(np.median(r))}
    for name, r in rates.items()
  ]
  text = benchmark_tables.format_race_overview(record(runs))
  assert "| the leanest PyTorch that we could write, compiled | 80 | 3 |" in text
  assert text.count("leanest") == 1
  assert benchmark_tables.format_race(record(runs)).count("leanest") == 2


def test_unknown_run_of_a_record_is_refused():
  with pytest.raises(UserError, match="has 0 runs with the table 'b'"):
    documents.verbatim(record([], transcribed=True), "b")
