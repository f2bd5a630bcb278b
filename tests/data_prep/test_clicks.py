"""Simulated clicks: seeded by part, with the stated probabilities and selection bias."""

import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from data_prep import clicks
from mmoe_jax.errors import UserError


@pytest.fixture(scope="module")
def log():
  return clicks.simulate(200_000, 0, 0, 20_000, 5_000).to_pandas()


def test_a_part_depends_on_seed_and_number_alone(tmp_path, monkeypatch):
  monkeypatch.setattr(clicks, "ROWS_PER_FILE", 1000)
  paths = clicks.write_log(str(tmp_path / "a"), 2500, 3, 100, 50, workers=1)
  assert [pq.read_metadata(path).num_rows for path in paths] == [1000, 1000, 500]
  other = clicks.write_log(str(tmp_path / "b"), 2000, 3, 100, 50, workers=1)
  for path, again in zip(paths[:2], other, strict=True):
    assert pq.read_table(path).equals(pq.read_table(again))
  assert not pq.read_table(paths[0]).equals(clicks.simulate(1000, 4, 0, 100, 50))
  rows = np.concatenate([pq.read_table(path)["impression"].to_numpy() for path in paths])
  np.testing.assert_array_equal(rows, np.arange(2500))
  assert not [name for name in os.listdir(tmp_path / "a") if name.endswith(".part")]


def test_labels_follow_the_probabilities(log):
  for label, p in (("click", log["p_click"]), ("purchase", log["p_purchase"])):
    error = log[label].mean() - p.mean()
    assert abs(error) < 4 * np.sqrt(p.mean() / len(log))
    tenth = np.argsort(p.to_numpy())[-len(log) // 10 :]
    assert log[label].iloc[tenth].mean() == pytest.approx(p.iloc[tenth].mean(), rel=0.05)
  assert (log["purchase"] <= log["click"]).all()
  assert 0.65 < roc_auc_score(log["click"], log["p_click"]) < 0.9


def test_clicked_impressions_are_no_random_sample(log):
  """Would-be purchases are more likely among clicks: what ESMM corrects."""
  given_click = log["p_purchase"] / log["p_click"]
  assert given_click[log["click"] == 1].mean() > 1.1 * given_click.mean()


def test_ids_are_zipf_distributed(log):
  counts = np.sort(log["user_id"].value_counts().to_numpy())[::-1]
  ranks = np.arange(1, len(counts) + 1)
  head = slice(10, 1000)
  slope = np.polyfit(np.log(ranks[head]), np.log(counts[head]), 1)[0]
  assert -1.4 < slope < -0.9
  assert log["user_id"].max() < 20_000
  assert log["item_id"].max() < 5_000


def test_attributes_belong_to_users_and_items(log):
  for key, columns in (
    ("user_id", ("user_segment", "user_country")),
    ("item_id", ("item_category", "item_brand", "item_price", "item_age_days")),
  ):
    assert (log.groupby(key)[list(columns)].nunique() == 1).all(axis=None)
  assert log["user_age"].isna().mean() == pytest.approx(0.15, abs=0.05)


def test_other_files_in_the_folder_are_refused(tmp_path):
  (tmp_path / "mine.txt").write_text("mine")
  with pytest.raises(UserError, match=r"contains mine\.txt; use another folder"):
    clicks.write_log(str(tmp_path), 10, 0, 5, 5)
  with pytest.raises(UserError, match="--rows=0: must be at least 1"):
    clicks.write_log(str(tmp_path / "x"), 0, 0, 5, 5)
