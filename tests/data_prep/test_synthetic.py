"""Synthetic tasks of the paper against their formulas in float64."""

import math
import os

import numpy as np
import pytest

from data_prep import synthetic
from mmoe_jax import data
from mmoe_jax.errors import UserError
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.training import loop
from tests import reference
from tests.frames import read_frame

FIGURE_2 = {0.5: 0.08, 0.7: 0.14, 0.9: 0.31, 0.98: 0.66, 1.0: 1.0}


@pytest.mark.parametrize("correlation", [-1.0, -0.3, 0.0, 0.5, 0.9, 0.98, 1.0])
@pytest.mark.parametrize("dimension", [2, 100])
def test_the_cosine_of_the_weights_is_the_correlation(correlation, dimension):
  first, second = synthetic.weight_vectors(reference.fresh_rng(), correlation, dimension, 3.0)
  assert np.linalg.norm(first) == pytest.approx(3, rel=1e-12)
  assert np.linalg.norm(second) == pytest.approx(3, rel=1e-12)
  assert first @ second / 9 == pytest.approx(correlation, abs=1e-12)


def test_labels_without_noise_are_the_formula_row_by_row():
  seed = int(reference.fresh_rng().integers(2**32))
  settings = {"dimension": 7, "scale": 0.8, "alpha": (2.0, 0.5, -3.0), "beta": (0.1, -2.0, 1.0)}
  x, y = synthetic.generate(seed, 40, 0.6, noise_variance=0.0, **settings)
  w = synthetic.weight_vectors(np.random.default_rng(seed), 0.6, 7, 0.8)
  for n in range(40):
    for k in range(2):
      s = sum(w[k, j] * x[n, j] for j in range(7))
      expected = s + math.sin(2 * s + 0.1) + math.sin(0.5 * s - 2) + math.sin(-3 * s + 1)
      assert y[n, k] == pytest.approx(expected, abs=1e-12)


def test_noise_has_its_variance_and_is_of_each_task_alone():
  seed = int(reference.fresh_rng().integers(2**32))
  x, noisy = synthetic.generate(seed, 100_000, 1.0, dimension=3)
  same, clean = synthetic.generate(seed, 100_000, 1.0, dimension=3, noise_variance=0.0)
  np.testing.assert_array_equal(x, same)
  np.testing.assert_allclose(clean[:, 0], clean[:, 1], atol=1e-12)
  noise = noisy - clean
  # Five standard errors of a variance, and of a correlation.
  np.testing.assert_allclose(noise.var(0), 0.01, rtol=5 * np.sqrt(2 / 100_000))
  assert abs(np.corrcoef(noise.T)[0, 1]) < 5 / np.sqrt(100_000)
  np.testing.assert_allclose(np.cov(x.T), np.eye(3), atol=0.03)


@pytest.mark.parametrize("correlation", [-0.7, 0.0, 0.5, 0.9, 0.98, 1.0])
@pytest.mark.parametrize("default", [True, False])
def test_label_correlation_is_that_of_many_rows(correlation, default):
  rng = reference.fresh_rng()
  settings = {"alpha": rng.normal(size=3), "beta": rng.normal(size=3), "scale": 1.3}
  settings = {} if default else settings
  _, y = synthetic.generate(rng, 400_000, correlation, dimension=2, **settings)
  got = synthetic.label_correlation(correlation, **settings)
  assert np.corrcoef(y.T)[0, 1] == pytest.approx(got, abs=0.01)


@pytest.mark.parametrize("correlation", FIGURE_2)
def test_defaults_follow_the_papers_figure_2(correlation):
  got = synthetic.label_correlation(correlation)
  assert got == pytest.approx(FIGURE_2[correlation], abs=0.0085)


def test_splits_are_parts_of_one_draw_with_raw_labels():
  schema, splits = synthetic.splits(5, 0.9, rows=300, held_out=50, dimension=4)
  x, y = synthetic.generate(5, 400, 0.9, dimension=4)
  for name, part in (
    ("train", slice(300)),
    ("validation", slice(300, 350)),
    ("test", slice(350, 400)),
  ):
    split = splits[name]
    np.testing.assert_array_equal(split.features["numeric"], x[part].astype(np.float32))
    np.testing.assert_array_equal(split.labels, y[part].astype(np.float32))
    assert split.features["ids"].shape == (len(split), 0)
    np.testing.assert_array_equal(split.weights, 1)
  assert [(t.name, t.kind, t.mean, t.std) for t in schema.tasks] == [
    ("task_1", "regression", 0, 1),
    ("task_2", "regression", 0, 1),
  ]


def test_prepared_data_equal_those_in_memory(tmp_path):
  out = str(tmp_path / "d")
  prepared = synthetic.prepare(out, 3, 0.5, rows=200, held_out=30, dimension=6)
  schema, loaded = data.load(out, ("task_1", "task_2"), "none", "standardize")
  _, made = synthetic.splits(3, 0.5, rows=200, held_out=30, dimension=6)
  assert schema == prepared
  for name in data.SPLITS:
    for field in ("ids", "numeric"):
      np.testing.assert_array_equal(loaded[name].features[field], made[name].features[field])
    np.testing.assert_array_equal(loaded[name].labels, made[name].labels)
  assert prepared.counts["test"]["rows"] == 30
  assert prepared.sources["correlation"] == "0.5"
  rows = [np.load(os.path.join(out, name, "rows.npy")) for name in data.SPLITS]
  np.testing.assert_array_equal(np.concatenate(rows), np.arange(260))


def test_other_seeds_are_other_data():
  a, b, c = (synthetic.generate(seed, 5, 0.5)[1] for seed in (1, 1, 2))
  np.testing.assert_array_equal(a, b)
  assert not np.isclose(a, c).any()


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"correlation": 1.1}, "correlation = 1.1: must be from -1 to 1"),
    ({"dimension": 1}, "dimension = 1"),
    ({"rows": 0}, "rows = 0"),
    ({"held_out": 0}, "held_out = 0"),
  ],
)
def test_impossible_settings_are_named(settings, message):
  with pytest.raises(UserError, match=message):
    synthetic.splits(**{"seed": 0, "correlation": 0.5, "rows": 9, "held_out": 9, **settings})


def test_the_config_trains_and_predicts_on_prepared_data(tmp_path):
  from configs import synthetic as recipe

  synthetic.prepare(str(tmp_path / "d"), 0, 0.9, rows=4000, held_out=500, dimension=5)
  config = recipe.get_config()
  config.data_dir = str(tmp_path / "d")
  config.train.epochs, config.train.batch_size, config.train.devices = 5, 128, 1
  results = loop.train_and_evaluate(config, str(tmp_path / "w"))
  assert results["test"]["task_1/mse"] < 0.8 * 1.19
  assert set(results["notes"]) == set()
  x, y = synthetic.generate(0, 5000, 0.9, dimension=5)
  table = tmp_path / "rows.csv"
  values = x[-500:].astype(np.float32)
  table.write_text(
    "x_1,x_2,x_3,x_4,x_5\n" + "\n".join(",".join(map(str, row)) for row in values) + "\n"
  )
  predictor = Predictor(str(tmp_path / "w"))
  scores = predictor(read_frame(str(table), predictor.schema.columns))
  error = np.square(scores.to_numpy() - y[-500:]).mean(0)
  expected = [results["test"][f"task_{k}/mse"] for k in (1, 2)]
  np.testing.assert_allclose(error, expected, rtol=1e-4)
