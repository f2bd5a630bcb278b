"""Strictness for all tests: 8 virtual CPU devices, warnings are errors, no silent broadcasting."""

import atexit
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = os.environ.get("MMOE_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_force_host_platform_device_count=8"
  # Most of a test is compiling, and what it compiles runs on a few rows.
  + " --xla_backend_optimization_level=0"
)

# Many tests compile the same program; each is compiled once a session, by whichever worker or
# command line.
if "MMOE_TEST_CACHE" not in os.environ:
  os.environ["MMOE_TEST_CACHE"] = tempfile.mkdtemp(prefix="mmoe_jax_tests_")
  atexit.register(shutil.rmtree, os.environ["MMOE_TEST_CACHE"], ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["MMOE_TEST_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest
from ml_collections import ConfigDict

from configs import smoke
from data_prep import census_income
from mmoe_jax import population
from tests import census_rows

# (B,) + (B, 1) is a bug that broadcasting would hide.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def raw(tmp_path_factory) -> tuple[str, str]:
  """Paths of a made train file (2,003 rows) and test file (1,001 rows) in the raw format."""
  folder = tmp_path_factory.mktemp("raw")
  paths = (str(folder / "census-income.data"), str(folder / "census-income.test"))
  for path, rows, seed in zip(paths, (2003, 1001), (1, 2), strict=True):
    census_rows.write(path, census_rows.make(rows, seed))
  return paths


@pytest.fixture(scope="session")
def prepared(raw, tmp_path_factory) -> str:
  """A folder with those rows prepared."""
  out = str(tmp_path_factory.mktemp("prepared") / "census")
  census_income.prepare(*raw, out)
  return out


@pytest.fixture
def config(prepared) -> ConfigDict:
  """The smoke config on the made rows, on one device."""
  config = smoke.get_config()
  config.data_dir = prepared
  config.train.devices = 1
  config.train.batch_size = 128
  # Plain, whatever the configs choose: tests of dropout and the like ask for them.
  config.model.expert_norm = "none"
  config.model.expert_dropout = config.model.embedding_dropout = config.model.tower_dropout = 0.0
  config.train.average_decay = 0.0
  config.select.tasks = ("income_50k",)
  for group in ("dense", "embedding"):
    config.optimizer[group].schedule = "constant"
    config.optimizer[group].learning_rate = 5e-3
  return config


@pytest.fixture
def made_up(monkeypatch):
  """Puts made-up trainings in the place of populations."""
  from tests.made_up_trainings import MadeUp  # With scikit-learn, which few tests need.

  training = MadeUp()
  monkeypatch.setattr(population, "train_population", training)
  return training
