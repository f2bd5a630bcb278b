"""Object storage and clusters: a moto server and a Dask scheduler on loopback."""

import filecmp
import os

import pytest

from configs import tabular
from data_prep import inspect, preparation, splitting
from data_prep import tabular as tabular_command
from data_prep.spec import parse_spec, read_spec
from mmoe_jax import data
from mmoe_jax.data import locations, remote_copy, vocabularies
from mmoe_jax.errors import UserError
from mmoe_jax.prediction import scoring
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.training import loop
from tests import shop_rows


@pytest.fixture
def cache_home(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> str:
  """Returns a folder with the shop's rows as CSV and Parquet, and its spec."""
  folder = tmp_path_factory.mktemp("shop")
  frame = shop_rows.make(1500, 5)
  shop_rows.write_csv(frame, str(folder / "shop.csv"))
  shop_rows.write_parquet(frame, str(folder / "shop.parquet"))
  (folder / "spec.toml").write_text(shop_rows.SPEC)
  return str(folder)


def prepare(spec, path, out, **settings):
  groups = splitting.splitters_of(spec.split, {"input": locations.expand([path])})
  return preparation.prepare(spec, groups, out, **settings)


def test_from_and_to_object_storage_the_bytes_are_the_same(
  bucket, local, tmp_path, cache_home, monkeypatch
):
  monkeypatch.setattr(vocabularies, "LARGE", 3)  # Values of `tags` are in a file.
  for name in ("shop.csv", "shop.parquet", "spec.toml"):
    locations.upload(os.path.join(local, name), f"{bucket}/raw/{name}")
  spec = read_spec(f"{bucket}/raw/spec.toml")
  for kind in ("csv", "parquet"):
    here, there = str(tmp_path / kind), f"{bucket}/{kind}"
    prepare(spec, f"{local}/shop.{kind}", here, part_bytes=20_000)
    prepare(spec, f"{bucket}/raw/*.{kind}", there, part_bytes=20_000)
    copy = remote_copy.local_folder(there)
    for folder, _, names in os.walk(here):
      for name in names:
        other = os.path.join(copy, os.path.relpath(folder, here), name)
        assert filecmp.cmp(os.path.join(folder, name), other, shallow=False), name
    assert data.verify(there) == data.verify(here)
    with pytest.raises(UserError, match="contains prepared data already"):
      prepare(spec, f"{bucket}/raw/*.{kind}", there)


def test_training_and_prediction_read_and_write_there(bucket, local, tmp_path, cache_home):
  locations.upload(os.path.join(local, "shop.parquet"), f"{bucket}/in/shop.parquet")
  spec = parse_spec(shop_rows.SPEC, "shop.toml")
  prepare(spec, f"{bucket}/in/shop.parquet", f"{bucket}/prepared")
  config = tabular.get_config(f"mmoe,data={bucket}/prepared,tasks=click+buy")
  config.train.epochs, config.train.devices = 1, 1
  loop.train_and_evaluate(config, str(tmp_path / "run"))
  predictor = Predictor(str(tmp_path / "run"))
  for end in ("csv", "parquet"):
    here, there = str(tmp_path / f"scores.{end}"), f"{bucket}/out/scores.{end}"
    scoring.score_files(predictor, [f"{local}/shop.parquet"], here, ("row",))
    scoring.score_files(predictor, [f"{bucket}/in/shop.parquet"], there, ("row",))
    locations.download(there, str(tmp_path / "copy"))
    assert filecmp.cmp(here, tmp_path / "copy", shallow=False)
  with pytest.raises(UserError, match="is the input; use another file"):
    scoring.score_files(predictor, [f"{bucket}/in/shop.parquet"], f"{bucket}/in/shop.parquet")


def test_a_preparation_without_a_manifest_is_not_read(bucket, local, cache_home, monkeypatch):
  locations.upload(os.path.join(local, "shop.csv"), f"{bucket}/half/shop.csv")
  spec = parse_spec(shop_rows.SPEC, "shop.toml")
  monkeypatch.setattr(preparation, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
  with pytest.raises(KeyboardInterrupt):
    prepare(spec, f"{bucket}/half/shop.csv", f"{bucket}/half/out")
  with pytest.raises(UserError, match="contains no prepared data, or not yet"):
    data.load(f"{bucket}/half/out", ("click",), "")
  monkeypatch.undo()


def test_a_draft_is_read_from_there(bucket, local):
  locations.upload(os.path.join(local, "shop.csv"), f"{bucket}/draft/shop.csv")
  text, _ = inspect.inspect([f"{bucket}/draft/shop.csv"])
  assert text == inspect.inspect([f"{local}/shop.csv"])[0].replace(local, f"{bucket}/draft")


def test_faults_are_one_line_without_credentials(bucket, monkeypatch, tmp_path):
  for path, kind, message in (
    (f"{bucket}/none.csv", FileNotFoundError, "No such file"),
    ("s3://no-such-bucket/x.csv", FileNotFoundError, "No such file"),
    (f"{bucket}/*.nothing", UserError, "matches no file"),
    ("s4://bucket/x", UserError, "the scheme of s4://bucket/x is 's4'"),
    ("s3:///x", UserError, "must name a bucket"),
  ):
    with pytest.raises(kind, match=message) as caught:
      locations.expand([path])
    assert "secret" not in str(caught.value)
  (tmp_path / "x").write_text("x")
  with pytest.raises((UserError, FileNotFoundError), match="no-such-bucket") as caught:
    locations.upload(str(tmp_path / "x"), "s3://no-such-bucket/x")
  assert "of-the-test" not in str(caught.value)
  monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
  monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
  with pytest.raises(UserError, match=r"s3://bucket/x\.csv: cannot be reached"):
    locations.stat("s3://bucket/x.csv")


@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_leaves_the_same_rows(local, tmp_path):
  distributed = pytest.importorskip("distributed")
  settings = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "host": "127.0.0.1"}
  spec = parse_spec(shop_rows.SPEC, "shop.toml")
  prepare(spec, f"{local}/shop.csv", str(tmp_path / "alone"), part_bytes=9000)
  with (
    distributed.LocalCluster(**settings, dashboard_address=None) as cluster,
    tabular_command._executor(cluster.scheduler_address, 0, 0) as (executor, workers),
  ):
    assert workers == 2
    prepare(
      spec,
      f"{local}/shop.csv",
      str(tmp_path / "cluster"),
      part_bytes=9000,
      executor=executor,
      workers=workers,
    )
  for name in ("schema.json", "manifest.json"):
    assert filecmp.cmp(tmp_path / "alone" / name, tmp_path / "cluster" / name, shallow=False)
  data.verify(str(tmp_path / "cluster"))
