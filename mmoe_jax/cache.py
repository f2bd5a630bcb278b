"""Cache between runs: `mmoe_jax` in $XDG_CACHE_HOME or ~/.cache."""

import contextlib
import hashlib
import os
import platform
import stat
import time
import zlib

PROGRAMS = "programs"
_CHECKED = "checked"  # File in a folder of programs: its time is that of the last check.
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


def folder(*names: str) -> str:
  """Returns the path of the cache, or of a folder in it, which may not exist."""
  root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
  return os.path.join(root, "mmoe_jax", *names)


def keep_programs() -> None:
  """Saves compiled programs, so that a second start with the same shapes does not compile.

  They are in `programs/MACHINE`, one folder per kind of processor, because machines may share a
  home directory. JAX's settings take precedence: $JAX_COMPILATION_CACHE_DIR sets another folder,
  JAX_ENABLE_COMPILATION_CACHE=false disables the cache. It is also disabled if the folder cannot be
  written, or if other users can write it or exchange it, because programs in it are executed. The
  folder may be deleted at any time; results do not depend on it.
  """
  import jax  # Imported here, because data preparation uses `folder` without JAX.

  if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
    return
  path = folder(PROGRAMS, _machine())
  with contextlib.suppress(OSError):
    os.makedirs(path, mode=0o700, exist_ok=True)
    if _is_private(path) and os.access(path, os.W_OK | os.X_OK):
      _remove_broken(path)
      jax.config.update("jax_compilation_cache_dir", path)
      # Programs that compile faster than they load are not saved.
      jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
      jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _remove_broken(folder: str) -> None:
  """Removes programs of which a killed process wrote a part only.

  JAX does not replace them: every later start would print a warning for each, and compile it again.
  Only programs since the last check are read.
  """
  mark, start = os.path.join(folder, _CHECKED), time.time()
  last = os.stat(mark).st_mtime if os.path.exists(mark) else 0.0
  for entry in os.scandir(folder):
    if (
      entry.name.endswith("-cache") and entry.stat().st_mtime >= last and not _is_whole(entry.path)
    ):
      os.remove(entry.path)
  with open(mark, "w", encoding="utf-8"):
    os.utime(mark, (start, start))


def _is_whole(path: str) -> bool:
  """Returns whether a compressed program ends as it must; true for an unknown compression."""
  with open(path, "rb") as file:
    content = file.read()
  try:
    if content.startswith(_ZSTANDARD):
      import zstandard  # JAX uses it if it is installed.

      zstandard.ZstdDecompressor().decompress(content)
    else:
      zlib.decompress(content)
  except ImportError:
    return True
  except Exception:  # zlib.error or ZstdError.
    return False
  return True


def _is_private(path: str) -> bool:
  """Returns whether only this user and root can write a folder, or rename one above it."""
  path = os.path.realpath(path)
  if os.stat(path).st_uid != os.getuid():
    return False
  while True:
    state = os.stat(path)
    others_write = state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    # In a folder with the sticky bit, such as /tmp, only owners rename their entries.
    if state.st_uid not in (0, os.getuid()) or (others_write and not state.st_mode & stat.S_ISVTX):
      return False
    parent = os.path.dirname(path)
    if parent == path:
      return True
    path = parent


def _machine() -> str:
  """Returns a name shared by machines that can run each other's programs."""
  features = platform.processor()
  with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
    features = next((line for line in file if line.startswith(("flags", "Features"))), features)
  return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"
