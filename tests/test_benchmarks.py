"""The studies of the paper: their tables, plots and searches on made-up trainings."""

import csv
import io
import json
import os

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from matplotlib import image

from benchmarks import paper_census, paper_synthetic, plots, published, studies, tables
from data_prep import synthetic
from mmoe_jax import data, search_space
from mmoe_jax.errors import UserError
from tests import reference

TASKS = paper_census.GROUPS["group1"]
STRENGTH = {"shared_bottom": 0.6, "mmoe": 3.0}


def strict_json(path):
  """JSON that holds no NaN."""

  def refuse(constant):
    raise AssertionError(constant)

  with open(path, encoding="utf-8") as file:
    return json.load(file, parse_constant=refuse)


def assert_png(path):
  pixels = image.imread(path)
  assert min(pixels.shape[:2]) > 200
  assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20


class MadeUp:
  """Stands in for train_population: scores of known quality, and a count of trainings."""

  def __init__(self, diverged=()):
    self.calls, self.diverged = [], diverged

  def __call__(
    self, config, members, workdir, splits=None, schema=None, save_logits=(), report_on=()
  ):
    del report_on  # Never more than validation and what logits are saved of, below.
    self.calls.append((config.model.name, [dict(m) for m in members]))
    os.makedirs(workdir, exist_ok=True)
    if splits is not None:
      return self._regression(config, members, workdir)
    schema, shared = data.load(config.data_dir, **config.data)
    results, logits = [], []
    for m, member in enumerate(members):
      result = {"member": dict(member), "parameters": 1234, "best_epoch": 1, "epochs": 2}
      rng = np.random.default_rng([member.get("seed", 0), len(config.model.name)])
      # The search may not look at test rows: it finds none here.
      for name in ("validation", *save_logits):
        labels_NxT = np.asarray(shared[name].labels, float)
        scores_NxT = STRENGTH[config.model.name] * labels_NxT + rng.normal(size=labels_NxT.shape)
        if "model.embedding_dropout" in member:
          scores_NxT = scores_NxT - 0.5 * labels_NxT * member["model.embedding_dropout"]
        aucs = {
          f"{task.name}/auc": sklearn.metrics.roc_auc_score(labels_NxT[:, t], scores_NxT[:, t])
          for t, task in enumerate(schema.tasks)
        }
        if m not in self.diverged:
          result[name] = aucs
        if name == "test":
          logits.append(scores_NxT)
      results.append(result | ({"error": "not finite"} if m in self.diverged else {}))
    for name in save_logits:
      np.save(os.path.join(workdir, f"logits_{name}.npy"), np.float32(logits))
    return results

  def _regression(self, config, members, workdir):
    width = {"shared_bottom": 0.2, "omoe": 0.05, "mmoe": 0.01}[config.model.name]
    results, curves = [], []
    for m, member in enumerate(members):
      rng = np.random.default_rng([member["seed"], len(config.model.name)])
      rate = member.get(paper_synthetic.RATE, config.optimizer.dense.learning_rate)
      loss = 0.05 + 4 * width + width * rng.random() + abs(np.log10(rate) + 3)
      curves.append(loss * np.array([3.0, 2.0, 1.0]))
      metrics = {"task_1/mse": loss - 0.01, "task_2/mse": loss + 0.01, "task_1/r2": 0.9}
      if m in self.diverged:
        results.append({"member": dict(member), "parameters": 7, "error": "not finite"})
      else:
        each = {s: dict(metrics) for s in data.SPLITS}
        results.append({"member": dict(member), "parameters": 7, **each})
    with open(os.path.join(workdir, "metrics.jsonl"), "w", encoding="utf-8") as file:
      for epoch, losses_M in enumerate(np.transpose(curves), 1):
        names = ("validation/task_1/mse", "validation/task_2/mse")
        record = {name: losses_M.tolist() for name in names}
        file.write(json.dumps({"epoch": epoch, **record}) + "\n")
    return results


@pytest.fixture
def made_up(monkeypatch):
  training = MadeUp()
  monkeypatch.setattr(studies.population, "train_population", training)
  return training


# ---- Published numbers, tables, plots --------------------------------------------------------


def test_published_numbers_are_complete_and_of_the_methods_we_train():
  for group in paper_census.GROUPS:
    methods = published.CENSUS[group]
    assert set(methods) == set(paper_census.SPACES) - {"ple"}
    for pair in methods.values():
      assert all(0.5 < v < 1 for auc in pair for v in auc)
    # What the paper claims.
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


def test_histograms_hold_every_run_whatever_the_outliers(tmp_path, monkeypatch):
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


def test_progress_counts_only_what_was_trained(capsys):
  progress = studies.Progress(3)
  progress.done("first", trained=False)
  progress.done("second")
  progress.done("third")
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "1/3 first (was there)"
  assert lines[1].startswith("2/3 second, 0 s to go")
  assert lines[2] == "3/3 third"


