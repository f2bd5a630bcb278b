"""Hostile archives of raw files: verified files, or one line; nothing is written elsewhere."""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import tarfile
import time
import tracemalloc
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import raw_files
from mmoe_jax.errors import UserError
from tests.hostile_input.faults import HangError, fuzz, limited, mutate, refusal

CONTENTS = {"a.data": b"1, 2, 3\n" * 500, "b.test": b"4, 5, 6\n" * 300}
FILES = tuple(
  raw_files.RawFile((name, f"other_{name}.csv"), len(content), hashlib.sha256(content).hexdigest())
  for name, content in CONTENTS.items()
)
DATASET = raw_files.Dataset(FILES, (), "no advice")
NAMES = (
  *("a.data", "b.test", "./a.data", "deep/er/b.test", "../a.data", "/etc/a.data", "a.data.gz"),
  *(
    "../../../../b.test",
    "..",
    ".",
    "",
    "/",
    "a.data/",
    "a\\..\\b.test",
    "\udcffa.data",
    "é" * 150,
  ),
  *("x.csv.zip", "inner.tgz", "inner.tar.gz", "b.test.gz.gz", "A.DATA", "a.data\0b", "C:/a.data"),
)
KINDS = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
KINDS = (*KINDS, tarfile.DIRTYPE, tarfile.CONTTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)


def add(tar, name, content=b"", kind=tarfile.REGTYPE, link="", size=None) -> None:
  info = tarfile.TarInfo(name)
  info.size, info.type, info.linkname = len(content) if size is None else size, kind, link
  tar.addfile(info, io.BytesIO(content) if size is None else None)


def good_tar(mode="w:gz") -> bytes:
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode=mode) as tar:
    for name, content in CONTENTS.items():
      add(tar, f"folder/{name}", content)
  return file.getvalue()


def good_zip() -> bytes:
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in CONTENTS.items():
      archive.writestr(f"folder/{name}", content)
  return file.getvalue()


def unpack(folder, content: bytes, name="archive") -> str | None:
  """Unpacks an archive; returns the refusal. Only the cache may change, and only by good files."""
  cache, path = folder / "cache", folder / name
  path.write_bytes(content)
  (folder / "canary").mkdir(exist_ok=True)
  reason = refusal(lambda: raw_files.obtain(str(path), str(cache), lambda _: None, DATASET))
  found = {p.relative_to(folder).as_posix() for p in folder.rglob("*")}
  files = {f"cache/{n}" for n in CONTENTS}
  assert found <= {"cache", "canary", name, *files}
  for file in files & found:
    assert (folder / file).read_bytes() == CONTENTS[file.removeprefix("cache/")]
    assert not (folder / file).is_symlink()
  if reason is None:
    assert files <= found
  for file in files & found:
    (folder / file).unlink()
  return reason


@fuzz(40)
@given(rng=st.randoms(use_true_random=False), form=st.sampled_from(["gz", "bz2", "xz", "", "zip"]))
def test_damaged_archives_give_verified_files_or_are_refused(tmp_path_factory, rng, form):
  folder = tmp_path_factory.mktemp("archive")
  good = good_zip() if form == "zip" else good_tar(f"w:{form}")
  assert unpack(folder, good) is None
  unpack(folder, mutate(good, rng))


@fuzz(40)
@given(draw=st.data())
def test_hostile_members_give_verified_files_or_are_refused(tmp_path_factory, draw):
  folder = tmp_path_factory.mktemp("archive")
  file = io.BytesIO()
  contents = [
    *CONTENTS.values(),
    b"",
    gzip.compress(CONTENTS["a.data"], mtime=0),
    good_zip(),
    good_tar(),
  ]
  members = draw.draw(
    st.lists(
      st.tuples(
        st.sampled_from(NAMES),
        st.sampled_from(contents),
        st.sampled_from(KINDS),
        st.sampled_from(["", "/etc/passwd", "../../x", "a.data", "deep/er/b.test"]),
      ),
      max_size=6,
    )
  )
  with tarfile.open(fileobj=file, mode="w:gz") as tar:
    for name, content, kind, link in members:
      add(tar, name, content, kind, link)
  unpack(folder, file.getvalue())


