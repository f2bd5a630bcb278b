"""Table of an invented shop with every kind of column, as CSV and Parquet, and its spec."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

SPEC = """
crosses = ["country#device"]

[columns]
row = { role = "keep" }
user = { role = "hash", buckets = 50 }
country = { role = "category" }
device = { role = "category", min_count = 20 }
age = { role = "number", missing = ["NA"], bins = 8 }
price = { role = "number", transform = "log1p" }
score = { role = "number", transform = "quantile" }
tags = { role = "list", length = 3 }
time = { role = "time", parts = ["weekday", "hour"] }
weight = { role = "weight" }
rating = { role = "label" }
click = { role = "label" }
buy = { role = "label" }
note = { role = "ignore" }

[tasks]
click = { condition = "click == 1" }
buy = { condition = "click == 1 and buy == 1", implies = ["click"] }
liked = { condition = "rating >= 4", labelled = "rating is not missing" }
rating = { kind = "regression", column = "rating" }
country = { kind = "multiclass", column = "country" }

[split]
method = "random"
validation = 0.2
test = 0.2
seed = 3

[slices]
german = 'country == "DE"'
"""


def make(rows: int, seed: int) -> pd.DataFrame:
  """Returns typed rows; some ages and ratings are missing."""
  rng = np.random.default_rng(seed)
  click = rng.random(rows) < 0.4
  tags = [
    list(rng.choice(["red", "blue", "new", "old", "big"], n, False))
    for n in rng.integers(0, 5, rows)
  ]
  seconds = rng.integers(0, 10**7, rows)
  return pd.DataFrame(
    {
      "row": np.arange(rows),
      "user": [f"u{i}" for i in rng.integers(0, 200, rows)],
      "country": rng.choice(["DE", "FR", "JP"], rows),
      "device": rng.choice(["phone", "desktop", "rare"], rows, p=(0.6, 0.39, 0.01)),
      "age": pd.array(np.where(rng.random(rows) < 0.1, None, rng.integers(18, 90, rows)), "Int64"),
      "price": np.round(np.exp(rng.normal(2, 1, rows)), 2),
      "score": rng.normal(0, 3, rows),
      "tags": tags,
      "time": (np.datetime64("2026-01-01", "s") + seconds).astype("datetime64[s]"),
      "weight": rng.integers(1, 5, rows),
      "rating": pd.array(np.where(rng.random(rows) < 0.3, None, rng.integers(1, 6, rows)), "Int64"),
      "click": click.astype(int),
      "buy": (click & (rng.random(rows) < 0.3)).astype(int),
      "note": [f'a, "b" {i}' for i in range(rows)],
    }
  )


def write_csv(frame: pd.DataFrame, path: str) -> str:
  """Writes rows as pandas does; lists are joined, missing ages are NA."""
  texts = frame.assign(
    tags=["|".join(t) for t in frame["tags"]],
    age=frame["age"].astype(object).where(frame["age"].notna(), "NA"),
  )
  texts.to_csv(path, index=False)
  return path


def write_parquet(frame: pd.DataFrame, path: str, row_group: int = 100) -> str:
  """Writes typed rows."""
  pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, row_group_size=row_group)
  return path
