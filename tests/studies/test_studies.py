"""Published numbers, tables, plots and progress of the studies."""

import csv
import io

import numpy as np
import pytest

from mmoe_jax.evaluation import tables
from mmoe_jax.workdir.progress import format_duration
from studies import paper_census, plots, published
from studies.progress import Progress
from tests.studies.fake_trainings import assert_png


def test_published_numbers_are_complete_and_of_the_methods_we_train():
  for group in paper_census.GROUPS:
    methods = published.CENSUS[group]
    assert set(methods) == set(paper_census.SPACES) - {"ple"}
    for pair in methods.values():
      assert all(0.5 < v < 1 for auc in pair for v in auc)
    # The paper's claim.
    assert max(methods, key=lambda m: methods[m][0].best) == "mmoe"
  assert published.CENSUS["group1"]["mmoe"][0] == (0.9410, 0.9359)
  assert published.CENSUS["group2"]["cross_stitch"][1] == (0.9919, 0.9921)
  for models in published.SYNTHETIC_LOSS.values():
    assert models["mmoe"] < models["omoe"] < models["shared_bottom"]


def test_numbers_are_laid_out_for_reading():
  assert tables.number(0.95336) == "0.9534"
  assert tables.number(-0.5, 1) == "\u22120.5"
  assert tables.number(None) == tables.half(None) == "\u2013"
  assert tables.signed(0.00032, 5) == "+0.00032"
  assert tables.plus_minus(0.00123) == " ± 0.0012"
  assert tables.plus_minus(0.00004) == " ± <0.0001"
  assert tables.plus_minus(0.0) == " ± 0.0000"
  assert tables.plus_minus(None) == ""
  assert tables.markdown(("a", "b"), [("x", "1")]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_csv_keeps_names_and_leaves_none_empty():
  rows = [{"a": 1.5, "b": None}, {"a": 2.0, "b": "x,y"}]
  read = list(csv.DictReader(io.StringIO(tables.comma_separated(rows))))
  assert read == [{"a": "1.5", "b": ""}, {"a": "2.0", "b": "x,y"}]


def test_a_far_value_of_the_paper_does_not_squeeze_the_others():
  near = [plots.Row(f"m{i}", 0.95 + i / 1000, 0.001, paper=0.93 + i / 1000) for i in range(6)]
  limits = plots._limits(near, False)
  assert limits[0] < 0.93 < 0.956 < limits[1]
  assert plots._limits([*near, plots.Row("far", 0.95, 0.001, paper=0.6765)], False) == limits


def test_plot_of_a_single_bare_row(tmp_path):
  path = str(tmp_path / "sub" / "dots.png")
  plots.dots(path, {"task": [plots.Row("only", 0.5)]}, "title", "x", {"half": "mean"})
  assert_png(path)


def test_histograms_contain_every_run_despite_outliers(tmp_path, monkeypatch):
  counts = []
  original = plots.plt.Axes.hist
  monkeypatch.setattr(
    plots.plt.Axes,
    "hist",
    lambda axis, values, bins, **style: counts.append(original(axis, values, bins, **style)[0]),
  )
  loss = np.append(np.linspace(0.1, 0.2, 399), 1e6)
  path = str(tmp_path / "h.png")
  plots.histograms(path, {"p = 1": {"mmoe": loss, "omoe": loss}}, "title", "loss")
  assert [c.sum() for c in counts] == [400, 400]
  assert (counts[0] > 0).sum() == 40
  assert_png(path)


def test_progress_estimates_by_trained_parts_only(capsys):
  progress = Progress(3)
  progress.finish("first", is_trained=False)
  progress.finish("second")
  progress.finish("third")
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "1/3 first (existed)"
  assert lines[1].startswith("2/3 second, 0 s left")
  assert lines[2] == "3/3 third"


@pytest.mark.parametrize(
  ("seconds", "text"), [(5, "5 s"), (89, "89 s"), (720, "12 min"), (12_240, "3.4 h")]
)
def test_durations(seconds, text):
  assert format_duration(seconds) == text
