"""Damaged exports: verified, served and scored as before, or refused by one line."""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmoe_jax.export import model
from mmoe_jax.serve.scorer import Scorer
from tests.hostile_input.faults import fuzz, limited, mutate, mutate_tree, refusal


@pytest.fixture(scope="module")
def expected(exported):
  scorer = Scorer(exported)
  return scorer(scorer.example(4)).scores


def assert_as_before_or_refused(folder, expected, capsys) -> None:
  found = []

  def score():
    scorer = Scorer(folder)
    found.append(scorer(scorer.example(4)).scores)

  reason = refusal(score)
  with limited():
    status = model.report(folder)
  line = capsys.readouterr().err
  if reason is None:
    assert status == 0
    assert found[0].keys() == expected.keys()
    for name, values in expected.items():
      np.testing.assert_allclose(found[0][name], values, atol=1e-6)
  else:
    assert status == 2
    assert line.startswith("error: ")
    assert line.count("\n") == 1


@fuzz(12)
@given(rng=st.randoms(use_true_random=False), draw=st.data())
def test_damaged_exports_score_as_before_or_are_refused(exported, expected, capsys, rng, draw):
  names = sorted(os.listdir(exported))
  name = draw.draw(st.sampled_from([*names, "model.json", "model.json", "model.json"]))
  as_json = name == "model.json" and draw.draw(st.booleans())
  path = os.path.join(exported, name)
  if not os.path.isfile(path) or name in ("README.md", "model.py", "__pycache__"):
    return
  with open(path, "rb") as file:
    before = file.read()
  content = before
  try:
    if as_json:
      content = mutate_tree(json.loads(before), draw.draw)
      if draw.draw(st.booleans()):  # By someone who means to deceive.
        content.pop(model.SEAL, None)
        content |= {key: json.loads(before)[key] for key in ("scores",) if key in content}
      content = json.dumps(content).encode()
    else:
      content = mutate(before, rng)
    with open(path, "wb") as file:
      file.write(content)
    assert_as_before_or_refused(exported, expected, capsys)
  finally:
    with open(path, "wb") as file:
      file.write(before)


@pytest.mark.parametrize(
  "change",
  [
    {"files": {}},
    {"files": []},
    {"files": None},
    {"formats": ["pickle"]},
    {"formats": []},
    {"formats": "stablehlo"},
    {"scores": []},
    {"scores": [1]},
    {"columns": None},
    {"outside": "../../../etc/hostname"},
    {"outside": "/etc/hostname"},
    {"without": "encoder.py"},
    {"swapped": True},
  ],
  ids=str,
)
def test_model_json_that_no_export_has_is_refused(exported, expected, tmp_path, capsys, change):
  folder = shutil.copytree(exported, str(tmp_path / "model"))
  path = os.path.join(folder, "model.json")
  with open(path, encoding="utf-8") as file:
    info = json.load(file)
  if "outside" in change:
    info["files"][change["outside"]] = "0" * 64
  elif "without" in change:
    del info["files"][change["without"]]
  elif "swapped" in change:
    info["scores"].reverse()
  else:
    info |= change
  if "swapped" not in change:
    info.pop(model.SEAL, None)
  with open(path, "w", encoding="utf-8") as file:
    json.dump(info, file)
  with pytest.raises(ValueError, match="is no export"):
    model.Model(folder)
  assert_as_before_or_refused(folder, expected, capsys)
