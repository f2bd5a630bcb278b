"""Simulates a log of impressions, clicks and purchases, whose true probabilities are known.

  python -m data_prep.clicks --rows 1000000 --log data/clicks_log --out data/clicks
  python -m mmoe_jax.main --config configs/tabular.py:mmoe,data=data/clicks --workdir runs/clicks

A user (id u, Zipf-distributed) sees an item (v) in a context x. With hashed standard normal vectors
a_u, b_u of users and c_v, d_v of items, in K dimensions, b_u and d_v correlated with a_u and c_v:

  P(click | u, v, x)                = sigmoid(-2.4 + a_u·c_v / sqrt(K) + context_1(x))
  P(purchase | click = 1, u, v, x)  = sigmoid(-1.6 + b_u·d_v / sqrt(K) + context_2(x))

Exposure is selective: of EXPOSED candidates by popularity, the one with the largest a_u·c_v is
shown. A purchase needs a click, and what people would buy depends on what they would click: clicked
impressions are no random sample, the selection bias that ESMM is about (Ma et al., SIGIR 2018,
https://doi.org/10.1145/3209978.3210104). No data of a shop is imitated; it is a model whose best
possible AUC can be computed. The columns p_click and p_purchase hold P(click) and
P(click and purchase).

The log has ROWS_PER_FILE rows per Parquet file; each file depends on seed and number alone.
"""

import concurrent.futures
import os
import time
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import flags
from scipy.special import expit, ndtri

from data_prep import output, preparation, splitting, summaries
from data_prep.spec import read_spec
from mmoe_jax import commands
from mmoe_jax.errors import require

SPEC = os.path.join(os.path.dirname(__file__), "clicks.toml")
ROWS_PER_FILE = 1_000_000
EXPOSED = 2
_DIMENSION = 4
_ZIPF = 1.1  # Exponent of the popularity of users and items.
_ROW_GROUP = 1 << 17
_START = np.datetime64("2026-01-01", "s")
_SECONDS = 28 * 86_400
_COUNTRIES = np.array(["DE", "FR", "GB", "JP", "US", "BR", "IN", "NG"])
_DEVICES = np.array(["phone", "tablet", "desktop", "tv"])
_DEVICE_EFFECT = np.array([0.2, 0.0, -0.1, -0.6])
_SALT = {name: np.uint64(i << 56) for i, name in enumerate(("a", "b", "c", "d", "item", "user"), 1)}


def simulate(rows: int, seed: int, file: int, users: int, items: int) -> pa.Table:
  """Simulates a part of the log.

  Args:
    rows: number of rows.
    seed: seed of the log.
    file: number of the part.
    users: number of users.
    items: number of items.

  Returns:
    The impressions, see the module's docstring.
  """
  rng = np.random.default_rng([seed, file])
  user = _zipf(rng, users, rows)
  shown = _expose(rng, user, items, rows)
  of_user, of_item = _uniform(user, "user"), _uniform(shown, "item")
  segment = (of_user * 12).astype(np.int64)
  category = (of_item * 24).astype(np.int64)
  price = np.exp(2.5 + ndtri(_uniform(shown, "item", 1)))
  discount = np.where(rng.random(rows) < 0.3, rng.integers(1, 7, rows) * 5, 0)
  age = (18 + 60 * _uniform(user, "user", 1)).astype(np.int64)
  country = (_uniform(user, "user", 2) ** 2 * len(_COUNTRIES)).astype(np.int64)
  device = rng.choice(len(_DEVICES), rows, p=(0.6, 0.1, 0.25, 0.05))
  position = rng.integers(1, 11, rows)
  depth = rng.geometric(0.2, rows)
  seconds = np.sort(rng.integers(0, _SECONDS, rows))
  hour = seconds // 3600 % 24
  evening = np.cos((hour - 20) / 24 * 2 * np.pi)
  fits = np.cos(segment * 2.4 + category * 1.7)
  likes = _affinity(user, shown, "a", "c")
  wants = 0.6 * likes + 0.8 * _affinity(user, shown, "b", "d")
  click_logit = (
    -2.4
    + likes
    + 0.6 * fits
    - 0.12 * (position - 1)
    + _DEVICE_EFFECT[device]
    + 0.2 * evening
    + 0.01 * discount
    - 0.05 * np.minimum(depth, 20)
  )
  buy_logit = (
    -1.6
    + wants
    + 0.4 * fits
    - 0.5 * (np.log(price) - 2.5)
    + 0.03 * discount
    + 0.01 * (age - 45)
    + 0.3 * (device == 2)
  )
  p_click, p_buy = expit(click_logit), expit(buy_logit)
  click = rng.random(rows) < p_click
  purchase = click & (rng.random(rows) < p_buy)
  lacks_age = _uniform(user, "user", 3) < 0.15
  return pa.table(
    {
      "impression": np.arange(file * ROWS_PER_FILE, file * ROWS_PER_FILE + rows),
      "time": pa.array((_START + seconds).astype("datetime64[s]")),
      "user_id": user,
      "item_id": shown,
      "user_segment": segment.astype(np.int8),
      "user_country": _names(country, _COUNTRIES),
      "user_age": pa.array(age.astype(np.int16), mask=lacks_age),
      "device": _names(device, _DEVICES),
      "position": position.astype(np.int8),
      "session_depth": depth.astype(np.int16),
      "item_category": category.astype(np.int8),
      "item_brand": (of_item * 500).astype(np.int16),
      "item_price": np.round(price, 2),
      "item_tags": _tags(rng, shown, rows),
      "discount": discount.astype(np.int8),
      "item_age_days": np.floor(400 * _uniform(shown, "item", 2) ** 2).astype(np.int16),
      "click": click.astype(np.int8),
      "purchase": purchase.astype(np.int8),
      "p_click": p_click,
      "p_purchase": p_click * p_buy,
    }
  )


