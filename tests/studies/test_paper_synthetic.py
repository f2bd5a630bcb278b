"""Synthetic study: figures, tables and search on fake trainings, and one real run."""

import csv
import json

import numpy as np
import pytest
import scipy.stats

from data_prep import synthetic
from mmoe_jax.errors import UserError
from studies import paper_synthetic, resumable
from studies import synthetic_figures as figures
from tests import reference
from tests.studies.fake_trainings import FakeTraining, assert_png, strict_json


def test_spread_and_means_equal_numpy():
  rng = reference.fresh_rng()
  loss = {"shared_bottom": rng.gamma(2, 0.1, 80), "mmoe": 0.05 + rng.gamma(2, 0.002, 80)}
  loss["mmoe"][3] = np.nan
  wide, tight = figures.summarise(0.9, loss, draws=500)
  kept = np.delete(loss["mmoe"], 3)
  assert (tight["runs"], tight["diverged"]) == (79, 1)
  assert tight["mean"] == pytest.approx(kept.mean())
  assert tight["mean_low"] < tight["mean"] < tight["mean_high"]
  assert tight["std"] == pytest.approx(kept.std(ddof=1))
  assert tight["interquartile_range"] == pytest.approx(scipy.stats.iqr(kept))
  assert wide["paper_loss"] == 0.22


def test_orderings_between_models():
  rng = np.random.default_rng(2)
  base = rng.random(60)
  loss = {"shared_bottom": base + 0.1, "omoe": base + 0.2 * rng.random(60), "mmoe": 0.1 * base}
  loss["omoe"][5] = np.nan
  rows = {(r["first"], r["second"]): r for r in figures.compare(0.5, loss, draws=2000)}
  assert len(rows) == 3
  clear = rows["shared_bottom", "mmoe"]
  assert clear["runs"] == 59
  kept = np.delete(np.arange(60), 5)
  assert clear["difference"] == pytest.approx((0.1 * base - base - 0.1)[kept].mean())
  assert clear["low"] < clear["difference"] < clear["high"] < 0
  assert clear["probability"] == clear["share"] == clear["share_high"] == 1
  assert 0.9 < clear["share_low"] < 1
  # One tenth of the loss has one tenth of the spread, in every draw.
  for name in ("ratio_of_std", "ratio_low", "ratio_high"):
    assert clear[name] == pytest.approx(0.1)
  assert clear["probability_std"] == 1
  # Paired by run with equal means: neither is below the other.
  assert 0.01 < rows["shared_bottom", "omoe"]["probability"] < 0.99


def test_curves_are_read_with_a_fallback_and_carried_on(tmp_path):
  lines = [{"epoch": 1, "train/a/loss": [3.0, 4.0]}, {"epoch": 2, "train/a/loss": [2.0, None]}]
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
  name, values = resumable.read_curves(str(tmp_path), ("validation/a/mse", "train/a/loss"))
  assert name == "train/a/loss"
  np.testing.assert_array_equal(values, [[3, 4], [2, 4]])
  with pytest.raises(UserError, match=r"must have one of .*nothing.*; it has .*train/a/loss"):
    resumable.read_curves(str(tmp_path), ("nothing",))


def test_curves_of_populations_of_different_length_are_joined():
  joined = figures.join_curves([np.array([[3.0], [2.0]]), np.array([[5.0, 6.0]])])
  np.testing.assert_array_equal(joined, [[3, 5, 6], [2, 5, 6]])
  mean, low, high = figures.curve_summary(joined)
  np.testing.assert_allclose(mean, joined.mean(1))
  half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(joined, axis=1)
  np.testing.assert_allclose((high - low) / 2, half)


def test_label_correlations_are_those_of_the_generator():
  half, one = figures.label_correlations((0.9, 1.0), 30, 500)
  for row in (half, one):
    assert row["mean"] == pytest.approx(synthetic.label_correlation(row["cosine"]), abs=0.03)
    assert row["low"] < row["mean"] < row["high"]
    assert row["half"] < (row["high"] - row["low"]) / 2
  assert (half["paper"], one["paper"]) == (0.31, 1.0)


