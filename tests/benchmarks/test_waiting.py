"""Waiting benchmark: every step runs and is timed."""

import json
import os

import pytest

from benchmarks import waiting
from mmoe_jax import data
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.training import loop
from mmoe_jax.training.run import compile_run


@pytest.mark.slow
def test_every_step_is_timed(config, raw, tmp_path):
  config.train.epochs = 1
  loop.train_and_evaluate(config, str(tmp_path / "w"))
  predictor = Predictor(str(tmp_path / "w"))
  schema, splits = data.load(config.data_dir, **config.data)
  run = compile_run(config, schema, splits["train"])
  prepared = waiting.preparing(list(raw), str(tmp_path))
  assert (tmp_path / "prepared" / "schema.json").exists()
  found = {
    **prepared,
    **waiting.evaluating(run, splits),
    **waiting.saving(run, str(tmp_path / "saved")),
    **waiting.scoring(predictor, splits, raw[1], str(tmp_path)),
  }
  assert all(value > 0 for value in found.values())
  assert prepared["arrays"] > prepared["bytes"]
  assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1002
  saved = json.dumps(sorted(os.listdir(tmp_path / "saved" / "checkpoints")))
  assert '"2"' in saved
