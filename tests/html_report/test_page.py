"""Pages: self-contained, with text alternatives, escaped; of runs, populations and searches."""

import dataclasses
import json
import os
import re
import shutil

import numpy as np
import pytest

from mmoe_jax.errors import UserError
from mmoe_jax.files import read_json_object
from mmoe_jax.html_report import page as page_lib
from mmoe_jax.html_report.model_sections import columns_section
from mmoe_jax.html_report.page import run_page, write_report
from mmoe_jax.workdir import contract
from tests import commands
from tests.html_report.conftest import write
from tests.html_report.reading import Page

SECTIONS = ("next", "results", "curves", "scores", "columns", "gates", "what-if", "settings")


@pytest.fixture(scope="module")
def read(page):
  return Page(page)


def check_is_self_contained(page):
  """Asserts that a page loads nothing, and that every chart can be read without seeing it."""
  assert len(page.source.encode()) <= 3_000_000
  assert "default-src 'none'" in page.source
  outside = re.sub(r"<script.*?</script>", "", page.source, flags=re.S)
  assert not re.search(r"(src|srcset|action|data)=|https?://|url\(|@import", outside)
  assert {tag for tag, *_ in page.elements}.isdisjoint({"link", "img", "iframe", "object", "base"})
  assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
  assert len(page.ids) == len(set(page.ids))
  charts = [attributes for tag, attributes, _ in page.elements if tag == "svg"]
  assert charts
  assert all(c["role"] == "img" and c["aria-label"] for c in charts)
  assert len(page.all("desc")) == len(charts)
  assert all(text.strip() for _, text in page.all("desc"))
  assert "NaN" not in outside.replace("NaN is", "")
  assert not re.search(r'="[^"]*\b(nan|inf)\b', outside)


def test_a_page_of_a_run_has_all_parts(read):
  check_is_self_contained(read)
  assert [attributes["id"] for attributes, _ in read.all("section")] == list(SECTIONS)
  for style in ("prefers-color-scheme: dark", "@media print", "prefers-reduced-motion"):
    assert style in read.source


def test_results_have_intervals_around_the_values_of_results_json(read, run):
  results = contract.read_results(run)
  ((_, text),) = [e for e in read.all("section") if e[0]["id"] == "results"]
  for name in ("click/auc", "buy/pcoc", "rating/r2", "country/accuracy"):
    assert f"{results['test'][name]:,.4f}".replace("-", "\u2212") in text
  rows = re.findall(r'row">(?:AUC|accuracy)</th>(.*?)</tr>', read.source)
  assert len(rows) == 3
  for row in rows:
    *_, test, ends = re.findall(r'class="number">([^<]*)<', row)
    low, high = map(float, ends.split(" to "))
    assert low < float(test) < high


def test_texts_of_the_data_are_escaped(read):
  assert "</script><b>" not in read.source
  device = next(
    c for c in read.json("what-if-data")["encoder"]["features"] if c["name"] == "device"
  )
  assert "</script><b>&desk" in device["values"]
  assert not read.all("b") or all("desk" not in text for _, text in read.all("b"))


def test_every_column_has_an_effect_and_a_control(read):
  payload = read.json("what-if-data")
  names = {column["name"] for column in payload["columns"]}
  assert names == {"user", "device", "age", "price", "score", "tags", "time"}
  ((_, text),) = [e for e in read.all("section") if e[0]["id"] == "columns"]
  assert all(name in text for name in names)
  assert [row["name"].startswith("Test row ") for row in payload["rows"]] == [True] * 5


def test_invented_rows_replace_test_rows(facts, tmp_path):
  out = write(tmp_path / "page.html", page_lib.run_page(facts, examples=False))
  rows = Page(out).json("what-if-data")["rows"]
  assert [row["name"] for row in rows] == [f"Invented row {i}" for i in range(1, 6)]
  assert all(row["labels"] == [] for row in rows)


def test_without_the_data_the_rest_remains(shop, run, tmp_path):
  moved = shutil.copytree(run, tmp_path / "run")
  data = shop.path("data")
  os.rename(data, f"{data}.away")
  try:
    out = str(tmp_path / "page.html")
    write_report(str(moved), out)
    with pytest.raises(UserError, match=r"nowhere: contains no prepared data"):
      write_report(str(moved), out, data_dir=str(tmp_path / "nowhere"))
  finally:
    os.rename(f"{data}.away", data)
  page = Page(out)
  check_is_self_contained(page)
  found = [attributes["id"] for attributes, _ in page.all("section")]
  assert found == ["next", "results", "curves", "what-if", "settings"]
  assert "Parts that need test rows are left out" in page.source


