"""Tables and figures of the studies in the documents, from their result files."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.records import Record
from mmoe_jax.evaluation import statistics, tables
from mmoe_jax.files import read_json_object
from studies import paired, published, task_weightings_tables, trees_tables
from studies import synthetic_figures as figures
from studies.batch_ensembles import ENSEMBLE, MEAN, MEAN_LONG, ONE, ONE_LONG
from studies.documents import Figure, Table
from studies.paper_census import SETTINGS
from studies.paper_census_tables import difference_cell, is_significant

SEEDS = (
  "seeds/census",
  "seeds/census_best",
  "seeds/census_demo",
  "seeds/census-mmoe,protocol=paper",
  "seeds/census-mmoe,tasks=education+marital_stat,protocol=paper",
)
_ACCURACY = (
  ("train AUC", "train/{}/auc"),
  ("validation AUC", "validation/{}/auc"),
  ("test AUC", "test/{}/auc"),
  ("test AUC, 16 and over", "test/{}/auc_16_and_over"),
  ("test log loss", "test/{}/log_loss"),
  ("test PCOC", "test/{}/pcoc"),
)
_CENSUS_TASKS = ("income_50k", "marital_stat")


# ---- Seeds -----------------------------------------------------------------------------------


def mean_of(runs: Sequence[Mapping[str, Any]], key: str, digits: int = 4) -> str:
  """Formats the mean of a figure over runs, with its interval by Student's t where there is one."""
  values = [run[key] for run in runs if run.get(key) is not None]
  if not values:
    return tables.DASH
  found = statistics.over_seeds(values)
  return tables.number(found.value, digits) + tables.plus_minus(found.half_seeds, digits)


def name_of_config(record: Record) -> str:
  """Returns the config of a record of seeds, with the number of its seeds."""
  name = record.settings["config"].removeprefix("configs/")
  count = len(record.runs)
  return f"`{name}`, {count} seed{'s' if count > 1 else ''}"


def format_accuracy(*found: Record) -> str:
  """Formats all metrics of each config and task; rows of a transcribed file as they are."""
  lines = []
  for record in found:
    if record.transcribed:
      lines += next(r["cells"] for r in record.runs if r["table"] == "seeds/accuracy")
      continue
    keys = [key for key in record.runs[0] if key.startswith("test/") and key.endswith("/auc")]
    for task in [key.split("/")[1] for key in keys]:
      cells = [mean_of(record.runs, key.format(task)) for _, key in _ACCURACY]
      lines.append([name_of_config(record), task, *cells])
  return tables.markdown(["config", "task", *(name for name, _ in _ACCURACY)], lines, False)


_DESCRIPTIONS = {
  "configs/census_demo.py": "its features and sizes, all layers trained, 100 epochs",
  "configs/census.py": "8 experts of 16, towers of 8",
  "configs/census_best.py": "wider, from a search on validation AUC",
}


def format_overview(*found: Record) -> str:
  """Formats the test AUCs of the configs, below what MetaSpore published."""
  demo = next(other for other in published.OTHER_CENSUS if other.source.startswith("MetaSpore"))
  cells = [tables.number(demo.income_50k), tables.number(demo.marital_stat)]
  lines = [["MetaSpore's demo, as published, 100 epochs", *cells, ""]]
  for record in found:
    if record.transcribed:
      lines += next(r["cells"] for r in record.runs if r["table"] == "seeds/overview")
      continue
    cells = [mean_of(record.runs, f"test/{task}/auc") for task in _CENSUS_TASKS]
    text = _DESCRIPTIONS[record.settings["config"]]
    cells.append(f"{record.runs[0]['parameters']:,}")
    lines.append([f"{name_of_config(record)}: {text}", *cells])
  return tables.markdown(["", *_CENSUS_TASKS, "parameters"], lines, False)


def format_output(record: Record) -> str:
  """Formats what the main command prints for the first seed, without times, as code."""
  run = next(run for run in record.runs if run["seed"] == 0)
  splits = ("train", "validation", "test")
  lines = [f"{'':<36}" + "".join(f"{split:>12}" for split in splits)]
  for task in _CENSUS_TASKS:
    values = "".join(f"{run[f'{split}/{task}/auc']:>12.4f}" for split in splits)
    lines.append(f"{task:<18}{'auc':<18}{values}")
  lines.append(
    f"best epoch {run['best_epoch']} of {run['epochs']}, …, {run['parameters']:,} parameters"
  )
  return "\n".join(f"    {line}" for line in lines)


# ---- Batch ensembles, clicks ------------------------------------------------------------------


def format_ensembles(record: Record) -> str:
  """Formats AUCs of each method, and test differences to the mean score of seeds."""
  header = ["", "parameters", "validation income", "test income", "minus mean score"]
  header += ["test marital", "minus mean score"]
  lines = []
  for method in (ONE, ONE_LONG, MEAN, MEAN_LONG, ENSEMBLE):
    runs = [run for run in record.runs if run["method"] == method]
    line = [f"{method} ({len(runs)})", f"{runs[0]['parameters']:,}"]
    line.append(mean_of(runs, "validation/income_50k/auc"))
    for task in _CENSUS_TASKS:
      key = f"test/{task}/auc"
      line.append(mean_of(runs, key))
      gap = paired.estimate_difference(record.runs, key, record.rows[task], method, MEAN)
      half = gap.half_rows if gap.half is None else gap.half
      text = tables.signed(gap.value, 5) + tables.plus_minus(half, 5)
      line.append(tables.DASH if method == MEAN else text)
    lines.append(line)
  return tables.markdown(header, lines, False)


