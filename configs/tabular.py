"""Any table that data_prep.tabular prepared: all its tasks, a model of medium size.

  python -m mmoe_jax.main --config configs/tabular.py:mmoe,data=data/table --workdir runs/table

Another model, some of the tasks: tabular.py:ple,data=data/table,tasks=click+purchase. ESMM and AITM
take the tasks that the spec chains by `implies`.

Hardware: any. No expected metric: it depends on the table. An epoch is selected by validation AUC
if all tasks are binary, by log loss if some are multiclass, by squared error if all are
regressions; of a mixture with regressions, by the other tasks.
"""

import os

from ml_collections import ConfigDict

from configs import census
from mmoe_jax import data
from mmoe_jax.config import parse_arg
from mmoe_jax.data import remote_copy
from mmoe_jax.errors import require, require_known


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns configs/census.py for the table in a folder of prepared data.

  Args:
    arg: `MODEL,data=DIR,tasks=A+B,protocol=P,weighting=W`; parts are optional.
  """
  defaults = {"model": "mmoe", "data": "data/table", "tasks": (), "protocol": ""}
  arg = parse_arg(arg, **defaults, weighting="static")
  schema = _read_schema(arg["data"])
  require_known(arg["model"], census.MODELS, "config.model.name")
  by_name = {task.name: task for task in schema.tasks}
  for name in arg["tasks"]:
    require_known(name, by_name, "a task in the config argument 'tasks'")
  names = arg["tasks"] or _default_tasks(schema, arg["model"])
  config = census.get_config(f"{arg['model']},tasks={'+'.join(names)},weighting={arg['weighting']}")
  config.data_dir = arg["data"]
  config.data.protocol = arg["protocol"]  # Empty for the first one of the spec.
  tasks = [by_name[name] for name in names]
  kinds = {task.kind for task in tasks}
  if kinds == {"regression"}:
    config.select.metric = "mse"
  elif kinds != {"binary"}:
    config.select.metric = "auc" if kinds == {"binary", "regression"} else "log_loss"
    config.select.tasks = tuple(t.name for t in tasks if t.kind != "regression")
  return config


def _read_schema(folder: str) -> data.Schema:
  path = os.path.join(remote_copy.local_folder(folder), data.SCHEMA_FILE)
  require(
    os.path.exists(path),
    f"{folder}: contains no prepared data; run: python -m data_prep.tabular --spec SPEC --input "
    f"FILES --out {folder}",
  )
  return data.restore_schema(path)


def _default_tasks(schema: data.Schema, model: str) -> tuple[str, ...]:
  """Returns all tasks; for ESMM and AITM the longest chain in which each implies the one before."""
  names = tuple(task.name for task in schema.tasks)
  if model not in ("esmm", "aitm"):
    return names
  by_name = {task.name: task for task in schema.tasks}

  def chain(name: str, depth: int = 0) -> tuple[str, ...]:
    before = by_name[name].implies if depth < len(names) else ()
    return (*max((chain(n, depth + 1) for n in before), key=len, default=()), name)

  longest = max((chain(name) for name in names), key=len)
  return longest if len(longest) > 1 else names
