"""Parts of an epoch: the programs, and the arithmetic of their table."""

import jax
import numpy as np
import pytest

from benchmarks import epoch_parts
from mmoe_jax import data
from mmoe_jax.training.learner import create_learner
from mmoe_jax.training.train_rows import make_batch, steps_per_epoch

MACHINE = {"cores": 2, "processor": "a chip", "jax": "1.2", "device": "cpu"}


def test_the_last_program_is_the_whole_epoch(config):
  config.model.expert_dropout = 0.2
  schema, splits = data.load(config.data_dir, **config.data)
  rows = len(splits["train"])
  batch = make_batch(splits["train"], config)
  programs = epoch_parts.programs(config, schema, rows)
  assert list(programs)[-1] == epoch_parts.WHOLE
  program, state = programs[epoch_parts.WHOLE]
  key = jax.random.key(1)
  learner = create_learner(config, schema, steps_per_epoch(config, rows))
  expected, _ = jax.jit(learner.epoch)(state, batch, key)
  found = jax.jit(program)(state, batch, key)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)  # Fused differently.
  jax.tree.map(close, found.params, expected.params)
  # Gradient descent changes the parameters; gathering adds up every batch.
  descend, params = programs["+ backward, gradient descent"]
  moved = jax.jit(descend)(params, batch, key)
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), moved, params)
  assert any(jax.tree.leaves(changed))
  total = sum(np.sum(a, dtype=np.float64) for a in jax.tree.leaves(batch))
  config.train.batch_size = 2003  # Every row once.
  gather, zero = epoch_parts.programs(config, schema, rows)["+ gather the batches"]
  assert float(jax.jit(gather)(zero, batch, key)) == pytest.approx(total, rel=1e-4)


def test_programs_are_timed_in_interleaved_rounds(config):
  schema, splits = data.load(config.data_dir, **config.data)
  batch = jax.device_put(make_batch(splits["train"], config))
  programs = epoch_parts.programs(config, schema, len(splits["train"]))
  timed = ("shuffle", "+ dropout", epoch_parts.WHOLE)
  seconds = epoch_parts.measure({name: (*programs[name], batch) for name in timed}, rounds=2)
  assert tuple(seconds) == timed
  assert all(len(each) == 2 and min(each) > 0 for each in seconds.values())


def test_operations_and_fractions_by_hand():
  shapes = [(8, 10, 16), (2, 10, 8), (2, 16, 8), (2, 8, 1)]
  operations = 6 * (8 * 160 + 2 * 80 + 2 * 128 + 16)
  assert epoch_parts.operations(shapes) == operations
  seconds = {"shuffle": [1.0], epoch_parts.WHOLE: [4.0]}
  found = epoch_parts.summarise(seconds, shapes, 1000, 10, ([2.0], operations * 1000.0))
  assert [p["ms"] for p in found["parts"]] == [100, 400]
  assert [p["share"] for p in found["parts"]] == [0.25, 0.75]
  assert found["rows_per_second"] == 250
  assert found["fraction_of_ceiling"] == pytest.approx(0.5)
  assert "**0.50**" in epoch_parts.markdown({1024: found}, MACHINE)


def test_kernels_are_those_of_the_model(config):
  schema, _ = data.load(config.data_dir, **config.data)
  sizes = config.model
  shapes = epoch_parts.kernels(config, schema)
  inputs = sizes.embedding_dim * len(schema.id_features) + len(schema.numeric)
  assert (sizes.experts, inputs, sizes.expert_hidden[0]) in shapes
  assert (2, inputs, sizes.experts) in shapes