def format_clicks(record: Record) -> str:
  """Formats AUC, distance to the best possible one and to MMoE, of each task and model."""
  true, lines = "true probabilities", []
  for task, rows in record.rows.items():
    runs = [run for run in record.runs if run["task"] == task]
    for method in rows["methods"]:
      own = paired.estimate(runs, "auc", rows, method)
      line = [task, method, tables.number(own.value)]
      if method != true:
        line[-1] += tables.plus_minus(own.half)
      for a, b, shown in ((true, method, method != true), (method, "mmoe", method != "mmoe")):
        gap = paired.estimate(runs, "auc", rows, a, b) if shown and method != true else None
        line.append(tables.signed(gap.value) + tables.plus_minus(gap.half) if gap else tables.DASH)
      lines.append(line)
  header = ("task", "model", "test AUC", "below the best possible", "minus mmoe")
  return tables.markdown(header, lines, False)


# ---- The paper's Census table -----------------------------------------------------------------


def _comparisons(record: Record) -> dict[tuple[str, str, str], statistics.Estimate]:
  """Returns (group, task, method) -> difference to MMoE, in the order of the file."""
  found = {}
  for name, rows in record.rows.items():
    group, task = name.split("/")
    runs = [run for run in record.runs if run["group"] == group]
    for method in rows["methods"]:
      if method != "mmoe":
        found[group, task, method] = paired.estimate(runs, f"test/{task}/auc", rows, method, "mmoe")
  return found


def _census_cells(record: Record) -> dict[tuple[str, str, str], tuple[str, str, str, str]]:
  """Returns (group, task, method) -> mean, mean with interval, difference, the paper's mean."""
  gaps = _comparisons(record)
  is_bold = dict(zip(gaps, is_significant([gap.p for gap in gaps.values()]), strict=True))
  cells = {}
  for name, rows in record.rows.items():
    group, task = name.split("/")
    tasks = [key.split("/")[1] for key in record.rows if key.startswith(f"{group}/")]
    for method in rows["methods"]:
      runs = [r for r in record.runs if (r["group"], r["method"]) == (group, method)]
      where = (group, task, method)
      paper = published.CENSUS[group].get(method)
      gap = difference_cell(gaps[where], is_bold[where]) if where in gaps else ""
      mean = mean_of(runs, f"test/{task}/auc")
      bold = f"**{mean.split(' ')[0]}**" if is_bold.get(where) else mean.split(" ")[0]
      published_mean = tables.number(paper[tasks.index(task)].mean) if paper else ""
      cells[where] = (bold, mean, gap, published_mean)
  return cells


def format_census(group: str) -> Callable[[Record], str]:
  """Returns the format of a group's table."""

  def format_group(record: Record) -> str:
    cells = _census_cells(record)
    tasks = [name.split("/")[1] for name in record.rows if name.startswith(f"{group}/")]
    header = [group]
    for task in tasks:
      header += [task, f"{tables.MINUS} mmoe", "paper"]
    methods = record.rows[f"{group}/{tasks[0]}"]["methods"]
    lines = [[m, *(c for task in tasks for c in cells[group, task, m][1:])] for m in methods]
    return tables.markdown(header, lines, False)

  return format_group


def format_census_overview(record: Record) -> str:
  """Formats means of both groups, in brackets the paper's."""
  cells = _census_cells(record)
  header = ["", *(name.split("/")[1] for name in record.rows)]
  methods = next(iter(record.rows.values()))["methods"]
  lines = []
  for method in methods:
    line = [f"`{method}`"]
    for name in record.rows:
      bold, _, _, paper = cells[(*name.split("/"), method)]
      line.append(f"{bold} ({paper.removeprefix('0')})" if paper else bold)
    lines.append(line)
  return tables.markdown(header, lines, False)


def format_search() -> str:
  """Formats the best validation metrics of the search, from the settings that it wrote."""
  found = read_json_object(SETTINGS)
  methods = list(next(iter(found.values())))
  lines = [
    [group, *(f"{of_group[method]['validation']:.5f}" for method in methods)]
    for group, of_group in found.items()
  ]
  return tables.markdown(["", *methods], lines, False)


# ---- The paper's synthetic tasks --------------------------------------------------------------


def _losses(record: Record) -> dict[float, dict[str, np.ndarray]]:
  """Returns p -> model -> loss of each run, NaN where it diverged."""
  found: dict[float, dict[str, list[float]]] = {}
  for run in record.runs:
    loss = np.nan if run["loss"] is None else run["loss"]
    found.setdefault(run["correlation"], {}).setdefault(run["model"], []).append(loss)
  return {p: {m: np.array(v) for m, v in of_p.items()} for p, of_p in found.items()}


