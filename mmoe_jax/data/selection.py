"""Selection of the tasks and features of one run from the schema of a table."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mmoe_jax.data.encoding import pair_numbers
from mmoe_jax.data.schema import IdFeature, Schema
from mmoe_jax.errors import require, require_known

# Form of the continuous columns -> kinds of id features that it takes, besides categories.
_KINDS_OF_FORM = {
  "standardize": (),
  "bins": ("bins",),
  "both": ("bins",),
  "log_int": ("log_int",),
  "none": (),
}
NUMERIC_FORMS = tuple(_KINDS_OF_FORM)


def select(
  schema: Schema,
  tasks: Sequence[str],
  protocol: str,
  numeric: str = "standardize",
  exclude: Sequence[str] = (),
) -> Schema:
  """Returns the schema of one run: its tasks, and the features that it may use.

  The source column of a selected task is never a feature in any form, nor is a column that the
  protocol or the user excludes; the sample weight never is.

  Args:
    schema: schema of the table.
    tasks: names of tasks, in the order of the model's outputs.
    protocol: a key of `schema.protocols`, which names columns that are no features.
    numeric: form of continuous columns: `standardize`, `bins`, `both`, `log_int` or `none`.
    exclude: further columns that are no features.

  Raises:
    UserError: for unknown names, no task, or a repeated task.
  """
  names = [task.name for task in schema.tasks]
  require(len(tasks) > 0, f"config.data.tasks = (): must name at least one of {', '.join(names)}")
  for task in tasks:
    hint = " (write several as \"('A','B')\")" if "," in str(task) else ""
    require_known(str(task), names, f"a task in config.data.tasks{hint}")
  require(
    len(set(tasks)) == len(tasks), f"config.data.tasks = {tuple(tasks)}: must not repeat a task"
  )
  require_known(protocol, schema.protocols, "config.data.protocol")
  require_known(numeric, NUMERIC_FORMS, "config.data.numeric")
  columns = {c for f in schema.id_features for c in f.sources} | {n.name for n in schema.numeric}
  for column in exclude:
    require_known(column, sorted(columns), "a column in config.data.exclude")
  selected = [next(task for task in schema.tasks if task.name == name) for name in tasks]
  excluded = {task.column for task in selected} | {*schema.protocols[protocol], *exclude}
  kinds = ("category", *_KINDS_OF_FORM[numeric])
  has_numbers = numeric in ("standardize", "both")
  return dataclasses.replace(
    schema,
    tasks=tuple(selected),
    id_features=tuple(
      f for f in schema.id_features if f.kind in kinds and not excluded & set(f.sources)
    ),
    numeric=tuple(n for n in schema.numeric if has_numbers and n.name not in excluded),
  )


def add_crosses(schema: Schema, crosses: Sequence[str], train_ids: np.ndarray) -> Schema:
  """Returns the schema with crossed features `a#b`, whose vocabularies are the pairs in train rows.

  Args:
    schema: the schema.
    crosses: each `a#b`, with a and b id features of the schema.
    train_ids: (N, F) ids of the train rows, in the schema's order.

  Raises:
    UserError: for a cross of another form, or an unknown feature.
  """
  by_name = {f.name: train_ids[:, i] for i, f in enumerate(schema.id_features)}
  added = []
  for cross in crosses:
    parts = tuple(str(cross).split("#"))
    require(len(parts) == 2, f"config.data.crosses holds '{cross}': must have the form a#b")
    for part in parts:
      require_known(part, by_name, f"a feature of '{cross}' in config.data.crosses")
    pairs = np.unique(pair_numbers(schema, parts, by_name))
    added.append(IdFeature(cross, "cross", parts, tuple(pairs.tolist())))
  return dataclasses.replace(schema, id_features=schema.id_features + tuple(added))