@pytest.mark.parametrize(
  ("seconds", "text"), [(5, "5 s"), (89, "89 s"), (720, "12 min"), (12_240, "3.4 h")]
)
def test_durations(seconds, text):
  assert studies.duration(seconds) == text


# ---- Census ----------------------------------------------------------------------------------


def populations_of(rng, labels_NxT, seeds, diverged=()):
  """Made-up populations of two methods and their logits."""
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
  """Placements over all pairs, averaged over seeds."""
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
    assert mmoe["difference"] is None
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
  text = paper_census.markdown([bottom, mmoe])
  assert "mmoe (1 diverged)" in text


def test_logits_of_another_population_are_refused():
  rng = reference.fresh_rng()
  labels_NxT = (rng.random((200, 2)) < 0.4).astype(float)
  populations, scores = populations_of(rng, labels_NxT, 2)
  scores["mmoe"] = scores["shared_bottom"]
  with pytest.raises(UserError, match=r"group1 mmoe: its logits give an AUC .* delete its folder"):
    paper_census.summarise("group1", populations, scores, labels_NxT)


def study(prepared, out, **settings):
  arguments = {"seeds": 3, "epochs": 2, "methods": ("shared_bottom", "mmoe")} | settings
  groups = arguments.pop("groups", ("group1",))
  return paper_census.run_study(
    groups, out=str(out), data_dir=prepared, path=str(out / "settings.json"), **arguments
  )


def test_a_study_leaves_tables_and_plots_and_goes_on(prepared, made_up, tmp_path, capsys):
  rows = study(prepared, tmp_path)
  assert len(made_up.calls) == 2
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
  # Worlds apart, so that zero is outside the interval.
  assert any("shared_bottom" in line and "**" in line for line in text.splitlines())
  assert "not searched: shared_bottom (group1), mmoe (group1)" in text
  for name in ("census_group1.png", "census_group1_differences.png"):
    assert_png(tmp_path / name)
  assert "2/2 group1 mmoe: test AUC income_50k" in capsys.readouterr().out
  # Again: nothing is trained; one method more: only that.
  assert study(prepared, tmp_path) == rows
  assert len(made_up.calls) == 2
  with pytest.raises(
    UserError, match=r"was trained with config.train.epochs=2, not 3; name another --out"
  ):
    study(prepared, tmp_path, epochs=3)
  with pytest.raises(UserError, match="was trained with number of members=3, not 4"):
    study(prepared, tmp_path, seeds=4)


def test_a_study_without_the_baseline_has_no_differences(prepared, made_up, tmp_path):
  rows = study(prepared, tmp_path, methods=("shared_bottom",), seeds=1)
  assert {r["difference"] for r in rows} == {None}
  assert {r["half"] for r in rows} == {None}
  assert rows[0]["half_rows"] > 0
  assert not os.path.exists(tmp_path / "census_group1_differences.png")


def test_every_member_diverged(prepared, monkeypatch, tmp_path):
  training = MadeUp(diverged=(0, 1, 2))
  monkeypatch.setattr(studies.population, "train_population", training)
  with pytest.raises(UserError, match=r"every member failed; the first: .'not finite'"):
    study(prepared, tmp_path)


def test_search_writes_the_best_on_validation_and_the_study_takes_it(
  prepared, made_up, tmp_path, capsys
):
  path = str(tmp_path / "settings.json")
  methods = ("shared_bottom", "mmoe")
  where = (str(tmp_path / "search"), prepared, 2, path)
  paper_census.run_search(("group1",), methods[:1], 3, *where)
  before = strict_json(path)["group1"]["shared_bottom"]
  paper_census.run_search(("group1",), methods[1:], 6, *where)
  members = [m for name, own in made_up.calls if name == "mmoe" for m in own]
  assert len(members) == 6
  for member in members:
    rate = member["optimizer.dense.learning_rate"]
    assert 2e-3 <= rate == member["optimizer.embedding.learning_rate"] <= 2e-2
    assert 0 <= member["model.expert_dropout"] <= 0.5
  chosen = strict_json(path)["group1"]
  # What was searched before stays.
  assert chosen["shared_bottom"] == before
  chosen = chosen["mmoe"]
  assert (chosen["trials"], chosen["failed"]) == (6, 0)
  assert chosen["validation"] == max(chosen["values"])
  assert chosen["settings"] in members
  assert "1/1 group1 mmoe: validation 0.9" in capsys.readouterr().out
  study(prepared, tmp_path)
  model = strict_json(tmp_path / "table.json")["populations"][1]["config"]["model"]
  assert model["expert_dropout"] == chosen["settings"]["model.expert_dropout"]
  assert "not searched" not in (tmp_path / "table.md").read_text(encoding="utf-8")


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
    studies.read_settings(str(path))
  assert studies.read_settings(str(tmp_path / "none.json")) == {}


# ---- Synthetic -------------------------------------------------------------------------------