def _interval(low: float, high: float, form: Callable[..., str], digits: int = 4) -> str:
  return f"{form(low, digits)} to {form(high, digits)}"


def _share(row: Mapping[str, Any]) -> str:
  share, low, high = (f"{100 * row[k]:.0f}" for k in ("share", "share_low", "share_high"))
  return f"{share} % ({low} to {high})"


def format_synthetic_overview(record: Record) -> str:
  """Formats mean losses, and in which share of runs MMoE is below OMoE."""
  lines = []
  for p, losses in _losses(record).items():
    rows = figures.summarise(p, losses)
    pair = next(
      r for r in figures.compare(p, losses) if (r["first"], r["second"]) == ("omoe", "mmoe")
    )
    cells = [
      f"{r['mean']:.3f} ({_interval(r['mean_low'], r['mean_high'], tables.number, 3)})"
      for r in rows
    ]
    lines.append([f"{p:g}", *cells, _share(pair)])
  header = ["p", *(f"`{m}`" for m in losses), "MMoE below OMoE in … of runs"]
  return tables.markdown(header, lines, False)


def format_synthetic(record: Record) -> str:
  """Formats level and spread of the final losses."""
  header = ("p, model", "mean", "95 % interval", "median", "std", "5 % to 95 %", "largest")
  lines = []
  for p, losses in _losses(record).items():
    for r in figures.summarise(p, losses):
      values = [tables.number(r[k]) for k in ("median", "std", "range_5_to_95", "largest")]
      interval = _interval(r["mean_low"], r["mean_high"], tables.number)
      line = [f"{p:g}, {r['model']}", tables.number(r["mean"]), interval, *values]
      lines.append([*line, tables.number(r["paper_loss"], 3)])
  return tables.markdown((*header, "paper, by eye"), lines, False)


def format_synthetic_pairs(record: Record) -> str:
  """Formats the comparisons of models."""
  header = ("p, pair", "difference of means", "95 % interval", "lower in … of runs", "ratio of std")
  lines = []
  for p, losses in _losses(record).items():
    for r in figures.compare(p, losses):
      ratio = _interval(r["ratio_low"], r["ratio_high"], tables.number, 2)
      line = [f"{p:g}, {r['second']} {tables.MINUS} {r['first']}", tables.signed(r["difference"])]
      line += [_interval(r["low"], r["high"], tables.signed), _share(r)]
      lines.append([*line, f"{r['ratio_of_std']:.2f} ({ratio})"])
  return tables.markdown(header, lines, False)


def format_labels(record: Record) -> str:
  """Formats the correlation of labels by the cosine of weights."""
  lines = []
  for run in record.runs:
    paper = published.LABEL_CORRELATION.get(run["cosine"])
    found = statistics.over_seeds(run["values"])
    mean = tables.number(found.value, 3) + tables.plus_minus(found.half_seeds, 3)
    lines.append([f"{run['cosine']:g}", mean, "" if paper is None else tables.number(paper, 2)])
  return tables.markdown(("cosine", "correlation of labels", "paper, by eye"), lines, False)


_STUDENT = "Means over seeds ± the half width of a 95 % interval of the mean (Student's t)."
_CENSUS = ("paper_census",)
_LOSSES = ("synthetic/losses",)
_SEED_TABLES = {
  "seeds/accuracy": (SEEDS, format_accuracy),
  "seeds/overview": ((SEEDS[2], *SEEDS[:2]), format_overview),
}
TABLES: dict[str, Table] = {
  **{n: Table(files, f, _STUDENT, True) for n, (files, f) in _SEED_TABLES.items()},
  "seeds/output": Table(SEEDS[:1], format_output),
  "batch_ensembles": Table(
    ("batch_ensembles",),
    format_ensembles,
    "In brackets the number of trainings or groups; 95 % intervals over trainings, of differences "
    "over trainings and test rows, or rows alone where there is one group.",
  ),
  "clicks": Table(("clicks",), format_clicks),
  "trees/demo": Table(
    ("trees/demo",),
    trees_tables.format_records,
    "95 % intervals over seeds and rows, of a mean score over rows; of differences, with the seeds "
    "of both as independent. Bold where the interval excludes zero.",
  ),
  "task_weightings/group1": Table(
    ("task_weightings/group1",),
    task_weightings_tables.format_records,
    "Test AUC, and paired differences with 95 % intervals over seeds and rows.",
  ),
  "paper_census/overview": Table(_CENSUS, format_census_overview),
  "paper_census/search": Table((), format_search, "From `studies/paper_census_settings.json`."),
  "paper_census/group1": Table(_CENSUS, format_census("group1")),
  "paper_census/group2": Table(_CENSUS, format_census("group2")),
  "synthetic/overview": Table(_LOSSES, format_synthetic_overview),
  "synthetic/losses": Table(_LOSSES, format_synthetic),
  "synthetic/pairs": Table(_LOSSES, format_synthetic_pairs),
  "synthetic/labels": Table(("synthetic/labels",), format_labels),
}
FIGURES: dict[str, Figure] = {}
