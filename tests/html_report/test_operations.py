"""Traced models: the page's JavaScript against JAX, for all models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmoe_jax import models
from mmoe_jax.html_report import operations, what_if
from tests import reference
from tests.html_report import node
from tests.models.test_models import batch, schema_of
from tests.models.test_zoo import FAST, NUMBERS, SIZES, fields, settings_of

_ROWS = 3
_CODE = """
console.log(JSON.stringify(input.map(({program, rows}) => {
  const forward = createModel(program);
  return rows.map(({ids, numeric}) => {
    const row = {ids: Int32Array.from(ids), numeric: Float32Array.from(numeric)};
    const {logits, gates} = forward(row);
    const [numbers, shape] = gates === null ? [null, null] : [[...gates.data], gates.shape];
    return {logits: [...logits], gates: numbers, shape};
  });
})));
"""


def traced(name, norm, activation, members=1):
  """Returns a random model's program, features, logits and gates."""
  settings = {**settings_of(name), "batch_ensemble": members}
  kinds = {"norm": norm, "activation": activation}
  for field in fields(name):
    if (kind := field.rsplit("_", 1)[-1]) in kinds and "_" in field:
      settings[field] = kinds[kind]
  model = models.create_model(settings, schema_of(SIZES, NUMBERS, 3))
  rng = reference.fresh_rng()
  features = batch(rng, SIZES, _ROWS, NUMBERS)
  shapes = jax.eval_shape(model.init, FAST, features)
  draw = lambda s: np.float32(np.abs(rng.normal(size=s.shape)) + 0.1)
  variables = {k: jax.tree.map(draw, shapes[k]) for k in ("params", "batch_stats") if k in shapes}
  # Signs in the parameters; variances of batch statistics stay positive.
  flip = lambda a: a * np.float32(rng.choice([-0.5, 0.5], a.shape))
  variables["params"] = jax.tree.map(flip, variables["params"])
  apply = jax.jit(lambda v, f: model.apply(v, f, mutable=["intermediates"]))
  logits, sown = apply(variables, features)
  gates = sown.get("intermediates", {}).get("gates", (None,))[0]
  return operations.trace(model, [variables], len(SIZES), NUMBERS), features, logits, gates


def check(cases):
  """Asserts that the page's logits and gates of these models are those of JAX."""
  found = [traced(*case) for case in cases]
  given = [
    {
      "program": what_if.program_json(program),
      "rows": [
        {name: np.asarray(a[i]).tolist() for name, a in features.items()} for i in range(_ROWS)
      ],
    }
    for program, features, _, _ in found
  ]
  for case, rows, (_, _, logits, gates) in zip(cases, node.run(_CODE, given), found, strict=True):
    for i, row in enumerate(rows):
      np.testing.assert_allclose(row["logits"], logits[i], atol=1e-5, rtol=1e-5, err_msg=str(case))
      if gates is None:
        assert row["gates"] is None
      else:
        got = np.reshape(row["gates"], row["shape"])[:, 0]
        np.testing.assert_allclose(got, gates[:, i], atol=1e-5, err_msg=str(case))


@node.needs_node
def test_a_model_in_the_page_equals_jax():
  check([("esmm", "layer", "gelu")])


@pytest.mark.slow
@node.needs_node
def test_a_batch_ensemble_in_the_page_equals_jax():
  check([("mmoe", "batch", "relu", 3), ("aitm", "none", "gelu", 2)])


@pytest.mark.slow
@node.needs_node
@pytest.mark.parametrize(("norm", "activation"), [("none", "relu"), ("batch", "tanh")])
def test_every_model_in_the_page_equals_jax(norm, activation):
  check([(name, norm, activation) for name in models.MODELS])


def test_an_operation_that_the_page_does_not_have_is_named():
  class Model:
    def apply(self, variables, features, mutable):
      return jnp.linalg.inv(features["numeric"][:, :1] + jnp.eye(1)), {}

  with pytest.raises(operations.UnsupportedModelError, match="contains the operation 'lu'"):
    operations.trace(Model(), [{}], 1, 1)


def test_what_does_not_depend_on_the_row_is_computed_before():
  class Model:
    def apply(self, variables, features, mutable):
      return features["numeric"] * jnp.exp(jnp.log(variables["params"] + 1)), {}

  program = operations.trace(Model(), [{"params": jnp.ones((1, 2))}], 1, 2)
  assert [step["op"] for step in program.steps] == ["mul"]
  np.testing.assert_allclose(program.constants[0], [[2, 2]], rtol=1e-6)
