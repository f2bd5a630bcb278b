"""Output folders of preparation: written apart, and put in place when complete."""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator

from mmoe_jax import data, errors
from mmoe_jax.errors import UserError

UNFINISHED = ".shard-"  # Prefix of a shard that is being written; a kill leaves it.
STORED = ("ids", "numbers", "labels", "weights", "slices", "rows")  # Arrays of a split.
_OURS = re.compile(
  rf"({'|'.join(data.SPLITS)})(/\d{{5}})?(/({'|'.join(STORED)})\.npy)?|vocabularies(/[^/]+\.arrow)?"
)


@contextlib.contextmanager
def replace_folder(out: str) -> Iterator[str]:
  """Yields a temporary folder that replaces `out` if the context ends without an error.

  Args:
    out: output folder; an earlier preparation in it is replaced only when the new one is complete.

  Raises:
    UserError: if `out` contains anything but prepared data.
    OSError: if it cannot be written.
  """
  out, parent, name = check_out(out)
  tmp_path = tempfile.mkdtemp(dir=parent, prefix=f".{name}-", suffix=".new")
  try:
    with in_use(tmp_path):
      yield tmp_path
    put_in_place(tmp_path, out)
  finally:
    shutil.rmtree(tmp_path, ignore_errors=True)


@contextlib.contextmanager
def resume_folder(out: str, identity: str) -> Iterator[str]:
  """Yields a temporary folder like `replace_folder`, which survives a kill.

  After a kill, the next call with the same `identity` yields the folder as it was.

  Args:
    out: output folder.
    identity: digest of everything that the output depends on.

  Raises:
    UserError: if `out` contains anything but prepared data, or another process prepares it.
    OSError: if it cannot be written.
  """
  out, parent, name = check_out(out)
  tmp_path = os.path.join(parent, f".{name}.partial")
  os.makedirs(tmp_path, exist_ok=True)
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(in_use(tmp_path))
    except BlockingIOError as error:
      raise UserError(f"{out}: another process prepares it") from error
    label = os.path.join(tmp_path, "identity")
    known = ""
    if os.path.isfile(label):
      with open(label, encoding="utf-8") as file:
        known = file.read()
    if known != identity:
      _empty(tmp_path)
      with open(label, "w", encoding="utf-8") as file:
        file.write(identity)
    folder = os.path.join(tmp_path, "data")
    os.makedirs(folder, exist_ok=True)
    try:
      yield folder
      _remove_unfinished(folder)
      put_in_place(folder, out)
    except Exception:  # An interrupt leaves the folder; after an error, start again.
      shutil.rmtree(tmp_path, ignore_errors=True)
      raise
    shutil.rmtree(tmp_path)


def check_out(out: str) -> tuple[str, str, str]:
  """Validates an output folder, and removes the remains of killed preparations.

  Returns:
    The folder's absolute path, its parent and its name.
  """
  errors.require(bool(out), "--out is empty: must be a folder")
  out = os.path.abspath(out)
  parent, name = os.path.split(out)
  if os.path.lexists(out):
    _require_replaceable(out)
  os.makedirs(parent, exist_ok=True)
  _clean_up(parent, name)
  return out, parent, name


def put_in_place(tmp_path: str, out: str) -> None:
  """Moves a finished folder to its place; earlier data there is removed."""
  parent, name = os.path.split(out)
  os.chmod(tmp_path, 0o777 & ~_umask())  # mkdtemp makes it readable for its owner only.
  if os.path.lexists(out):
    _require_replaceable(out)  # Files may have been added during the preparation.
    # A folder that only this process uses; after a kill, `_clean_up` moves the data back.
    before = tempfile.mkdtemp(dir=parent, prefix=f".{name}-", suffix=".before")
    with in_use(before):
      os.rename(out, os.path.join(before, name))
      os.rename(tmp_path, out)
      shutil.rmtree(before)
  else:
    os.rename(tmp_path, out)


@contextlib.contextmanager
def in_use(folder: str) -> Iterator[None]:
  """Marks a temporary folder as used by this process; the system removes the mark at its end."""
  number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
  try:
    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
  finally:
    os.close(number)


def _empty(folder: str) -> None:
  for entry in os.scandir(folder):
    if entry.is_dir(follow_symlinks=False):
      shutil.rmtree(entry.path)
    else:
      os.remove(entry.path)


def _remove_unfinished(folder: str) -> None:
  """Removes shards that killed processes were writing; all parts are finished in others."""
  for base, folders, _ in os.walk(folder):
    for name in [name for name in folders if name.startswith(UNFINISHED)]:
      folders.remove(name)
      shutil.rmtree(os.path.join(base, name))


def _clean_up(parent: str, name: str) -> None:
  """Removes temporary folders of killed preparations of `name`; earlier data in them returns."""
  pattern = re.compile(rf"\.{re.escape(name)}-[a-z0-9_]{{8}}\.(new|before)")
  for entry in filter(pattern.fullmatch, os.listdir(parent)):
    path = os.path.join(parent, entry)
    with contextlib.suppress(OSError), in_use(path):  # In use by another process, or not ours.
      earlier = os.path.join(path, name)
      if os.path.isdir(earlier) and not os.path.lexists(os.path.join(parent, name)):
        os.rename(earlier, os.path.join(parent, name))
      shutil.rmtree(path)


def _require_replaceable(out: str) -> None:
  """Raises UserError unless a folder contains prepared data and nothing else."""
  found = []
  if os.path.isdir(out) and not os.path.islink(out):
    for folder, folders, names in os.walk(out):
      found += [os.path.relpath(os.path.join(folder, n), out) for n in [*folders, *names]]
  is_prepared = data.SCHEMA_FILE in found or not found
  others = sorted(
    name
    for name in found
    if name not in (data.SCHEMA_FILE, data.MANIFEST) and not _OURS.fullmatch(name)
  )
  errors.require(
    os.path.isdir(out) and not os.path.islink(out) and is_prepared and not others,
    f"{out}: exists and is not a folder of prepared data alone"
    + (f" (it contains {others[0]})" if others else "")
    + "; use another --out",
  )


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask
