"""Vocabularies in Arrow files: lookups equal to a dict's, damage is one line."""

import os

import numpy as np
import pyarrow as pa
import pytest

from mmoe_jax.data import vocabularies
from mmoe_jax.data.vocabularies import Vocabulary, open_vocabulary
from mmoe_jax.errors import UserError
from tests import reference

ALPHABET = list("ab0 é漢😀")


def random_texts(rng, count):
  """Returns distinct texts of 0 to 40 characters, some of which differ in one byte only."""
  texts = {"".join(rng.choice(ALPHABET, rng.integers(0, 40))) for _ in range(count)}
  return sorted(texts | {f"prefix of sixteen bytes and more {i}" for i in range(count)})


@pytest.mark.parametrize("is_hash_weak", [False, True])
def test_lookups_are_those_of_a_dict(tmp_path, monkeypatch, is_hash_weak):
  hashes = vocabularies.hash_texts
  if is_hash_weak:  # Many texts of one hash: the comparison of texts decides.
    monkeypatch.setattr(vocabularies, "hash_texts", lambda texts: hashes(texts) % np.uint64(3))
  rng = reference.fresh_rng()
  texts = random_texts(rng, 300)
  known = [text for text in texts if rng.random() < 0.6] or ["a"]
  expected = {text: i for i, text in enumerate(known, 1)}
  path = str(tmp_path / "vocabularies" / "x.arrow")
  vocabulary = Vocabulary(pa.array(known, pa.string()))
  vocabulary.save(path)
  opened = open_vocabulary(path)
  asked = [texts[i] for i in rng.integers(0, len(texts), 1000)]
  for form in (asked, pa.array(["left out", *asked]).slice(1), asked[:1], []):
    got = opened.ids(form)
    texts_of_form = form.to_pylist() if isinstance(form, pa.Array) else form
    np.testing.assert_array_equal(got, [expected.get(text, 0) for text in texts_of_form])
    np.testing.assert_array_equal(vocabulary.ids(form), got)
  assert opened == vocabulary
  assert list(opened) == known
  assert (opened[0], opened[-1], opened[1:3]) == (known[0], known[-1], tuple(known[1:3]))
  assert opened != Vocabulary(pa.array([*known, "one more text"]))
  Vocabulary(pa.array(["replaced"])).save(path)
  copy = str(tmp_path / "copy" / "x.arrow")
  opened.save(copy)
  assert open_vocabulary(copy) == vocabulary


def test_a_hash_depends_on_every_byte_and_not_on_its_place():
  rng = reference.fresh_rng()
  content = rng.integers(97, 123, 50).astype(np.uint8)
  texts = []
  for length in range(50):
    for at in range(length):
      changed = content[:length].copy()
      changed[at] ^= 1
      texts.append(changed.tobytes().decode())
    texts.append(content[:length].tobytes().decode())
  array = pa.array(texts, pa.large_string())
  hashed = vocabularies.hash_texts(array)
  assert len(np.unique(hashed)) == len(set(texts))
  np.testing.assert_array_equal(vocabularies.hash_texts(array.slice(7, 90)), hashed[7:97])


def test_hashes_are_those_of_earlier_versions():
  texts = pa.array(["", "a", "user_0000001", "漢"], pa.large_string())
  found = [int(h) for h in vocabularies.hash_texts(texts)]
  assert found == [
    16294208416658607535,
    6774081908283191102,
    9856072321691215780,
    6076110920101015225,
  ]


def test_other_files_are_refused(tmp_path):
  path = tmp_path / "x.arrow"
  path.write_bytes(b"no Arrow file")
  with pytest.raises(UserError, match=r"x\.arrow: broken: not a vocabulary"):
    open_vocabulary(str(path))
  table = pa.table({"value": ["a"], "hash": [1], "id": [1]})
  with pa.ipc.new_file(str(path), table.schema) as writer:
    writer.write_table(table)
  with pytest.raises(UserError, match=r"x\.arrow: not a vocabulary"):
    open_vocabulary(str(path))


@pytest.mark.parametrize("name", ["a/b", "..", "x" * 300, "漢字", "a b"])
def test_any_name_of_a_feature_gives_a_file_in_the_folder(tmp_path, name):
  entry = vocabularies.save(Vocabulary(pa.array(["a", "b"])), str(tmp_path), name)
  assert os.listdir(tmp_path) == ["vocabularies"]
  assert vocabularies.restore(entry, str(tmp_path / "schema.json")) == Vocabulary(
    pa.array(["a", "b"])
  )
  outside = {**entry, "file": "vocabularies/../schema.arrow"}
  with pytest.raises(UserError, match="a vocabulary has the file"):
    vocabularies.restore(outside, str(tmp_path / "schema.json"))
