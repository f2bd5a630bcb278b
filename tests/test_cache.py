"""Cache folder, and the compiled programs in it."""

import os
import subprocess
import sys
import time

import pytest

from mmoe_jax import cache
from tests import ROOT

_COMPILE = """
import jax
from mmoe_jax import cache

cache.keep_programs()
print(jax.config.jax_compilation_cache_dir)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: x @ x.T + 1)(jax.numpy.ones((3, 5))).block_until_ready()
print(sum(name.endswith("/cache_hits") for name in hits))
"""


def compile_with(**settings: str) -> list[str]:
  """Returns the folder of a process's programs, and how many it loaded from there."""
  left_out = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
  env = {k: v for k, v in os.environ.items() if k not in left_out} | settings
  command = [sys.executable, "-c", _COMPILE]
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
  assert done.stderr == ""
  return done.stdout.split()


def test_the_folder_is_below_the_users_cache(monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
  assert cache.folder() == "/somewhere/mmoe_jax"
  monkeypatch.setenv("XDG_CACHE_HOME", "")
  monkeypatch.setenv("HOME", "/home/me")
  assert cache.folder("a", "b") == "/home/me/.cache/mmoe_jax/a/b"


def test_a_second_process_need_not_compile(tmp_path):
  place, hits = compile_with(XDG_CACHE_HOME=str(tmp_path))
  assert place.startswith(str(tmp_path / "mmoe_jax" / "programs"))
  assert hits == "0"
  assert os.listdir(place)
  # Programs there are executed, so others must not write them.
  assert os.stat(place).st_mode & 0o077 == 0
  again = compile_with(XDG_CACHE_HOME=str(tmp_path))
  assert again[0] == place
  assert int(again[1]) > 0


def test_a_program_that_a_killed_process_wrote_in_part_is_compiled_and_saved_again(tmp_path):
  place, _ = compile_with(XDG_CACHE_HOME=str(tmp_path))
  programs = [os.path.join(place, name) for name in os.listdir(place) if name.endswith("-cache")]
  now = time.time()
  for path in programs:
    os.truncate(path, os.path.getsize(path) // 2)
    os.utime(path, (now, now))
  assert compile_with(XDG_CACHE_HOME=str(tmp_path)) == [place, "0"]  # Without a warning.
  assert int(compile_with(XDG_CACHE_HOME=str(tmp_path))[1]) == len(programs)


def test_jax_has_the_last_word(tmp_path):
  own = str(tmp_path / "own")
  assert compile_with(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=own)[0] == own
  off = compile_with(XDG_CACHE_HOME=str(tmp_path), JAX_ENABLE_COMPILATION_CACHE="false")
  assert off == ["None", "0"]
  assert not (tmp_path / "mmoe_jax").exists()


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null/nowhere"])
def test_an_unwritable_cache_is_disabled(home):
  assert compile_with(XDG_CACHE_HOME=home) == ["None", "0"]


@pytest.mark.slow
def test_a_cache_that_others_can_write_or_exchange_is_disabled(tmp_path):
  home = tmp_path / "home"
  home.mkdir()
  compile_with(XDG_CACHE_HOME=str(home))
  for folder in (home, home / "mmoe_jax", home / "mmoe_jax" / "programs"):
    mode = folder.stat().st_mode
    folder.chmod(mode | 0o022)
    assert compile_with(XDG_CACHE_HOME=str(home)) == ["None", "0"]
    folder.chmod(mode)
  home.chmod(0o1777)  # Like /tmp: only owners rename their entries.
  assert compile_with(XDG_CACHE_HOME=str(home))[0] != "None"
