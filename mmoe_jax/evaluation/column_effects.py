"""Effects of columns on a trained model's metrics: permuted values, and unknown values.

Permutation importance (Breiman, Random Forests, 2001): how much worse a metric becomes if the
values of a column are permuted between rows. Cost of unknown values: how much worse it becomes if
no row has a known value there.

All columns, permutations and tasks are one compiled program: a map over columns of a vmap over
permutations and unknown values. A column's inputs change together: ids, numbers, bins, crosses.

Shape letters: N rows, F columns of ids, D numeric inputs, T tasks, C raw columns, R permutations,
V variants: the permutations, and unknown values.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmoe_jax import data
from mmoe_jax.evaluation import evaluate
from mmoe_jax.evaluation import metrics as metrics_lib

Array = jax.Array
METRIC_OF_KIND = {"binary": "auc", "multiclass": "log_loss", "regression": "r2"}


class Columns(NamedTuple):
  """Inputs that are made from each raw column.

  Attributes:
    names: names of the columns.
    has_ids_CxF: whether a column of ids is made from the raw column, without crosses.
    has_numbers_CxD: whether a numeric input is.
    unknown_ids_F: id of an unknown value; of a missing one where training had those.
    unknown_numbers_D: numeric inputs of a missing value: 1 where the input marks it.
  """

  names: list[str]
  has_ids_CxF: np.ndarray
  has_numbers_CxD: np.ndarray
  unknown_ids_F: np.ndarray
  unknown_numbers_D: np.ndarray


class Effects(NamedTuple):
  """Measured effects; a positive change makes a metric worse.

  Attributes:
    base_T: metric of each task on the unchanged rows.
    permuted_CxRxT: metric with a permuted column.
    unknown_CxT: metric with unknown values in a column.
  """

  base_T: np.ndarray
  permuted_CxRxT: np.ndarray
  unknown_CxT: np.ndarray


def columns_of(schema: data.Schema) -> Columns:
  """Returns the inputs that are made from each raw column of a schema."""
  names = data.needed_columns(schema)
  number_sources = _number_sources(schema)
  at = {name: c for c, name in enumerate(names)}
  has_ids_CxF = np.zeros((len(names), schema.id_count), bool)
  unknown_ids_F = np.zeros(schema.id_count, np.int32)
  for feature in schema.id_features:
    here = schema.id_columns[feature.name]
    if feature.kind != "cross":
      has_ids_CxF[at[feature.sources[0]], here] = True
    if feature.has_missing:
      unknown_ids_F[here] = feature.size - 1
  has_numbers_CxD = np.zeros((len(names), schema.numeric_count), bool)
  for d, (name, _) in enumerate(number_sources):
    has_numbers_CxD[at[name], d] = True
  unknown_numbers_D = np.array([marks for _, marks in number_sources], np.float32)
  return Columns(names, has_ids_CxF, has_numbers_CxD, unknown_ids_F, unknown_numbers_D)


def unknown_shares(schema: data.Schema, features: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns the share of rows without a known value in each raw column, (C,).

  A number is unknown only where inputs mark it as missing, or its bins do.
  """
  columns = columns_of(schema)
  marks_D = columns.unknown_numbers_D == 1
  is_unknown_NxF = features["ids"] == columns.unknown_ids_F
  is_missing_NxD = (features["numeric"] == 1) & marks_D
  shares = []
  for has_ids_F, has_numbers_D in zip(columns.has_ids_CxF, columns.has_numbers_CxD, strict=True):
    marks = np.concatenate(
      [is_unknown_NxF[:, has_ids_F], is_missing_NxD[:, has_numbers_D & marks_D]], axis=1
    )
    shares.append(float(marks.all(1).mean()) if marks.shape[1] else 0.0)
  return np.array(shares)


def _number_sources(schema: data.Schema) -> list[tuple[str, bool]]:
  """Returns the column of each numeric input, and whether it marks missing values."""
  found = [(n.name, False) for n in schema.numeric]
  found += [(n.name, True) for n in schema.numeric if n.has_missing]
  for n in schema.numeric:
    found += [(n.name, False)] * max(0, len(n.edges) - 1)
  return found


