"""Exported program: from encoded rows and weights to scores, in StableHLO, ONNX or TensorFlow.

Shape letters: N rows, F columns of ids, D numeric inputs, C columns of scores.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax import data
from mmoe_jax.errors import UserError
from mmoe_jax.models.base import Model

Array = jax.Array
PLATFORMS = ("cpu", "cuda", "tpu")
# With its own dependencies, jax2onnx replaces orbax-checkpoint by a version that breaks training.
ONNX_INSTALL = (
  "pip install -r mmoe_jax/export/requirements-onnx.txt && "
  "pip install --no-deps 'jax2onnx>=0.17,<0.18'"
)

SAVEDMODEL_INSTALL = "pip install -r mmoe_jax/export/requirements-savedmodel.txt"


def make_score(model: Model, schema: data.Schema) -> Callable[[Any, Array, Array], Array]:
  """Returns score(members, ids, numeric) -> scores (N, C) float32, in the units of the table.

  `members` is a list of variables; scores are the mean over them. Ids (N, F) int32 that are out of
  range become 0, the id of unknown values.
  """
  sizes = [f.size for f in schema.id_features for _ in range(f.length)]

  def score(members: Sequence[Any], ids: Array, numeric: Array) -> Array:
    is_known = (ids >= 0) & (ids < jnp.array(sizes, jnp.int32)[None, :])
    features = {"ids": jnp.where(is_known, ids, 0), "numeric": numeric}
    total = sum(_to_scores(schema.tasks, model.apply(v, features, train=False)) for v in members)
    return total / len(members)

  return score


def _to_scores(tasks: Sequence[data.Task], logits_NxO: Array) -> Array:
  columns, start = [], 0
  for task in tasks:
    z_NxC = logits_NxO[:, start : start + task.outputs]
    start += task.outputs
    if task.kind == "binary":
      columns.append(jax.nn.sigmoid(z_NxC))
    elif task.kind == "regression":
      columns.append(z_NxC * task.std + task.mean)
    else:
      columns.append(jax.nn.softmax(z_NxC, axis=1))
  return jnp.concatenate(columns, axis=1)


def to_stablehlo(score: Callable[..., Array], members: Any, schema: data.Schema) -> bytes:
  """Exports score(weights, ids, numeric) for any number of rows and all PLATFORMS.

  Args:
    score: result of `make_score`.
    members: its variables; only their shapes are part of the program.
    schema: schema of the run.

  Returns:
    The serialised jax.export.Exported, whose `weights` are the leaves of `members`.
  """
  leaves, structure = jax.tree.flatten(members)
  (rows,) = jax.export.symbolic_shape("rows")
  shape = lambda *axes, dtype: jax.ShapeDtypeStruct(axes, dtype)
  exported = jax.export.export(
    jax.jit(lambda weights, ids, numeric: score(structure.unflatten(weights), ids, numeric)),
    platforms=PLATFORMS,
  )(
    [shape(*a.shape, dtype=a.dtype) for a in leaves],
    shape(rows, schema.id_count, dtype=jnp.int32),
    shape(rows, schema.numeric_count, dtype=jnp.float32),
  )
  return bytes(exported.serialize())


def to_onnx(score: Callable[..., Array], members: Any, schema: data.Schema) -> bytes:
  """Exports score(ids, numeric), weights included, as an ONNX model with a dynamic batch.

  Raises:
    UserError: if the optional requirements are not installed.
  """
  try:
    import jax2onnx
  except ImportError as error:
    raise UserError(f"--formats=onnx: needs jax2onnx ({error}); run: {ONNX_INSTALL}") from error
  (rows,) = jax.export.symbolic_shape("rows")
  ids = jax.ShapeDtypeStruct((rows, schema.id_count), jnp.int32)
  numeric = jax.ShapeDtypeStruct((rows, schema.numeric_count), jnp.float32)
  members = jax.tree.map(jnp.asarray, members)
  # Traced first: the converter knows no Flax modules.
  traced = jax.make_jaxpr(lambda ids, numeric: score(members, ids, numeric))(ids, numeric)
  run = jax.extend.core.jaxpr_as_fun(traced)
  model = jax2onnx.to_onnx(
    lambda *arguments: run(*arguments)[0],
    [ids, numeric],
    model_name="mmoe_jax",
    input_names=["ids", "numeric"],
    output_names=["scores"],
  )
  return model.SerializeToString()


def to_saved_model(
  score: Callable[..., Array], members: Any, schema: data.Schema, folder: str
) -> None:
  """Writes score(ids, numeric), weights included, as a SavedModel for any number of rows.

  Its signature `serving_default` takes `ids` and `numeric`, and returns `scores`.

  Args:
    score: result of `make_score`.
    members: its variables, which become variables of TensorFlow.
    schema: schema of the run.
    folder: folder to write.

  Raises:
    UserError: if the optional requirements are not installed.
  """
  try:
    import tensorflow as tf
    from jax.experimental import jax2tf
  except ImportError as error:
    raise UserError(
      f"--formats=savedmodel: needs tensorflow ({error}); in a separate environment, run: "
      f"{SAVEDMODEL_INSTALL}"
    ) from error
  leaves, structure = jax.tree.flatten(members)
  convert = jax2tf.convert(
    lambda weights, ids, numeric: score(structure.unflatten(weights), ids, numeric),
    polymorphic_shapes=[None, "(rows, _)", "(rows, _)"],
    with_gradient=False,
    native_serialization_platforms=PLATFORMS,
  )
  module = tf.Module()
  module.weights = [tf.Variable(np.asarray(a), trainable=False) for a in leaves]

  def run(ids: Any, numeric: Any) -> dict[str, Any]:
    return {"scores": convert(module.weights, ids, numeric)}

  signature = [
    tf.TensorSpec((None, schema.id_count), tf.int32, name="ids"),
    tf.TensorSpec((None, schema.numeric_count), tf.float32, name="numeric"),
  ]
  module.score = tf.function(run, input_signature=signature, autograph=False)
  tf.saved_model.save(module, folder, signatures={"serving_default": module.score})


def weights_of(members: Any) -> dict[str, np.ndarray]:
  """Returns the leaves of variables by their path, in the order of the program's `weights`."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(members)
  keystr = jax.tree_util.keystr
  return {f"{i:04d}{keystr(path)}": np.asarray(a) for i, (path, a) in enumerate(leaves)}
