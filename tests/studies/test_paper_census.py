"""Census study: table, plots and search on fake trainings, and one real run."""

import csv
import os

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from mmoe_jax.errors import UserError
from mmoe_jax.training import search_space
from studies import paper_census, published, resumable
from tests import reference
from tests.studies.fake_trainings import STRENGTH, TASKS, FakeTraining, assert_png, strict_json


def populations_of(rng, labels_NxT, seeds, diverged=()):
  """Returns fake populations of two methods and their logits."""
  populations, scores = {}, {}
  for method, strength in STRENGTH.items():
    scores[method] = strength * labels_NxT[None] + rng.normal(size=(seeds, *labels_NxT.shape))
    results = []
    for m in range(seeds):
      test = {
        f"{task}/auc": sklearn.metrics.roc_auc_score(labels_NxT[:, t], scores[method][m, :, t])
        for t, task in enumerate(TASKS)
      }
      lost = method == "mmoe" and m in diverged
      results.append({"parameters": 10} | ({"error": "x"} if lost else {"test": test}))
    populations[method] = {"results": results, "best": seeds - 1, "seconds": 61.0}
  return populations, scores


def brute_placements(scores_MxN, labels_N):
  """Computes placements over all pairs, averaged over seeds."""
  p, n = scores_MxN[:, labels_N == 1], scores_MxN[:, labels_N == 0]
  psi = ((p[:, :, None] > n[:, None]) + 0.5 * (p[:, :, None] == n[:, None])).mean(0)
  return psi.mean(1), psi.mean(0)


def test_rows_of_the_table_equal_scikit_learn_and_scipy():
  rng = reference.fresh_rng()
  labels_NxT = (rng.random((300, 2)) < 0.4).astype(float)
  populations, scores = populations_of(rng, labels_NxT, 5)
  rows = paper_census.summarise("group1", populations, scores, labels_NxT)
  assert [(r["task"], r["method"]) for r in rows] == [(t, m) for t in TASKS for m in STRENGTH]
  for t, task in enumerate(TASKS):
    auc = {
      m: [sklearn.metrics.roc_auc_score(labels_NxT[:, t], s[:, t]) for s in scores[m]]
      for m in STRENGTH
    }
    bottom, mmoe = (r for r in rows if r["task"] == task)
    assert bottom["mean"] == pytest.approx(np.mean(auc["shared_bottom"]))
    assert bottom["std"] == pytest.approx(np.std(auc["shared_bottom"], ddof=1))
    assert bottom["best"] == pytest.approx(max(auc["shared_bottom"]))
    assert bottom["at_best_validation"] == pytest.approx(auc["shared_bottom"][-1])
    paired = scipy.stats.ttest_rel(auc["shared_bottom"], auc["mmoe"]).confidence_interval()
    assert bottom["difference"] == pytest.approx((paired.low + paired.high) / 2)
    assert bottom["difference_half_seeds"] == pytest.approx((paired.high - paired.low) / 2)
    # Both sources, by Welch and Satterthwaite.
    difference_M = np.subtract(auc["shared_bottom"], auc["mmoe"])
    placed = [brute_placements(scores[m][:, :, t], labels_NxT[:, t]) for m in STRENGTH]
    parts = [(difference_M.var(ddof=1) / 5, 4)]
    parts += [((a - b).var(ddof=1) / len(a), len(a) - 1) for a, b in zip(*placed, strict=True)]
    total = sum(v for v, _ in parts)
    freedom = total**2 / sum(v**2 / f for v, f in parts)
    half = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(total)
    half = max(half, bottom["difference_half_seeds"], bottom["difference_half_rows"])
    assert bottom["difference_half"] == pytest.approx(half)
    assert (bottom["difference_p"] < 0.05) == (half < abs(bottom["difference"]))
    from_test = 2 * scipy.stats.t.sf(abs(bottom["difference"]) / np.sqrt(total), freedom)
    assert bottom["difference_p"] >= from_test * (1 - 1e-9)
    assert mmoe["difference"] is mmoe["difference_p"] is None
    assert bottom["paper_mean"] == published.CENSUS["group1"]["shared_bottom"][t].mean