def test_a_model_that_is_too_large_is_declined_in_a_sentence(facts, tmp_path, monkeypatch):
  monkeypatch.setattr(page_lib, "MOST_BYTES", 150_000)
  page = Page(write(tmp_path / "page.html", page_lib.run_page(facts)))
  check_is_self_contained(page)
  assert page.json("what-if-data") is None
  assert "This page does not carry the model mmoe: its weights and vocabularies" in page.source


@pytest.mark.slow
def test_a_page_of_a_population_describes_its_best_member(members, tmp_path):
  out = str(tmp_path / "page.html")
  write_report(members, out)
  page = Page(out)
  check_is_self_contained(page)
  metrics = contract.read_results(members)["members"]
  best = max((0, 1), key=lambda m: metrics[m]["validation"]["click/auc"])
  assert f"This page describes member {best}" in page.source
  write_report(members, out, member=1 - best)
  assert f"This page describes member {1 - best}" in Page(out).source
  with pytest.raises(UserError, match="--member=2: must be from 0 to 1"):
    write_report(members, out, member=2)


def write_search(folder, rows):
  os.makedirs(folder)
  space = {"a.rate+b.rate": ["log", 1e-3, 1e-1], "a.units": ["choice", [[4], [8]]]}
  config = {
    "select": {"metric": "auc", "tasks": []},
    "data": {"tasks": ["<click>"]},
    "model": {"name": "mmoe"},
    "search": {"space": space, "seed": 0},
  }
  (folder / "config.json").write_text(json.dumps(config))
  header = "trial,value,a.rate,b.rate,a.units,validation/<click>/auc,best_epoch,epochs,seconds,note"
  (folder / "trials.csv").write_text("\n".join([header, *rows]) + "\n")


def test_a_page_of_a_search_ranks_trials_and_looks_beyond_a_range(tmp_path):
  rows = [
    '2,0.9,0.0999,0.0999,"(8,)",0.9,3,3,1.5,',
    '0,0.8,0.002,0.002,"(4,)",0.8,2,3,1.5,',
    '1,,0.05,0.05,"(4,)",,,,,the loss is <not> finite',
  ]
  write_search(tmp_path / "search", rows)
  out = str(tmp_path / "page.html")
  write_report(str(tmp_path / "search"), out)
  page = Page(out)
  check_is_self_contained(page)
  titles = [text for _, text in page.all("h3")]
  assert titles[:2] == ["Extend the range of a.rate", "Extend the range of b.rate"]
  assert "Many trials failed" in titles
  assert "the loss is &lt;not&gt; finite" in page.source
  assert "--config.a.rate=0.0999" in page.source


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    (["0,x,1,1,1,1,1,1,1,"], "trials.csv: broken .*run the search's command again"),
    (["0,,1,1,1,,,,,failed"], "no trial has finished successfully"),
  ],
)
def test_a_broken_search_is_one_line(tmp_path, rows, message):
  write_search(tmp_path / "search", rows)
  with pytest.raises(UserError, match=message):
    write_report(str(tmp_path / "search"), str(tmp_path / "page.html"))


def test_an_unfinished_run_and_a_file_of_the_run_are_refused(run, tmp_path):
  shutil.copytree(run, tmp_path / "run")
  os.remove(tmp_path / "run" / "results.json")
  with pytest.raises(UserError, match="the run has not finished"):
    write_report(str(tmp_path / "run"), str(tmp_path / "page.html"))
  with pytest.raises(UserError, match="belongs to the run"):
    write_report(run, os.path.join(run, "results.json"))
  assert "members" not in read_json_object(os.path.join(run, "results.json"))


@pytest.mark.slow
def test_the_command_writes_a_page(run, tmp_path):
  out = tmp_path / "page.html"
  done = commands.run("mmoe_jax.report", "--workdir", run, "--html", out)
  assert done.returncode == 0, done.stderr
  assert "opens in any browser without a network" in done.stdout
  check_is_self_contained(Page(out))


def test_effects_on_a_task_of_one_class_are_left_out(facts):
  effects = facts.effects
  undefined = [np.where(np.arange(4) == 1, np.nan, a) for a in (effects.permuted, effects.unknown)]
  effects = dataclasses.replace(effects, permuted=undefined[0], unknown=undefined[1])
  section = str(columns_section(dataclasses.replace(facts, effects=effects)))
  assert "buy: undefined on these rows" in section
  assert "buy: permuted columns" not in section
  assert "click: permuted columns" in section
  assert "nan" not in section.lower().replace("nane", "")
  none = dataclasses.replace(
    effects, permuted=effects.permuted * np.nan, unknown=effects.unknown * np.nan
  )
  assert "country: undefined" in str(columns_section(dataclasses.replace(facts, effects=none)))
  assert run_page(dataclasses.replace(facts, effects=none))
