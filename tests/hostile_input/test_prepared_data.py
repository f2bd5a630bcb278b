"""Damaged prepared data: what a run loads is right, or the folder is refused by one line."""

import contextlib
import json
import os
import random
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmoe_jax import data, digests
from mmoe_jax.data import manifest, shards
from mmoe_jax.errors import UserError
from tests.hostile_input.faults import fuzz, mutate, mutate_tree, refusal

SPLITS = ("train", "validation", "test")


def load(folder):
  """Loads as a run does."""
  data.verify(folder)
  return data.load(folder, ("click", "buy"), "all")


def reseal(folder: str) -> None:
  """Writes a manifest of what is there, as someone would who means to deceive."""
  os.remove(os.path.join(folder, "manifest.json"))
  manifest.write_manifest(folder)


@pytest.fixture
def folder(shop, tmp_path) -> str:
  return shutil.copytree(f"{shop}/data", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def expected(shop):
  return load(f"{shop}/data")


def assert_equal(found, expected) -> None:
  assert found[0] == expected[0]
  for name in SPLITS:
    got, wanted = found[1][name], expected[1][name]
    for key, values in wanted.features.items():
      np.testing.assert_array_equal(got.features[key], values)
    np.testing.assert_array_equal(got.labels, wanted.labels)
    np.testing.assert_array_equal(got.weights, wanted.weights)


def assert_sound(schema, splits) -> None:
  """Checks that no id is beyond its table, and every number is finite."""
  sizes = np.array([f.size for f in schema.id_features for _ in range(f.length)])
  for split in splits.values():
    assert (split.features["ids"] < sizes).all()
    assert split.features["ids"].shape[1] == schema.id_count
    assert np.isfinite(split.features["numeric"]).all()
    known = split.labels[~np.isnan(split.labels)]
    assert np.isin(known, (0, 1)).all()
    assert (np.isfinite(split.weights) & (split.weights >= 0)).all()


@contextlib.contextmanager
def restored(shop, folder, *names):
  """Puts files back after a case, for the next one."""
  try:
    yield
  finally:
    for name in (*names, "manifest.json"):
      shutil.copyfile(f"{shop}/data/{name}", os.path.join(folder, name))


@fuzz(40)
@given(rng=st.randoms(use_true_random=False), draw=st.data())
def test_damaged_files_are_found_by_their_digests(shop, folder, expected, rng, draw):
  fields = [f"{split}/{f}.npy" for split in SPLITS for f in ("ids", "labels", "numbers", "weights")]
  name = draw.draw(st.sampled_from([*fields, "schema.json", "manifest.json"]))
  path = os.path.join(folder, name)
  with open(path, "rb") as file:
    before = file.read()
  content = mutate(before, rng)
  with open(path, "wb") as file:
    file.write(content)
  found = []
  with restored(shop, folder, name):
    if refusal(lambda: found.append(load(folder))) is None:
      # Bytes of a manifest may differ without meaning anything else.
      assert content == before or name == "manifest.json"
      assert_equal(found[0], expected)


def damaged(array: np.ndarray, kind: str, rng: random.Random) -> np.ndarray:
  """Returns an array of another type, shape, value, number of rows, or order in memory."""
  if kind == "type":
    types = ["<i8", ">u2", "<f2", "?", "S3", "<U2", "<c8", "<M8[s]", "<u8", "<f8", "u1"]
    return array.astype(rng.choice(types))
  if kind == "shape":
    shapes = [array[..., None], array.T, array[:, :1] if array.ndim > 1 else array[None]]
    return rng.choice([*shapes, array.reshape(-1), array[:0], np.float32(1)])
  if kind == "rows":
    return rng.choice([array[:-1], np.concatenate([array, array[:1]])])
  if kind == "order" or not array.size:
    return np.asfortranarray(array)
  values = [-1, 2**31, 2**16 - 1, 255, np.nan, np.inf, -np.inf, 0.5, 1e30, -1e30, 3e38, 3, -0.0]
  array.flat[rng.randrange(array.size)] = np.float64(rng.choice(values)).astype(array.dtype)
  return array


@fuzz(40)
@given(
  field=st.sampled_from(["ids", "labels", "numbers", "weights", "slices"]),
  split=st.sampled_from(SPLITS),
  kind=st.sampled_from(["bytes", "header", "type", "shape", "value", "rows", "order"]),
  seed=st.integers(0, 2**32 - 1),
)
def test_damaged_arrays_with_fitting_digests(shop, folder, expected, field, split, kind, seed):
  """Headers and sizes are those of the damaged file, so nothing but its content can tell."""
  rng, name = random.Random(seed), f"{split}/{field}.npy"
  path = os.path.join(folder, name)
  with open(path, "rb") as file, open(f"{shop}/data/{name}", "rb") as original:
    content = file.read()
    assert content == original.read()
  found = []
  with restored(shop, folder, name):
    if kind in ("bytes", "header"):
      head = 128 if kind == "header" else len(content)
      with open(path, "wb") as file:
        file.write(mutate(content[:head], rng) + content[head:])
    else:
      with np.errstate(all="ignore"):
        np.save(path, damaged(np.load(path), kind, rng))
    reseal(folder)
    if refusal(lambda: found.append(load(folder))) is None:
      assert_sound(*found[0])
      if kind == "order":
        assert_equal(found[0], expected)


@fuzz(60)
@given(draw=st.data())
def test_hostile_schemas_are_read_as_they_are_or_refused(shop, folder, draw):
  path = os.path.join(folder, "schema.json")
  with open(path, encoding="utf-8") as file:
    content = json.load(file)
  content = mutate_tree(content, draw.draw)
  found = []
  with restored(shop, folder, "schema.json"):
    with open(path, "w", encoding="utf-8") as file:
      json.dump(content, file)
    reseal(folder)
    if refusal(lambda: found.append(load(folder))) is None:
      assert_sound(*found[0])
      again = str(os.path.join(os.path.dirname(folder), "again.json"))
      data.save_schema(found[0][0], again)
      assert data.restore_schema(again) == found[0][0]


@fuzz(40)
@given(draw=st.data())
def test_hostile_manifests_are_refused_or_change_nothing(shop, folder, expected, draw):
  path = os.path.join(folder, "manifest.json")
  with open(path, encoding="utf-8") as file:
    content = json.load(file)
  content = mutate_tree(content, draw.draw)
  if draw.draw(st.booleans()):  # With a digest that fits.
    content = digests.seal({k: v for k, v in content.items() if k != digests.SEAL})
  found = []
  with restored(shop, folder):
    with open(path, "w", encoding="utf-8") as file:
      json.dump(content, file)
    if refusal(lambda: found.append(load(folder))) is None:
      assert_equal(found[0], expected)


@pytest.mark.parametrize("content", [{"files": []}, {"files": None}, {"files": {"schema.json": 1}}])
def test_manifests_that_list_no_digests_are_refused(folder, content):
  with open(os.path.join(folder, "manifest.json"), "w", encoding="utf-8") as file:
    json.dump(digests.seal(content), file)
  with pytest.raises(UserError, match=r"manifest\.json: (not a manifest|does not list)"):
    data.verify(folder)


@pytest.mark.parametrize("entry", ["../../../etc/hostname", "/etc/hostname", "..", "a/../../b"])
def test_vocabularies_outside_of_the_folder_are_refused(folder, entry):
  path = os.path.join(folder, "schema.json")
  with open(path, encoding="utf-8") as file:
    content = json.load(file)
  feature = next(f for f in content["id_features"] if f["name"] == "country")
  del feature["values"]
  feature["vocabulary"] = {"file": entry, "size": 3, "sha256": "0" * 64}
  with open(path, "w", encoding="utf-8") as file:
    json.dump(content, file)
  reseal(folder)
  with pytest.raises(UserError):
    load(folder)


def test_a_header_that_is_no_literal_is_one_readable_line(folder):
  path = f"{folder}/train/labels.npy"
  with open(path, "rb") as file:
    content = file.read()
  with open(path, "wb") as file:
    file.write(content.replace(b"False", b"Felse", 1))
  reseal(folder)
  assert "its header cannot be read" in refusal(lambda: load(folder))


class Evil:
  """Writes a file when it is unpickled."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return open, (self.path, "w")


@pytest.mark.parametrize("form", ["npy", "pickle", "npz"])
def test_pickles_are_never_loaded(folder, tmp_path, form):
  evil, path = np.array([[Evil(tmp_path / "written")]], object), f"{folder}/train/ids.npy"
  if form == "pickle":
    evil.dump(path)
  elif form == "npy":
    np.save(path, evil, allow_pickle=True)
  else:
    with open(path, "wb") as file:
      np.savez(file, ids=evil)
  reseal(folder)
  with pytest.raises(UserError, match=r"broken array|not an array"):
    load(folder)
  with pytest.raises(UserError):
    shards.open_array(f"{folder}/train", "ids")
  assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link", "empty", "huge header"])
def test_files_that_are_no_arrays_are_refused(folder, kind):
  path = f"{folder}/train/labels.npy"
  os.remove(path)
  if kind == "folder":
    os.mkdir(path)
  elif kind == "pipe":
    os.mkfifo(path)
  elif kind == "dangling link":
    os.symlink("/nowhere", path)
  elif kind == "empty":
    open(path, "wb").close()
  else:  # An array of 2^60 rows in a file of 128 bytes.
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**60}, 5), }}".ljust(117)
    with open(path, "wb") as file:
      file.write(b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.encode() + b"\n")
    reseal(folder)
  reason = refusal(lambda: load(folder))
  assert reason
  assert "train" in reason