@fuzz(20)
@given(names=st.lists(st.sampled_from(NAMES[:-2]), max_size=6), draw=st.data())
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_zips_give_verified_files_or_are_refused(tmp_path_factory, names, draw):
  folder = tmp_path_factory.mktemp("archive")
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    for name in names:
      if "\udcff" not in name:
        contents = [*CONTENTS.values(), b"", good_tar(), good_zip()]
        info = zipfile.ZipInfo(name or "x")
        info.external_attr = draw.draw(st.sampled_from([0, 0o120777 << 16, 0o644 << 16]))
        archive.writestr(info, draw.draw(st.sampled_from(contents)))
  unpack(folder, file.getvalue())


def test_links_of_an_archive_are_not_followed(tmp_path):
  secret = tmp_path / "secret"
  secret.write_bytes(CONTENTS["a.data"])
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w") as tar:
    add(tar, "a.data", kind=tarfile.SYMTYPE, link=str(secret))
    add(tar, "b.test", CONTENTS["b.test"])
  (tmp_path / "in").mkdir()
  assert "contains no a.data" in unpack(tmp_path / "in", file.getvalue())


def zeros(tar, name, kind, gib: float) -> None:
  """Adds a member of that many GiB of zeros."""

  class Zeros(io.RawIOBase):
    def read(self, size=-1):
      return bytes(size)

  info = tarfile.TarInfo(name)
  info.type, info.size = kind, int(gib * 2**30)
  tar.addfile(info, Zeros())


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_of_an_archive_are_bounded_in_memory(tmp_path, kind):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
    zeros(tar, "x", kind, 0.1)
    for name, content in CONTENTS.items():
      add(tar, name, content)
  tracemalloc.start()
  reason = unpack(tmp_path, file.getvalue())
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert reason
  assert "header" in reason
  assert peak < 20 << 20


@pytest.mark.parametrize("name", ["a.data", "a.data.gz", "inner.csv.zip"])
def test_members_that_expand_are_bounded_in_memory_and_on_disk(tmp_path, name):
  bomb = bytes(1 << 26)
  if name.endswith(".gz"):
    bomb = gzip.compress(bomb, 1)
  elif name.endswith(".zip"):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
      archive.writestr("a.data", bomb)
    bomb = packed.getvalue()
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
    add(tar, name, bomb)
  del bomb
  content = file.getvalue()
  tracemalloc.start()
  reason = unpack(tmp_path, content)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert "too long" in reason
  assert peak < 20 << 20


def test_an_archive_of_endless_other_members_is_refused_soon(tmp_path):
  """Members are read one after another, so a large one would take its time."""
  info = tarfile.TarInfo("other")
  info.size = 1 << 50
  with limited(10):
    assert "too large" in unpack(tmp_path, info.tobuf() + bytes(1 << 16))


@pytest.mark.parametrize(
  "content",
  [
    *(b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), bytes(10240), b"\x1f\x8b", b"\x1f\x8b\x08"),
    *(gzip.compress(b"", mtime=0), bz2.compress(b"a" * 100), lzma.compress(b"a" * 100)),
    *(good_tar()[:-20], good_zip()[:-5]),
  ],
)
def test_archives_without_the_files_are_one_line(tmp_path, content):
  assert unpack(tmp_path, content)


def test_an_archive_of_itself_ends(tmp_path):
  """Archives inside archives are opened once, not without end."""
  inner = good_zip()
  for _ in range(20):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
      archive.writestr("x.csv.zip", inner)
      archive.writestr("x.tgz", good_tar())
    inner = packed.getvalue()
  unpack(tmp_path, inner)
  assert os.listdir(tmp_path / "canary") == []


def test_the_time_limit_of_cases_works():
  with pytest.raises(HangError), limited(0.05):
    time.sleep(5)


def test_a_source_that_is_no_archive_is_one_line(tmp_path):
  for kind in ("missing", "empty folder"):
    path = tmp_path / kind
    if kind == "empty folder":
      path.mkdir()
    with pytest.raises(UserError):
      raw_files.obtain(str(path), str(tmp_path / "cache"), lambda _: None, DATASET)
