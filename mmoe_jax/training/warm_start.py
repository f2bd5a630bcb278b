"""Warm start: a run that starts from the best variables of another one, of the same data."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from mmoe_jax import data, models
from mmoe_jax.config import flatten
from mmoe_jax.errors import require
from mmoe_jax.models.embedding import TABLES
from mmoe_jax.training.run import Run
from mmoe_jax.training.step import State
from mmoe_jax.workdir import checkpoint, contract, differences

_PARTS = ("id_features", "numeric", "tasks")  # Of a schema, which decide what parameters mean.
_COLLECTIONS = ("params", "batch_stats")


class WarmStart(NamedTuple):
  """A state to start from, and where its arrays are from, by path.

  Attributes:
    state: the state before the first step.
    taken: arrays of the other run.
    left: arrays of the other run that this one does not have, or with another shape.
    new: random arrays of this run.
  """

  state: State
  taken: list[str]
  left: list[str]
  new: list[str]

  def lines(self, workdir: str) -> list[str]:
    """Returns what to print."""
    parts = (("taken", self.taken), ("left", self.left), ("new", self.new))
    return [f"warm start from {workdir}, {k}: {', '.join(v)}" for k, v in parts if v]


def warm_start(run: Run, schema: data.Schema) -> WarmStart:
  """Starts from the best variables of the run in config.train.warm_start.

  Arrays are taken by path and shape, so the other run may have another model; its features and
  tasks must be the same, because their order decides what rows and columns of arrays mean.

  Args:
    run: this run, before training.
    schema: its schema.

  Raises:
    UserError: if the other run is none of the same features and tasks, or shares no array.
  """
  workdir = run.config.train.warm_start
  where = f"config.train.warm_start = {workdir}"
  other = contract.read_schema(workdir)
  differs = differences.of_schemas(other, schema, _PARTS)
  require(not differs, f"{where}: must be a run with the same features and tasks ({differs})")
  settings = contract.read_config(workdir)
  require(
    contract.MEMBERS not in settings,
    f"{where}: is a population; train the member that you mean as a separate run",
  )
  found = _by_path(_read_best(run, workdir, schema, settings, where))
  own = _by_path({part: getattr(run.state, part) for part in _COLLECTIONS})
  shapes = _by_path(_shapes_of(run.learner.model, run))
  taken = [p for p, s in shapes.items() if p in found and found[p].shape == s.shape]
  left = [p for p in found if p not in taken]
  new = [p for p in shapes if p not in taken]
  require(
    bool(taken),
    f"{where}: has no array that this run has, too ("
    + differences.of_settings(_model_of(settings), _model_of(run.config.to_dict()), ())
    + "); use another run",
  )
  for path in new:
    require(
      own[path].is_fully_addressable or own[path].is_fully_replicated,
      f"{where}: has no array {path} of this shape, which several hosts share; start without it",
    )
  variables: dict[str, Any] = {part: {} for part in _COLLECTIONS}
  for path, shape in shapes.items():
    array = found[path] if path in taken else np.asarray(own[path])
    _put(variables, path.split("/"), array.astype(shape.dtype))
  return WarmStart(run.start_from(variables), taken, left, new)


def _read_best(
  run: Run, workdir: str, schema: data.Schema, settings: Mapping[str, Any], where: str
) -> Any:
  """Returns the best variables of the other run, on the host; tables without padding."""
  model = models.create_model(ConfigDict(settings).model, schema)
  shapes = _shapes_of(model, run)
  device = jax.sharding.SingleDeviceSharding(run.devices.devices[0])
  like = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes)
  with checkpoint.Checkpoints(workdir, True, contract.digests_of(workdir)) as checkpoints:
    best = checkpoints.restore_best(like)
  require(best is not None, f"{where}: contains no checkpoint")
  found = jax.device_get(best.item)
  for name, shape in shapes["params"].get(TABLES, {}).items():
    found["params"][TABLES][name] = found["params"][TABLES][name][: shape.shape[0]]
  return found


def _shapes_of(model: Any, run: Run) -> dict[str, Any]:
  row = jax.tree.map(lambda a: a[:1], dict(run.rows.sample.features))
  variables = jax.eval_shape(model.init, jax.random.key(0), row)
  return {part: variables.get(part, {}) for part in _COLLECTIONS}


def _model_of(settings: Mapping[str, Any]) -> dict[str, Any]:
  return flatten({"model": settings["model"]})


def _by_path(tree: Any) -> dict[str, Any]:
  """Returns the leaves by their path, such as `params/towers/Dense_0/kernel`."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _put(tree: dict[str, Any], path: list[str], leaf: Any) -> None:
  for name in path[:-1]:
    tree = tree.setdefault(name, {})
  tree[path[-1]] = leaf
