"""Text summaries of prepared data, for the terminal."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mmoe_jax import data


def format_schema(schema: data.Schema, out: str) -> str:
  """Formats what was prepared: columns, rows, labels of each task, bytes."""
  kinds = Counter(f.kind for f in schema.id_features)
  names = {"category": "nominal", "hash": "hashed", "list": "lists"}
  parts = [f"{kinds[kind]} {name}" for kind, name in names.items() if kinds[kind]]
  parts.append(f"{len(schema.numeric)} continuous (standardised, {kinds['bins']} as bins)")
  times = {f.sources[0] for f in schema.id_features if f.kind in data.TIME_PARTS}
  parts += [f"{len(times)} times"] if times else []
  lines = [
    f"{len(schema.columns)} raw columns: {', '.join(parts)}"
    + (f"; sample weight: {schema.weight_column}" if schema.weight_column else ""),
    f"{'':<29}" + "".join(f"{split:>26}" for split in schema.counts),
    f"{'rows':<29}" + "".join(f"{count['rows']:>26,}" for count in schema.counts.values()),
  ]
  for task in schema.tasks:
    cells = "".join(f"{_labels(task, count):>26}" for count in schema.counts.values())
    lines.append(f"{task.name:<17}{task.kind:<12}{cells}")
  size = sum(count["bytes"] for count in schema.counts.values())
  lines.append(f"{size / 1e6:.1f} MB of arrays and schema.json in {out}")
  return "\n".join(lines)


def _labels(task: data.Task, count: Mapping[str, Any]) -> str:
  """Summarises the labels of a task in a split."""
  labelled = count["labelled"][task.name]
  if not labelled:
    return "no labels"
  share = f" of {labelled:,}" if labelled < count["rows"] else ""
  if task.kind == "regression":
    return f"{count['means'][task.name]:.2f} ± {count['stds'][task.name]:.2f}{share}"
  if task.kind == "multiclass":
    most = max(count["classes"][task.name]) / labelled
    return f"{len(task.classes)} classes, largest {most:.1%}{share}"
  positives = count["positives"][task.name]
  return f"{positives:,} ({positives / labelled:.2%}){share}"
