"""Selection of the tasks and features of one run from the schema of a table."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from mmoe_jax.data.encoding import pair_numbers
from mmoe_jax.data.schema import TIME_PARTS, IdFeature, Schema
from mmoe_jax.data.share import WHOLE, Share
from mmoe_jax.errors import require, require_known

# Form of the continuous columns -> kinds of id features that it takes, besides categories.
_KINDS_OF_FORM = {
  "standardize": (),
  "bins": ("bins",),
  "both": ("bins",),
  "log_int": ("log_int",),
  "piecewise": (),
  "none": (),
}
_ALWAYS = ("category", "hash", "list", *TIME_PARTS)  # Kinds that do not depend on the form.
_PIECES = 24  # Of a piecewise-linear encoding, at most.
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
    protocol: a key of `schema.protocols`, which names columns that are no features; empty for the
      first one.
    numeric: form of continuous columns: `standardize`, `bins`, `both`, `log_int`, `piecewise`
      (piecewise-linear encoding, in addition to the standardised value) or `none`.
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
  if protocol:
    require_known(protocol, schema.protocols, "config.data.protocol")
  require_known(numeric, NUMERIC_FORMS, "config.data.numeric")
  columns = {c for f in schema.id_features for c in f.sources} | {n.name for n in schema.numeric}
  for column in exclude:
    require_known(column, sorted(columns), "a column in config.data.exclude")
  selected = [next(task for task in schema.tasks if task.name == name) for name in tasks]
  protocol = protocol or next(iter(schema.protocols), "")
  excluded = {column for task in selected for column in task.columns}
  excluded |= {*schema.protocols.get(protocol, ()), *exclude}
  kinds = (*_ALWAYS, *_KINDS_OF_FORM[numeric])
  has_numbers = numeric in ("standardize", "both", "piecewise")
  return dataclasses.replace(
    schema,
    tasks=tuple(selected),
    id_features=tuple(
      f for f in schema.id_features if f.kind in kinds and not excluded & set(f.sources)
    ),
    numeric=tuple(
      dataclasses.replace(n, edges=_pieces(schema, n.name)) if numeric == "piecewise" else n
      for n in schema.numeric
      if has_numbers and n.name not in excluded
    ),
  )


def _pieces(schema: Schema, column: str) -> tuple[float, ...]:
  """Returns the ends of a column's pieces: lower edges of its bins, at most _PIECES + 1 of them."""
  edges = next((f.values for f in schema.id_features if f.name == f"{column}_bins"), ())
  if len(edges) < 2:
    return ()
  chosen = np.unique(np.linspace(0, len(edges) - 1, min(len(edges), _PIECES + 1)).round())
  return tuple(float(edges[int(i)]) for i in chosen)


def crosses_of(schema: Schema, crosses: Sequence[str]) -> list[tuple[str, str]]:
  """Returns the pairs of features that the schema and the config cross.

  Crosses of the schema whose features are not in the run are left out.

  Args:
    schema: the schema of the run.
    crosses: config.data.crosses, each `a#b`, with a and b id features of the run.

  Raises:
    UserError: for a cross of another form, or an unknown feature.
  """
  names = [f.name for f in schema.id_features if f.length == 1]
  own = [tuple(cross.split("#")) for cross in schema.crosses]
  pairs = [pair for pair in own if set(pair) <= set(names)]
  for cross in crosses:
    parts = tuple(str(cross).split("#"))
    require(len(parts) == 2, f"config.data.crosses holds '{cross}': must have the form a#b")
    for part in parts:
      require_known(part, names, f"a feature of '{cross}' in config.data.crosses")
    pairs.append(parts)
  return list(dict.fromkeys(pairs))


def add_crosses(
  schema: Schema,
  pairs: Sequence[tuple[str, str]],
  train_ids: Iterable[np.ndarray],
  share: Share = WHOLE,
) -> Schema:
  """Returns the schema with crossed features `a#b`, whose vocabularies are the pairs in train rows.

  Args:
    schema: the schema.
    pairs: names of the crossed features, see crosses_of.
    train_ids: the ids of the train rows, in chunks (N, F) in the schema's order.
    share: the host's share of the train rows that `train_ids` are.
  """
  found = [np.zeros(0, np.int64)] * len(pairs)
  for ids in train_ids:
    by_name = {name: ids[:, at.start] for name, at in schema.id_columns.items()}
    found = [
      np.union1d(numbers, pair_numbers(schema, pair, by_name))
      for numbers, pair in zip(found, pairs, strict=True)
    ]
  found = [_union_over_hosts(numbers, share) for numbers in found]
  added = [
    IdFeature("#".join(pair), "cross", pair, tuple(numbers.tolist()))
    for pair, numbers in zip(pairs, found, strict=True)
  ]
  return dataclasses.replace(schema, id_features=schema.id_features + tuple(added))


def _union_over_hosts(numbers: np.ndarray, share: Share) -> np.ndarray:
  """Returns the distinct numbers of all hosts, ascending, from those of each."""
  longest = int(share.gather(np.array([len(numbers)])).max())
  # Filled up with a number of the host; one that has none passes on a negative one.
  padded = np.full(longest, numbers[0] if len(numbers) else -1)
  padded[: len(numbers)] = numbers
  found = np.unique(share.gather(padded))
  return found[found >= 0]
