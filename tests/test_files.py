"""Atomic writes, and digests of files and JSON."""

import hashlib
import json
import os
import stat
import threading

import numpy as np
import pytest

from mmoe_jax import digests, files
from mmoe_jax.errors import UserError


def test_a_write_replaces_the_whole_file_or_nothing(tmp_path, monkeypatch):
  path = tmp_path / "a.txt"
  files.write_atomically(str(path), "first")
  monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
  with pytest.raises(OSError, match="full"):
    files.write_atomically(str(path), "second")
  assert path.read_text() == "first"
  assert os.listdir(tmp_path) == ["a.txt"]


def test_permissions_of_a_new_file_follow_the_umask_and_of_an_old_one_stay(tmp_path):
  path = tmp_path / "a.txt"
  before = os.umask(0o027)
  try:
    files.write_atomically(str(path), "x")
  finally:
    os.umask(before)
  assert stat.S_IMODE(path.stat().st_mode) == 0o640
  path.chmod(0o604)
  files.write_atomically(str(path), "y")
  assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_links_are_followed(tmp_path):
  (tmp_path / "target").write_text("old")
  (tmp_path / "link").symlink_to("target")
  files.write_atomically(str(tmp_path / "link"), "new")
  assert (tmp_path / "link").is_symlink()
  assert (tmp_path / "target").read_text() == "new"


def test_pipes_and_devices_are_written_not_replaced(tmp_path):
  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  found = []
  reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
  reader.start()
  files.write_atomically(str(pipe), "scores")
  reader.join(10)
  assert found == ["scores"]
  assert stat.S_ISFIFO(pipe.stat().st_mode)
  files.write_atomically(os.devnull, "scores")
  assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_planted_link_at_a_guessable_name_is_not_written_through(tmp_path):
  (tmp_path / "victim").write_text("precious")
  (tmp_path / f"a.txt.{os.getpid()}.part").symlink_to("victim")
  files.write_atomically(str(tmp_path / "a.txt"), "x")
  assert (tmp_path / "victim").read_text() == "precious"


def test_digests_equal_hashlibs(tmp_path):
  (tmp_path / "f").write_bytes(b"abc" * 1000)
  assert digests.of_file(str(tmp_path / "f")) == hashlib.sha256(b"abc" * 1000).hexdigest()
  assert digests.of_json({"b": [1.5, None], "a": "é"}) == digests.of_json(
    {"a": "é", "b": [1.5, np.nan]}
  )


def test_a_sealed_file_shows_any_change(tmp_path):
  path = str(tmp_path / "x.json")
  content = {"auc": 0.9, "tasks": ["a", "b"], "nothing": float("nan")}
  files.write_json(path, digests.seal(content))
  assert digests.read_sealed(path) == {**content, "nothing": None}
  with open(path, encoding="utf-8") as file:
    stored = json.load(file)
  for change in ({"auc": 0.91}, {"tasks": ["b", "a"]}, {"more": 1}, {"sha256": "0" * 64}):
    files.write_json(path, stored | change)
    with pytest.raises(UserError, match=r"x\.json: changed or damaged"):
      digests.read_sealed(path)
  del stored["sha256"]
  files.write_json(path, stored)
  assert digests.read_sealed(path) == stored
