"""Files on this machine and in object storage (`s3://`, `gs://`), by one set of functions.

Arrow's own file systems do the work. Credentials come from where AWS' and Google's own tools look
for them: environment, profile, machine. $AWS_ENDPOINT_URL names another S3 server.
"""

import contextlib
import fnmatch
import glob
import os
import posixpath
import shutil
from collections.abc import Iterator, Sequence
from typing import IO, Any
from urllib.parse import urlparse

from mmoe_jax.errors import UserError, require, require_known

_SCHEMES = ("s3", "gs")
_BLOCK = 1 << 22  # Bytes that are copied at a time.


def is_remote(path: str) -> bool:
  """Returns whether a path is in object storage."""
  return "://" in path


def join(folder: str, *names: str) -> str:
  """Joins path components, local or remote."""
  return (posixpath if is_remote(folder) else os.path).join(folder, *names)


def require_readable(path: str) -> None:
  """Validates that a path is a file.

  Raises:
    UserError: for a folder, pipe or device, or a name that no file has.
    OSError: if it does not exist.
  """
  if is_remote(path):
    stat(path)
    return
  require(
    "\0" not in path and path.encode("utf-8", "ignore").decode() == path,
    f"{path!r}: contains characters that no file name has, or that the locale cannot express",
  )
  os.stat(path)
  require(os.path.isfile(path), f"{path}: must be a file, not a folder, pipe or device")


def stat(path: str) -> tuple[int, int]:
  """Returns size in bytes and time of the last change in nanoseconds.

  Raises:
    OSError: if there is no such file.
  """
  if not is_remote(path):
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
  from pyarrow import fs

  with _remote_errors(path):
    system, inner = _filesystem(path)
    info = system.get_file_info(inner)
  require(info.type != fs.FileType.Directory, f"{path}: must be a file, not a folder")
  if info.type == fs.FileType.NotFound:
    raise FileNotFoundError(2, "No such file", path)
  return info.size, info.mtime_ns or 0


def exists(path: str) -> bool:
  """Returns whether there is a file."""
  try:
    stat(path)
  except (FileNotFoundError, NotADirectoryError):
    return False
  return True


def open_input(path: str) -> IO[bytes]:
  """Opens a file for reading bytes at any position."""
  if not is_remote(path):
    return open(path, "rb")
  with _remote_errors(path):
    system, inner = _filesystem(path)
    return system.open_input_file(inner)


def read_range(path: str, start: int, end: int) -> bytes:
  """Reads the bytes [start, end) of a file."""
  with _remote_errors(path), open_input(path) as file:
    file.seek(start)
    return file.read(end - start)


def read_text(path: str) -> str:
  """Reads a text file.

  Raises:
    UserError: if it is not UTF-8.
  """
  with _remote_errors(path), open_input(path) as file:
    content = file.read()
  try:
    return content.decode("utf-8")
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: not a text file in UTF-8 ({error})") from error


def expand(patterns: Sequence[str]) -> list[str]:
  """Returns the files that paths and patterns with `*` name, each pattern's in order of names.

  Raises:
    UserError: for a pattern that matches nothing.
    OSError: for a path that does not exist.
  """
  found = []
  for pattern in patterns:
    if not set("*?[") & set(pattern) or (not is_remote(pattern) and os.path.exists(pattern)):
      require_readable(pattern)
      found.append(pattern)
      continue
    matches = _list_remote(pattern) if is_remote(pattern) else sorted(glob.glob(pattern))
    require(bool(matches), f"{pattern}: matches no file")
    found += matches
  return found


def upload(source: str, target: str) -> None:
  """Copies a local file to object storage; the target appears complete or not at all."""
  with _remote_errors(target), open(source, "rb") as file:
    system, inner = _filesystem(target)
    with system.open_output_stream(inner) as output:
      shutil.copyfileobj(file, output, _BLOCK)


def download(source: str, target: str) -> None:
  """Copies a file to this machine, atomically."""
  os.makedirs(os.path.dirname(target), exist_ok=True)
  tmp_path = f"{target}.{os.getpid()}.part"
  try:
    with _remote_errors(source), open_input(source) as file, open(tmp_path, "wb") as output:
      shutil.copyfileobj(file, output, _BLOCK)
    os.replace(tmp_path, target)
  finally:
    if os.path.exists(tmp_path):
      os.remove(tmp_path)


def remove(path: str) -> None:
  """Removes a file in object storage."""
  with _remote_errors(path):
    system, inner = _filesystem(path)
    system.delete_file(inner)


def list_names(folder: str) -> list[str]:
  """Returns the names of all files below a folder in object storage, relative to it."""
  from pyarrow import fs

  with _remote_errors(folder):
    system, inner = _filesystem(folder)
    selector = fs.FileSelector(inner.rstrip("/"), recursive=True, allow_not_found=True)
    infos = system.get_file_info(selector)
  files = [info.path for info in infos if info.type == fs.FileType.File]
  return sorted(posixpath.relpath(path, inner.rstrip("/")) for path in files)


def _list_remote(pattern: str) -> list[str]:
  base = pattern[: min(pattern.index(c) for c in "*?[" if c in pattern)].rpartition("/")[0]
  names = [join(base, name) for name in list_names(base)]
  return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def _filesystem(path: str) -> tuple[Any, str]:
  """Returns Arrow's file system of a remote path, and the path there."""
  from pyarrow import fs

  parts = urlparse(path)
  require_known(parts.scheme, _SCHEMES, f"the scheme of {path}")
  require(bool(parts.netloc), f"{path}: must name a bucket, such as {parts.scheme}://bucket/file")
  inner = f"{parts.netloc}{parts.path}"
  if parts.scheme == "gs":
    endpoint = os.environ.get("STORAGE_EMULATOR_HOST")
    if not endpoint:
      return fs.GcsFileSystem(), inner
    server = urlparse(endpoint if "://" in endpoint else f"http://{endpoint}")
    return fs.GcsFileSystem(
      anonymous=True, scheme=server.scheme, endpoint_override=server.netloc
    ), inner
  settings: dict[str, Any] = {}
  endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
  if endpoint:
    server = urlparse(endpoint)
    settings = {"endpoint_override": server.netloc, "scheme": server.scheme}
  region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
  if region or endpoint:
    settings["region"] = region or "us-east-1"
  else:
    settings["region"] = fs.resolve_s3_region(parts.netloc)
  return fs.S3FileSystem(**settings), inner


@contextlib.contextmanager
def _remote_errors(path: str) -> Iterator[None]:
  """Turns errors of object storage into UserError; the others pass."""
  try:
    yield
  except FileNotFoundError as error:
    raise FileNotFoundError(2, "No such file", path) from error
  except OSError as error:
    if not is_remote(path):
      raise
    text = str(error)
    if "ACCESS_DENIED" in text or "403" in text or "Forbidden" in text:
      reason = "no permission; check the credentials in the environment"
    elif "NO_SUCH_BUCKET" in text or ("Bucket" in text and "not found" in text):
      reason = "there is no such bucket"
    elif "404" in text or "NO_SUCH_KEY" in text or "RESOURCE_NOT_FOUND" in text:
      raise FileNotFoundError(2, "No such file", path) from error
    else:
      reason = f"cannot be reached: {text.splitlines()[0][:300]}"
    raise UserError(f"{path}: {reason}") from error
