"""What is kept between runs, in `mmoe_jax` below $XDG_CACHE_HOME or ~/.cache."""

import contextlib
import hashlib
import os
import platform
import stat

PROGRAMS = "programs"


def folder(*names: str) -> str:
  """The path of the cache, or of a part of it; nothing is made."""
  root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
  return os.path.join(root, "mmoe_jax", *names)


def keep_programs() -> None:
  """Keeps compiled programs, so that a second start with the same shapes need not compile.

  They lie in `programs/MACHINE`, a folder for each kind of processor, as a home directory may be
  shared by several. JAX's own settings have the last word: $JAX_COMPILATION_CACHE_DIR names another
  place, JAX_ENABLE_COMPILATION_CACHE=false none. Where the folder cannot be written, nothing is
  kept; nor where others can write, as what lies there is run. It may be deleted at any time.
  """
  import jax  # Not above: data preparation needs the folder, and no JAX.

  if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
    return
  path = folder(PROGRAMS, _machine())
  with contextlib.suppress(OSError):
    os.makedirs(path, mode=0o700, exist_ok=True)
    state = os.stat(path)
    own = state.st_uid == os.getuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if own and os.access(path, os.W_OK | os.X_OK):
      jax.config.update("jax_compilation_cache_dir", path)
      # What compiles faster than it is read is not worth a file.
      jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
      jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _machine() -> str:
  """A name for machines that can run each other's programs."""
  features = platform.processor()
  with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
    features = next((line for line in file if line.startswith(("flags", "Features"))), features)
  return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"