def test_a_seed_that_diverged_is_left_out_of_both_sides_of_a_pair():
  rng = reference.fresh_rng()
  labels_NxT = (rng.random((200, 2)) < 0.4).astype(float)
  populations, scores = populations_of(rng, labels_NxT, 4, diverged=(1,))
  scores["mmoe"][1] = np.nan
  bottom, mmoe = paper_census.summarise("group1", populations, scores, labels_NxT)[:2]
  assert (mmoe["seeds"], mmoe["diverged"]) == (3, 1)
  assert bottom["seeds"] == 4
  kept = [0, 2, 3]
  a, b = (paper_census.aucs_of(p["results"], TASKS[0])[kept] for p in populations.values())
  assert bottom["difference"] == pytest.approx((a - b).mean())
  populations = {
    m: {**p, "results": [p["results"][i] for i in kept]} for m, p in populations.items()
  }
  scores = {m: s[kept] for m, s in scores.items()}
  populations = {m: {**p, "best": 0} for m, p in populations.items()}
  alone = paper_census.summarise("group1", populations, scores, labels_NxT)[0]
  assert bottom["difference_half"] == pytest.approx(alone["difference_half"])
  text = paper_census.format_tables([bottom, mmoe])
  assert "mmoe (1 diverged)" in text


def test_logits_of_another_population_are_refused():
  rng = reference.fresh_rng()
  labels_NxT = (rng.random((200, 2)) < 0.4).astype(float)
  populations, scores = populations_of(rng, labels_NxT, 2)
  scores["mmoe"] = scores["shared_bottom"]
  with pytest.raises(UserError, match=r"group1 mmoe: its logits give an AUC .* delete its folder"):
    paper_census.summarise("group1", populations, scores, labels_NxT)


def test_bold_differences_are_corrected_for_the_number_of_comparisons():
  rng = reference.fresh_rng()
  labels_NxT = (rng.random((300, 2)) < 0.4).astype(float)
  bottom, mmoe = paper_census.summarise("group1", *populations_of(rng, labels_NxT, 5), labels_NxT)[
    :2
  ]
  rows = [
    mmoe,
    *({**bottom, "method": f"m{i}", "difference_p": p} for i, p in enumerate((0.001, 0.02, 0.04))),
  ]
  bold = [line for line in paper_census.format_tables(rows).splitlines() if "**" in line]
  # 0.001 * 3 and 0.02 * 2 are below 0.05; 0.04 alone as well, after both.
  assert {line.split("|")[1].strip() for line in bold} == {"m0", "m1", "m2"}
  rows[2]["difference_p"] = 0.03
  bold = [line for line in paper_census.format_tables(rows).splitlines() if "**" in line]
  assert {line.split("|")[1].strip() for line in bold} == {"m0"}
  assert "over all 3 differences (Holm's correction" in paper_census.format_tables(rows)


def study(prepared, out, **settings):
  arguments = {"seeds": 3, "epochs": 2, "methods": ("shared_bottom", "mmoe")} | settings
  groups = arguments.pop("groups", ("group1",))
  return paper_census.run_study(
    groups, out=str(out), data_dir=prepared, path=str(out / "settings.json"), **arguments
  )


def test_a_study_writes_tables_and_plots_and_resumes(prepared, fake_training, tmp_path, capsys):
  rows = study(prepared, tmp_path)
  assert len(fake_training.calls) == 2
  content = strict_json(tmp_path / "table.json")
  assert content["seeds"] == 3
  assert content["machine"]["jax"]
  assert [p["method"] for p in content["populations"]] == ["shared_bottom", "mmoe"]
  assert len(content["populations"][0]["results"]) == 3
  assert content["populations"][0]["config"]["train"]["epochs"] == 2
  with open(tmp_path / "table.csv", encoding="utf-8") as file:
    assert [float(r["mean"]) for r in csv.DictReader(file)] == [r["mean"] for r in rows]
  text = (tmp_path / "table.md").read_text(encoding="utf-8")
  assert "### group1: income_50k and marital_stat" in text
  # Far apart, so that the difference is significant.
  assert any("shared_bottom" in line and "**" in line for line in text.splitlines())
  assert "without search: shared_bottom (group1), mmoe (group1)" in text
  for name in ("census_group1.png", "census_group1_differences.png"):
    assert_png(tmp_path / name)
  assert "2/2 group1 mmoe: test AUC income_50k" in capsys.readouterr().out
  # Again: nothing is trained. With one more method: only that one.
  assert study(prepared, tmp_path) == rows
  assert len(fake_training.calls) == 2
  with pytest.raises(
    UserError, match=r"was trained with config.train.epochs=2, not 3; use another --out"
  ):
    study(prepared, tmp_path, epochs=3)
  with pytest.raises(UserError, match="was trained with number of members=3, not 4"):
    study(prepared, tmp_path, seeds=4)


