"""Settings and fixtures of all tests: 8 virtual CPU devices, no implicit rank promotion."""

import atexit
import ctypes
import gc
import logging
import math
import os
import shutil
import sys
import tempfile

from tests import FAST_COMPILE

os.environ["JAX_PLATFORMS"] = os.environ.get("MMOE_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {FAST_COMPILE}"
)

# Many tests compile the same programs; all workers and commands share them.
if "MMOE_TEST_CACHE" not in os.environ:
  os.environ["MMOE_TEST_CACHE"] = tempfile.mkdtemp(prefix="mmoe_jax_tests_")
  atexit.register(shutil.rmtree, os.environ["MMOE_TEST_CACHE"], ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["MMOE_TEST_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Threads that compile otherwise keep a heap each.
os.environ.setdefault("MALLOC_ARENA_MAX", "4")

import jax
import pytest
from ml_collections import ConfigDict
from pyarrow import fs

from configs import smoke
from data_prep import census_income
from mmoe_jax.training import loop, population
from tests import census_rows, programs

# Tracing allocates many objects that live long; memory is bounded below.
gc.set_threshold(50_000, 20, 100)
# (B,) + (B, 1) is a bug that broadcasting would hide.
jax.config.update("jax_numpy_rank_promotion", "raise")


# Objects of imported modules stay: collections need not look at them.
gc.freeze()

STATM = "/proc/self/statm"  # Memory of this process on Linux, in pages.
# With a GPU, a process is always large: each test would compile its programs again.
OFTEN = os.path.exists(STATM) and os.environ["JAX_PLATFORMS"] == "cpu"


@pytest.fixture(scope="function" if OFTEN else "module", autouse=True)
def _bounded_memory():
  """Frees compiled programs where a worker is large; it otherwise grows to 4 GiB."""
  yield
  if _resident_gib() > 1.0:
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
      trim(0)  # The C library otherwise keeps most of the freed memory.


def _resident_gib() -> float:
  """Returns the memory of this process; infinity where the system does not report it."""
  try:
    with open(STATM, encoding="ascii") as file:
      return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
  except OSError:
    return math.inf


@pytest.fixture(scope="module")
def _shared_programs():
  """Lets runs of a module with equal settings and train rows share their compiled programs."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "compile_run", programs.remember(loop.compile_run))
    yield


@pytest.fixture(scope="session")
def raw(tmp_path_factory) -> tuple[str, str]:
  """Returns paths of a synthetic train file (2,003 rows) and test file (1,001 rows)."""
  folder = tmp_path_factory.mktemp("raw")
  paths = (str(folder / "census-income.data"), str(folder / "census-income.test"))
  for path, rows, seed in zip(paths, (2003, 1001), (1, 2), strict=True):
    census_rows.write(path, census_rows.make(rows, seed))
  return paths


@pytest.fixture(scope="session")
def prepared(raw, tmp_path_factory) -> str:
  """Returns a folder with those rows prepared."""
  out = str(tmp_path_factory.mktemp("prepared") / "census")
  census_income.prepare(*raw, out)
  return out


@pytest.fixture(scope="session")
def _config(prepared) -> ConfigDict:
  """Returns the config of which each test gets a copy."""
  config = smoke.get_config()
  config.data_dir = prepared
  config.train.devices = 1
  config.train.batch_size = 128
  # Without dropout, norm and average; tests of these enable them.
  config.model.expert_norm = "none"
  config.model.expert_dropout = config.model.embedding_dropout = config.model.tower_dropout = 0.0
  config.train.average_decay = 0.0
  # Only the last epoch is saved; tests of resuming save every one.
  config.checkpoint.every_epochs = 1000
  config.select.tasks = ("income_50k",)
  for group in ("dense", "embedding"):
    config.optimizer[group].schedule = "constant"
    config.optimizer[group].learning_rate = 5e-3
  return config


@pytest.fixture
def config(_config) -> ConfigDict:
  """Returns the smoke config on the synthetic rows, on one device."""
  return _config.copy_and_resolve_references()


@pytest.fixture(scope="module")
def bucket():
  """Starts an S3 server on loopback; yields the address of a bucket."""
  server_module = pytest.importorskip("moto.server")
  logging.getLogger("werkzeug").setLevel(logging.ERROR)
  server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
  server.start()
  host, port = server.get_host_and_port()
  settings = {
    "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    "AWS_ACCESS_KEY_ID": "key-of-the-test",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
    "AWS_DEFAULT_REGION": "us-east-1",
  }
  with pytest.MonkeyPatch.context() as patch:
    for name, value in settings.items():
      patch.setenv(name, value)
    system = fs.S3FileSystem(
      endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True
    )
    system.create_dir("bucket")
    yield "s3://bucket"
  server.stop()


@pytest.fixture
def fake_training(monkeypatch):
  """Replaces populations by fake trainings."""
  from tests.studies.fake_trainings import FakeTraining  # With scikit-learn, which few tests need.

  training = FakeTraining()
  monkeypatch.setattr(population, "train_population", training)
  return training