def test_spread_and_means_equal_numpy():
  rng = reference.fresh_rng()
  loss = {"shared_bottom": rng.gamma(2, 0.1, 80), "mmoe": 0.05 + rng.gamma(2, 0.002, 80)}
  loss["mmoe"][3] = np.nan
  wide, tight = paper_synthetic.summarise(0.9, loss, draws=500)
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
  rows = {(r["first"], r["second"]): r for r in paper_synthetic.compare(0.5, loss, draws=2000)}
  assert len(rows) == 3
  clear = rows["shared_bottom", "mmoe"]
  assert clear["runs"] == 59
  kept = np.delete(np.arange(60), 5)
  assert clear["difference"] == pytest.approx((0.1 * base - base - 0.1)[kept].mean())
  assert clear["low"] < clear["difference"] < clear["high"] < 0
  assert clear["probability"] == clear["share"] == clear["share_high"] == 1
  assert 0.9 < clear["share_low"] < 1
  # A tenth of the loss spreads by a tenth, in every draw.
  for name in ("ratio_of_std", "ratio_low", "ratio_high"):
    assert clear[name] == pytest.approx(0.1)
  assert clear["probability_std"] == 1
  # Paired by run: equal means, so no certainty either way.
  assert 0.01 < rows["shared_bottom", "omoe"]["probability"] < 0.99


def test_curves_are_read_with_a_fallback_and_carried_on(tmp_path):
  lines = [{"epoch": 1, "train/a/loss": [3.0, 4.0]}, {"epoch": 2, "train/a/loss": [2.0, None]}]
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
  name, values = studies.read_curves(str(tmp_path), ("validation/a/mse", "train/a/loss"))
  assert name == "train/a/loss"
  np.testing.assert_array_equal(values, [[3, 4], [2, 4]])
  with pytest.raises(UserError, match=r"has none of .*nothing.*; it has .*train/a/loss"):
    studies.read_curves(str(tmp_path), ("nothing",))


def test_curves_of_populations_of_different_length_are_joined():
  joined = paper_synthetic.join_curves([np.array([[3.0], [2.0]]), np.array([[5.0, 6.0]])])
  np.testing.assert_array_equal(joined, [[3, 5, 6], [2, 5, 6]])
  mean, low, high = paper_synthetic.curve_summary(joined)
  np.testing.assert_allclose(mean, joined.mean(1))
  half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(joined, axis=1)
  np.testing.assert_allclose((high - low) / 2, half)


def test_label_correlations_are_those_of_the_generator():
  half, one = paper_synthetic.label_correlations((0.9, 1.0), 30, 500)
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


def test_a_synthetic_study_leaves_tables_and_plots_and_goes_on(made_up, tmp_path):
  content = synthetic_study(tmp_path)
  # Two populations, of four runs and of three, for each of three models at two correlations.
  assert len(made_up.calls) == 12
  assert [m["seed"] for m in made_up.calls[3][1]] == [4, 5, 6]
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
  assert len(made_up.calls) == 12
  assert again["rows"] == content["rows"]
  with pytest.raises(UserError, match=r"was trained with made_of.rows=60, not 70"):
    synthetic_study(tmp_path, size=paper_synthetic.Size(70, 20))


def test_a_synthetic_study_survives_runs_that_diverge(monkeypatch, tmp_path):
  training = MadeUp(diverged=(1,))
  monkeypatch.setattr(studies.population, "train_population", training)
  content = synthetic_study(tmp_path, label_seeds=0)
  assert {(r["runs"], r["diverged"]) for r in content["rows"]} == {(5, 2)}
  text = (tmp_path / "table.md").read_text(encoding="utf-8")
  assert "mmoe (2 diverged)" in text
  assert "Figure 2" not in text


def test_synthetic_search_takes_the_rate_of_the_lowest_loss(made_up, tmp_path, capsys):
  path = str(tmp_path / "s.json")
  paper_synthetic.run_search(
    ("omoe", "mmoe"), (0.5,), 2, str(tmp_path / "search"), 3, paper_synthetic.Size(60, 20), path
  )
  members = made_up.calls[0][1]
  assert [m[paper_synthetic.RATE] for m in members] == [1e-4, 1e-4, 1e-3, 1e-3, 1e-2, 1e-2]
  chosen = strict_json(path)
  # Made up to be best there; the config has 1e-2.
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


# ---- From end to end -------------------------------------------------------------------------


def test_census_from_end_to_end(prepared, tmp_path):
  rows = study(prepared, tmp_path, seeds=2, epochs=1)
  assert len(rows) == 4
  assert all(0 < r["mean"] < 1 for r in rows)
  assert all(r["difference_half"] > 0 for r in rows if r["method"] != "mmoe")


def test_synthetic_from_end_to_end(tmp_path):
  models = ("shared_bottom", "mmoe")
  content = synthetic_study(tmp_path, 2, models, (0.9,), members=2, label_seeds=0, epochs=1)
  assert len(content["rows"]) == 2
  assert all(np.isfinite(r["mean"]) for r in content["rows"])
  assert len(content["curves"]["0.9"]["mmoe"]["mean"]) == 1