def test_a_study_without_the_baseline_has_no_differences(prepared, fake_training, tmp_path):
  rows = study(prepared, tmp_path, methods=("shared_bottom",), seeds=1)
  assert {r["difference"] for r in rows} == {None}
  assert {r["half"] for r in rows} == {None}
  assert rows[0]["half_rows"] > 0
  assert not os.path.exists(tmp_path / "census_group1_differences.png")


def test_every_member_diverged(prepared, monkeypatch, tmp_path):
  training = FakeTraining(diverged=(0, 1, 2))
  monkeypatch.setattr(resumable.population, "train_population", training)
  with pytest.raises(UserError, match=r"every member failed; the first: .'not finite'"):
    study(prepared, tmp_path)


def test_search_writes_the_best_on_validation_and_the_study_takes_it(
  prepared, fake_training, tmp_path, capsys
):
  path = str(tmp_path / "settings.json")
  methods = ("shared_bottom", "mmoe")
  where = (str(tmp_path / "search"), prepared, 2, path)
  paper_census.run_search(("group1",), methods[:1], 3, *where)
  before = strict_json(path)["group1"]["shared_bottom"]
  paper_census.run_search(("group1",), methods[1:], 6, *where)
  members = [m for name, own in fake_training.calls if name == "mmoe" for m in own]
  assert len(members) == 6
  for member in members:
    rate = member["optimizer.dense.learning_rate"]
    assert 2e-3 <= rate == member["optimizer.embedding.learning_rate"] <= 2e-2
    assert 0 <= member["model.expert_dropout"] <= 0.5
  chosen = strict_json(path)["group1"]
  # Earlier results are kept.
  assert chosen["shared_bottom"] == before
  chosen = chosen["mmoe"]
  assert (chosen["trials"], chosen["failed"]) == (6, 0)
  assert chosen["validation"] == max(chosen["values"])
  assert chosen["settings"] in members
  assert "1/1 group1 mmoe: validation 0.9" in capsys.readouterr().out
  study(prepared, tmp_path)
  model = strict_json(tmp_path / "table.json")["populations"][1]["config"]["model"]
  assert model["expert_dropout"] == chosen["settings"]["model.expert_dropout"]
  assert "without search" not in (tmp_path / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("group", paper_census.GROUPS)
@pytest.mark.parametrize("method", paper_census.SPACES)
def test_the_search_varies_settings_that_the_method_has(group, method):
  config = paper_census.create_config(group, method, "data", None)
  space = search_space.create_space(config, paper_census.SPACES[method])
  assert all(d.kind in ("log", "uniform") for d in space)


def test_broken_files_are_named(tmp_path):
  path = tmp_path / "settings.json"
  path.write_text("{", encoding="utf-8")
  with pytest.raises(UserError, match=r"settings.json: broken"):
    resumable.read_if_exists(str(path))
  assert resumable.read_if_exists(str(tmp_path / "none.json")) == {}


@pytest.mark.slow
def test_census_from_end_to_end(prepared, tmp_path):
  rows = study(prepared, tmp_path, seeds=2, epochs=1)
  assert len(rows) == 4
  assert all(0 < r["mean"] < 1 for r in rows)
  assert all(r["difference_half"] > 0 for r in rows if r["method"] != "mmoe")