def write_log(
  folder: str, rows: int, seed: int, users: int, items: int, workers: int = 0
) -> list[str]:
  """Writes the log as Parquet files.

  Args:
    folder: output folder.
    rows: number of rows.
    seed: seed.
    users: number of users.
    items: number of items.
    workers: processes; 0 for one per core.

  Returns:
    Paths of the files.

  Raises:
    UserError: if the folder holds other files, or a number is impossible.
  """
  for name, value in (("rows", rows), ("users", users), ("items", items)):
    require(1 <= value < 1 << 40, f"--{name}={value}: must be at least 1")
  require(seed >= 0, f"--seed={seed}: must be at least 0")
  os.makedirs(folder, exist_ok=True)
  files = -(-rows // ROWS_PER_FILE)
  paths = [os.path.join(folder, f"part-{i:05d}.parquet") for i in range(files)]
  others = sorted(set(os.listdir(folder)) - {os.path.basename(path) for path in paths})
  require(not others, f"--log={folder}: contains {others[0] if others else ''}; use another folder")
  counts = [min(ROWS_PER_FILE, rows - i * ROWS_PER_FILE) for i in range(files)]
  jobs = [(p, n, seed, i, users, items) for i, (p, n) in enumerate(zip(paths, counts, strict=True))]
  workers = min(files, workers or os.cpu_count() or 1)
  if workers == 1:
    for job in jobs:
      _write(job)
    return paths
  context = get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
    list(pool.map(_write, jobs))
  return paths


def _write(job: tuple[str, int, int, int, int, int]) -> None:
  path, rows, *rest = job
  tmp_path = f"{path}.part"
  pq.write_table(simulate(rows, *rest), tmp_path, row_group_size=_ROW_GROUP)
  os.replace(tmp_path, path)


def _names(codes: np.ndarray, names: np.ndarray) -> pa.Array:
  return pa.DictionaryArray.from_arrays(codes.astype(np.int8), names).cast(pa.string())


def _zipf(rng: np.random.Generator, size: int, rows: int) -> np.ndarray:
  """Draws ids from 0 to size − 1; the probability of id i falls as (i + 1)^−_ZIPF.

  Inverts the distribution function of the continuous power law, so any size takes no memory.
  """
  power = 1 - _ZIPF
  u = rng.random(rows)
  x = (1 + u * ((size + 1.0) ** power - 1)) ** (1 / power)
  return np.minimum(x.astype(np.int64) - 1, size - 1)


def _expose(rng: np.random.Generator, user: np.ndarray, items: int, rows: int) -> np.ndarray:
  """Draws EXPOSED candidates by popularity, and returns the one that each user likes best."""
  best = _zipf(rng, items, rows)
  most = _affinity(user, best, "a", "c")
  for _ in range(EXPOSED - 1):
    other = _zipf(rng, items, rows)
    likes = _affinity(user, other, "a", "c")
    best = np.where(likes > most, other, best)
    most = np.maximum(likes, most)
  return best


def _affinity(user: np.ndarray, item: np.ndarray, of_user: str, of_item: str) -> np.ndarray:
  total = np.zeros(len(user))
  for k in range(_DIMENSION):
    total += ndtri(_uniform(user, of_user, k)) * ndtri(_uniform(item, of_item, k))
  return total / np.sqrt(_DIMENSION)


def _uniform(ids: np.ndarray, name: str, k: int = 0) -> np.ndarray:
  """Returns a number in (0, 1) for each id, by a hash of id, name and k."""
  keys = (ids.astype(np.uint64) << np.uint64(4)) + np.uint64(k)
  return splitting.uniform(keys ^ _SALT[name]) * (1 - 2e-16) + 1e-16


def _tags(rng: np.random.Generator, item: np.ndarray, rows: int) -> pa.Array:
  """Returns 0 to 3 of 200 tags of each item, by a hash."""
  counts = (_uniform(item, "item", 3) * 4).astype(np.int64)
  offsets = np.concatenate([[0], np.cumsum(counts)])
  of_row = np.repeat(np.arange(rows), counts)
  index = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
  draws = np.stack([_uniform(item, "item", 4 + k) for k in range(3)])[index, of_row]
  numbers = pa.array((draws**2 * 200).astype(np.int16))
  names = pa.array([f"tag{i}" for i in range(200)])
  return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), names.take(numbers))


def main(argv: list[str]) -> None:
  """Writes a log, and prepares it if --out is given."""
  del argv
  start = time.perf_counter()
  if _OUT.value:
    output.check_out(_OUT.value)
  paths = write_log(_LOG.value, _ROWS.value, _SEED.value, _USERS.value, _ITEMS.value)
  seconds = time.perf_counter() - start
  print(f"{_ROWS.value:,} impressions in {_LOG.value}, {_ROWS.value / seconds:,.0f} rows/s")
  if _OUT.value:
    spec = read_spec(SPEC)
    groups = splitting.splitters_of(spec.split, {"input": paths})
    print(summaries.format_schema(preparation.prepare(spec, groups, _OUT.value), _OUT.value))


if __name__ == "__main__":
  _ROWS = flags.DEFINE_integer("rows", 1_000_000, "Impressions.")
  _LOG = flags.DEFINE_string("log", None, "Folder for the log, Parquet.", required=True)
  _OUT = flags.DEFINE_string("out", "", "Folder for prepared data; empty to write the log only.")
  _USERS = flags.DEFINE_integer("users", 100_000, "Users.")
  _ITEMS = flags.DEFINE_integer("items", 20_000, "Items.")
  _SEED = flags.DEFINE_integer("seed", 0, "Seed.")
  commands.run(main)