def synthetic_study(
  out, runs=7, models=paper_synthetic.MODELS, correlations=(0.5, 1.0), **settings
):
  size = paper_synthetic.Size(60, 20)
  arguments = {"members": 4, "label_seeds": 3, "epochs": 3, "size": size} | settings
  return paper_synthetic.run_study(
    models, correlations, runs, out=str(out), path=str(out / "s.json"), **arguments
  )


def test_a_synthetic_study_writes_tables_and_plots_and_resumes(fake_training, tmp_path):
  content = synthetic_study(tmp_path)
  # Two populations, of four runs and of three, for each of three models at two correlations.
  assert len(fake_training.calls) == 12
  assert [m["seed"] for m in fake_training.calls[3][1]] == [4, 5, 6]
  assert {r["runs"] for r in content["rows"]} == {7}
  assert strict_json(tmp_path / "table.json")["curves"]["0.5"]["mmoe"]["mean"]
  means = {r["model"]: r["mean"] for r in content["rows"] if r["correlation"] == 0.5}
  assert means["mmoe"] < means["omoe"] < means["shared_bottom"]
  assert {r["probability"] for r in content["pairs"]} == {1.0}
  for name in ("figure_2", "figure_4", "figure_5"):
    assert_png(tmp_path / f"{name}.png")
  text = (tmp_path / "table.md").read_text(encoding="utf-8")
  assert "0.5, mmoe against shared_bottom" in text
  with open(tmp_path / "table.csv", encoding="utf-8") as file:
    assert len(list(csv.DictReader(file))) == 6
  again = synthetic_study(tmp_path)
  assert len(fake_training.calls) == 12
  assert again["rows"] == content["rows"]
  with pytest.raises(UserError, match=r"was trained with made_of.rows=60, not 70"):
    synthetic_study(tmp_path, size=paper_synthetic.Size(70, 20))


def test_a_synthetic_study_survives_runs_that_diverge(monkeypatch, tmp_path):
  training = FakeTraining(diverged=(1,))
  monkeypatch.setattr(resumable.population, "train_population", training)
  content = synthetic_study(tmp_path, label_seeds=0)
  assert {(r["runs"], r["diverged"]) for r in content["rows"]} == {(5, 2)}
  text = (tmp_path / "table.md").read_text(encoding="utf-8")
  assert "mmoe (2 diverged)" in text
  assert "Figure 2" not in text


def test_synthetic_search_takes_the_rate_of_the_lowest_loss(fake_training, tmp_path, capsys):
  path = str(tmp_path / "s.json")
  paper_synthetic.run_search(
    ("omoe", "mmoe"), (0.5,), 2, str(tmp_path / "search"), 3, paper_synthetic.Size(60, 20), path
  )
  members = fake_training.calls[0][1]
  assert [m[paper_synthetic.RATE] for m in members] == [1e-4, 1e-4, 1e-3, 1e-3, 1e-2, 1e-2]
  chosen = strict_json(path)
  # Best in the fake trainings; the config has 1e-2.
  assert chosen["mmoe"]["settings"] == {paper_synthetic.RATE: 1e-3}
  assert chosen["mmoe"]["trainings_of_each"] == 2
  assert "omoe: learning rate 0.001" in capsys.readouterr().out
  content = synthetic_study(tmp_path, runs=2)
  rates = {
    p["model"]: p["config"]["optimizer"]["dense"]["learning_rate"] for p in content["populations"]
  }
  assert rates == {"shared_bottom": 1e-2, "omoe": 1e-3, "mmoe": 1e-3}


@pytest.mark.parametrize("text", ["a", "1.5", "-0.1", "nan"])
def test_a_correlation_is_from_zero_to_one(text):
  with pytest.raises(UserError, match="give numbers from 0 to 1"):
    paper_synthetic._correlation(text)


@pytest.mark.slow
def test_synthetic_from_end_to_end(tmp_path):
  models = ("shared_bottom", "mmoe")
  content = synthetic_study(tmp_path, 2, models, (0.9,), members=2, label_seeds=0, epochs=1)
  assert len(content["rows"]) == 2
  assert all(np.isfinite(r["mean"]) for r in content["rows"])
  assert len(content["curves"]["0.9"]["mmoe"]["mean"]) == 1
