"""Programs that runs with equal settings and train rows share, in place of one for each."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mmoe_jax import data
from mmoe_jax.config import override
from mmoe_jax.training import checks, table_updates, train_rows
from mmoe_jax.training.run import Run


def remember(compile_run: Callable[..., Run]) -> Callable[..., Run]:
  """Returns compile_run with a memory; a remembered run starts afresh.

  A resumed run in a new process compiles the same program again, or reads it from JAX's cache;
  tests/test_main.py and tests/test_cache.py do that.
  """
  known: dict[str, tuple[Run, Any, Any]] = {}

  def compile_or_recall(config: Any, schema: data.Schema, split: Any) -> Run:
    checks.check_config(config, schema)  # It also looks at folders, which may change.
    key = _digest(config, schema, split)
    if key not in known:
      run = compile_run(config, schema, split)
      # Training donates the state: a copy on the host outlives it.
      where = jax.tree.map(lambda a: a.sharding, run.state)
      known[key] = run, jax.tree.map(np.array, run.state), where
    run, start, where = known[key]
    config = override(run.config, {"train.trackers": config.train.trackers})
    return run._replace(state=jax.device_put(start, where, may_alias=False), config=config)

  return compile_or_recall


def _digest(config: Any, schema: data.Schema, split: data.Split | data.StoredSplit) -> str:
  """Returns a digest of everything that the functions and the start of a run depend on."""
  config = override(config, {"train.trackers": ""})
  limits = (table_updates.LARGE, train_rows.SEGMENT_STEPS)
  settings = (config.to_json_best_effort(), repr(schema), limits)
  digest = hashlib.sha256(repr(settings).encode())
  if isinstance(split, data.StoredSplit):  # The settings have its folder, where no test changes it.
    return digest.hexdigest()
  arrays = {**split.features, **split.slices, "labels": split.labels, "weights": split.weights}
  for name, array in sorted(arrays.items()):
    digest.update(f"{name} {array.shape} {array.dtype}".encode())
    digest.update(np.ascontiguousarray(array))
  return digest.hexdigest()