def make_measure(
  predict: Callable[[Any, dict[str, Array]], Array], schema: data.Schema
) -> Callable[..., Effects]:
  """Returns measure(variables, features, labels, permutations), to be compiled as one program.

  `predict` is that of evaluate.make_predict, or gives logits of the mean of several models.
  `features` has `ids` (N, F) and `numeric` (N, D), `labels` is (N, T), NaN where missing,
  `permutations` (R, N) int32; every column uses the same ones.
  """
  columns = columns_of(schema)
  crosses = [f for f in schema.id_features if f.kind == "cross"]

  def score(variables: Any, features: dict[str, Array], labels_NxT: Array) -> Array:
    ids_NxF = _with_crosses(schema, crosses, features["ids"])
    chunks = _to_chunks({**features, "ids": ids_NxF})
    logits_NxO = predict(variables, chunks)[: len(labels_NxT)]
    return _metrics(schema.tasks, logits_NxO, labels_NxT)

  def measure(
    variables: Any, features: dict[str, Array], labels_NxT: Array, permutations_RxN: Array
  ) -> Effects:
    ids_NxF, numeric_NxD = features["ids"].astype(jnp.int32), features["numeric"]
    # Other values of every input: those of permuted rows, then unknown ones.
    ids_VxNxF = _append(ids_NxF[permutations_RxN], columns.unknown_ids_F)
    numeric_VxNxD = _append(numeric_NxD[permutations_RxN], columns.unknown_numbers_D)

    def of_column(masks: tuple[Array, Array]) -> Array:
      is_id_F, is_number_D = masks

      def with_other(ids: Array, numeric: Array) -> Array:
        changed = {
          "ids": jnp.where(is_id_F[None], ids, ids_NxF),
          "numeric": jnp.where(is_number_D[None], numeric, numeric_NxD),
        }
        return score(variables, changed, labels_NxT)

      return jax.vmap(with_other)(ids_VxNxF, numeric_VxNxD)

    # The last column has no input, so that nothing changes.
    masks = (_with_none(columns.has_ids_CxF), _with_none(columns.has_numbers_CxD))
    # Columns one at a time: together they would need the activations of C · R · N rows.
    metrics_CxVxT = jax.lax.map(of_column, masks)
    return Effects(metrics_CxVxT[-1, -1], metrics_CxVxT[:-1, :-1], metrics_CxVxT[:-1, -1])

  return measure


def _append(values_RxNxF: Array, last_F: np.ndarray) -> Array:
  """Appends a variant in which every row has the same values."""
  shape = (1, *values_RxNxF.shape[1:])
  return jnp.concatenate([values_RxNxF, jnp.broadcast_to(jnp.asarray(last_F), shape)])


def _with_none(masks_CxF: np.ndarray) -> Array:
  return jnp.asarray(np.concatenate([masks_CxF, np.zeros_like(masks_CxF[:1])]))


def worsening(tasks: Sequence[data.Task], base_T: np.ndarray, changed: np.ndarray) -> np.ndarray:
  """Returns how much worse metrics (…, T) are than those of the unchanged rows."""
  lower_is_better = [METRIC_OF_KIND[t.kind] in metrics_lib.LOWER_IS_BETTER for t in tasks]
  return np.where(lower_is_better, changed - base_T, base_T - changed)


def _to_chunks(features: dict[str, Array]) -> dict[str, Array]:
  """Pads rows with zeros to chunks (K, C, …) on the device, as evaluate.to_chunks on the host."""
  rows = features["ids"].shape[0]
  chunk = min(evaluate.CHUNK, 1 << max(0, rows - 1).bit_length())
  padding = -rows % chunk
  return {
    name: jnp.pad(a, ((0, padding), (0, 0))).reshape(-1, chunk, a.shape[1])
    for name, a in features.items()
  }


def _with_crosses(schema: data.Schema, crosses: Sequence[data.IdFeature], ids_NxF: Array) -> Array:
  """Returns ids whose crosses are those of the ids they are made from."""
  for feature in crosses:
    first, second = feature.sources
    first_N, second_N = (ids_NxF[:, schema.id_columns[name].start] for name in (first, second))
    pairs_N = first_N * schema.id_feature(second).size + second_N
    values = jnp.asarray(np.asarray(feature.values, np.int32))
    place_N = jnp.minimum(jnp.searchsorted(values, pairs_N), len(feature.values) - 1)
    found_N = jnp.where(values[place_N] == pairs_N, place_N + 1, data.UNKNOWN)
    ids_NxF = ids_NxF.at[:, schema.id_columns[feature.name].start].set(found_N)
  return ids_NxF


def _metrics(tasks: Sequence[data.Task], logits_NxO: Array, labels_NxT: Array) -> Array:
  """Returns the metric of each task (T,), see METRIC_OF_KIND."""
  found, start = [], 0
  for t, task in enumerate(tasks):
    outputs = logits_NxO[:, start : start + task.outputs]
    outputs = outputs if task.kind == "multiclass" else outputs[:, 0]
    start += task.outputs
    weights_N = 1.0 - jnp.isnan(labels_NxT[:, t]).astype(jnp.float32)
    metric = metrics_lib.OF_KIND[task.kind][METRIC_OF_KIND[task.kind]]
    found.append(metric(outputs, labels_NxT[:, t], weights_N))
  return jnp.stack(found)
