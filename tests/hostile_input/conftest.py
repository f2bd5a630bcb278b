"""A prepared table, a run on it, and the reference encoder of its rows."""

import pytest

from configs import tabular
from data_prep import preparation, splitting
from data_prep.spec import parse_spec
from mmoe_jax.export import bundle
from mmoe_jax.export.encoder import Encoder
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.training import loop
from tests import shop_rows


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> str:
  """Returns a folder with rows.csv, rows.parquet, prepared data and a run of two tasks."""
  folder = str(tmp_path_factory.mktemp("hostile"))
  path = shop_rows.write_csv(shop_rows.make(1500, 5), f"{folder}/shop.csv")
  spec = parse_spec(shop_rows.SPEC, "shop.toml")
  groups = splitting.splitters_of(spec.split, {"input": [path]})
  preparation.prepare(spec, groups, f"{folder}/data")
  config = tabular.get_config(f"mmoe,data={folder}/data,tasks=click+buy")
  config.train.epochs, config.train.devices = 1, 1
  loop.train_and_evaluate(config, f"{folder}/run")
  shop_rows.write_csv(shop_rows.make(60, 8), f"{folder}/rows.csv")
  shop_rows.write_parquet(shop_rows.make(60, 8), f"{folder}/rows.parquet")
  return folder


@pytest.fixture(scope="session")
def predictor(shop) -> Predictor:
  return Predictor(f"{shop}/run")


@pytest.fixture(scope="session")
def exported(predictor, tmp_path_factory) -> str:
  """Returns the folder of the run's export."""
  folder = str(tmp_path_factory.mktemp("exported") / "model")
  bundle.export(predictor, folder, ["stablehlo"])
  return folder


@pytest.fixture(scope="session")
def reference(exported) -> Encoder:
  """Returns the encoder of exports: one row at a time, NumPy only, no code of the package."""
  return Encoder(exported)
