"""Tables and figures of the benchmarks in the documents, from their result files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.records import Record
from mmoe_jax.evaluation import tables
from studies.documents import Figure, Table

_RACE_NAMES = {
  "ours": "mmoe_jax, one run (one core)",
  "ours_all_cores": "mmoe_jax, one run, XLA's thread pool on all cores",
  "ours_population": "mmoe_jax, 16 runs as a population (all cores), together",
  "lean_torch": "the leanest PyTorch that we could write, compiled",
  "deepctr_torch": "DeepCTR-Torch",
  "torch_rechub": "torch-rechub (with batch norm)",
}
_VOCABULARY_NAMES = {
  "ours_dense_adam": "ours, dense Adam",
  "ours_lazy_adam": "ours, by rows: lazy Adam",
  "ours_adagrad": "ours, by rows: Adagrad",
  "ours_rowwise_adagrad": "ours, by rows: row-wise Adagrad",
  "pytorch_dense_adam": "PyTorch, dense Adam",
  "pytorch_sparse_adam": "PyTorch, sparse gradient and SparseAdam",
  "pytorch_sparse_adagrad": "PyTorch, sparse gradient and Adagrad",
}


def _rate(value: float) -> str:
  """Formats rows/s with three significant digits."""
  return f"{float(f'{value:.3g}'):,.0f}"


def _grid(
  corner: str, rows: Mapping[Any, str], columns: Mapping[Any, str], cells: Mapping[Any, str]
) -> str:
  """Formats cells by (row, column) as a table; absent ones stay empty."""
  lines = [[name, *(cells.get((r, c), "") for c in columns)] for r, name in rows.items()]
  return tables.markdown([corner, *columns.values()], lines, False)


# ---- The race --------------------------------------------------------------------------------


def _race_rows(record: Record, is_best: bool) -> list[tuple[str, Mapping[int, Mapping[str, Any]]]]:
  """Returns name -> batch size -> run; of contenders with threads the faster one, or each."""
  named: dict[str, dict[int, Mapping[str, Any]]] = {}
  for run in record.runs:
    module, _, threads = run["contender"].partition(", ")
    name = _RACE_NAMES.get(module, module)
    if not is_best and threads:
      name = f"{name}, {threads}"
    of_name = named.setdefault(name, {})
    before = of_name.get(run["batch_size"])
    if before is None or run["rows_per_second"] > before["rows_per_second"]:
      of_name[run["batch_size"]] = run
  return list(named.items())


def _race(record: Record, rows: Sequence[tuple[str, Mapping[int, Mapping[str, Any]]]]) -> str:
  sizes = list(dict.fromkeys(run["batch_size"] for run in record.runs))
  ours = {r["batch_size"]: np.array(r["rates"]) for r in record.runs if r["contender"] == "ours"}
  header = [""]
  for size in sizes:
    header += [f"{size:,} rows per batch, rows/s", "ours / it"]
  lines = []
  for name, of_sizes in rows:
    line = [name]
    for size in sizes:
      rates = np.array(of_sizes[size]["rates"])
      ratio = f"{np.median(ours[size] / rates):.3g}" if size in ours else ""
      line += [_rate(float(np.median(rates))), ratio]
    lines.append(line)
  return tables.markdown(header, lines, False)


def format_race(record: Record) -> str:
  """Formats rows/s of each contender and number of threads, and ours relative to it."""
  return _race(record, _race_rows(record, is_best=False))


def format_race_overview(record: Record) -> str:
  """Formats the race with the faster number of threads of each contender."""
  return _race(record, _race_rows(record, is_best=True))


# ---- Large tables ----------------------------------------------------------------------------


def format_vocabularies(record: Record, batch_size: int = 1024) -> str:
  """Formats rows/s by contender and table rows, and ours relative to the best of PyTorch."""
  points = [p for p in record.runs if p["batch_size"] == batch_size]
  sizes = {s: f"{s:,} table rows" for s in sorted({p["table_rows"] for p in points})}
  medians = {(p["contender"], p["table_rows"]): np.median(p["rows_per_second"]) for p in points}
  cells = {where: _rate(float(value)) for where, value in medians.items()}
  names = {n: text for n, text in _VOCABULARY_NAMES.items() if any(n == c for c, _ in medians)}
  for size in sizes:
    best = {
      who: max((m for (c, s), m in medians.items() if s == size and c.startswith(who)), default=0)
      for who in ("ours", "pytorch")
    }
    if min(best.values()):
      cells["ratio", size] = f"{best['ours'] / best['pytorch']:.1f}"
  names["ratio"] = "ours / the best PyTorch"
  return _grid(f"rows/s, batches of {batch_size:,}", names, sizes, cells)


def format_large_rate(record: Record) -> str:
  """Formats our rows/s with 8 million table rows."""
  return f"{_rate(_best_at(record, 'ours'))} rows/s"


def format_large_ratio(record: Record) -> str:
  """Formats ours relative to the best of PyTorch with 8 million table rows."""
  return f"{_best_at(record, 'ours') / _best_at(record, 'pytorch'):.1f} times"


def _best_at(
  record: Record, who: str, table_rows: int = 8_000_000, batch_size: int = 1024
) -> float:
  return max(
    float(np.median(p["rows_per_second"]))
    for p in record.runs
    if (p["table_rows"], p["batch_size"]) == (table_rows, batch_size)
    and p["contender"].startswith(who)
  )


def format_vocabularies_large(record: Record) -> str:
  """Formats the same for batches of 8,192."""
  return format_vocabularies(record, 8192)


def format_lists(record: Record) -> str:
  """Formats rows/s of padded and packed lists by the number of columns."""
  lines = []
  for length in dict.fromkeys(run["length"] for run in record.runs):
    line = [f"{length}"]
    for updates in ("rows", "dense"):
      run = next(r for r in record.runs if (r["length"], r["updates"]) == (length, updates))
      line += [_rate(run["padded"]), _rate(run["packed"]), f"{run['ratio']:.2f}"]
    lines.append(line)
  header = ["columns of the list"]
  for name in ("by rows", "dense"):
    header += [f"{name}: padded", "packed", "ratio"]
  return tables.markdown(header, lines, False)


# ---- Parts, scaling, waiting ------------------------------------------------------------------


def format_parts(record: Record) -> str:
  """Formats milliseconds per step of the programs, and the share that each part adds."""
  rows = record.settings["rows"]
  sizes = list(dict.fromkeys(run["batch_size"] for run in record.runs))
  seconds = {(r["batch_size"], r["program"]): float(np.median(r["seconds"])) for r in record.runs}
  programs = [p for p in dict.fromkeys(r["program"] for r in record.runs) if p != "products"]
  header, lines = ["program"], [[program] for program in programs]
  total = ["fraction of the largest product's speed"]
  inputs, units = record.settings["kernel"]
  for size in sizes:
    header += [f"ms per step of {size:,}", "share"]
    whole, before = seconds[size, programs[-1]], 0.0
    for line, program in zip(lines, programs, strict=True):
      value = seconds[size, program]
      line += [f"{1e3 * value / -(-rows // size):.3f}", f"{(value - before) / whole:.0%}"]
      before = value
    product = 2 * record.settings["pairs"] * 2 * size * inputs * units / seconds[size, "products"]
    reached = record.settings["operations_per_row"] * rows / whole
    total += [f"{reached / 1e9:.1f} of {product / 1e9:.1f} GFLOP/s", f"{reached / product:.2f}"]
  return tables.markdown(header, [*lines, total], False)


def format_scaling(record: Record) -> str:
  """Formats rows/s and peak memory along each axis."""
  lines = []
  for axis in dict.fromkeys(point["axis"] for point in record.runs):
    points = [point for point in record.runs if point["axis"] == axis]
    peaks = [point["peak_bytes"] / 2**30 for point in points]
    rates = [f"{np.median(point['rows_per_second']) / 1e3:.0f}" for point in points]
    sizes = "; ".join(f"{point['size']:,}" for point in points)
    lines.append([axis, sizes, ", ".join(rates), f"{min(peaks):.2f} to {max(peaks):.2f}"])
  return tables.markdown(("axis", "sizes", "thousand rows/s", "peak, GiB"), lines, False)


def format_waiting(record: Record) -> str:
  """Formats the median of each step."""
  lines = []
  for run in record.runs:
    value = float(np.median(run["values"]))
    is_rate = run["step"].endswith("rows_per_second")
    lines.append([run["step"], f"{_rate(value)} rows/s" if is_rate else f"{value:.3f} s"])
  return tables.markdown(("step", "median"), lines, False)


def format_streaming(record: Record) -> str:
  """Formats rows/s and peak memory of training in memory and from disk."""
  names = list(dict.fromkeys(run["rows_are"] for run in record.runs))
  rates = {
    n: np.array([r["rows_per_second"] for r in record.runs if r["rows_are"] == n]) for n in names
  }
  lines = []
  for name in names:
    peak = max(run["peak_bytes"] for run in record.runs if run["rows_are"] == name) / 2**30
    ratio = np.median(rates[name] / rates["resident"])
    text = "in memory" if name == "resident" else f"streamed, {record.settings['memory_gib']} GiB"
    lines.append([text, _rate(float(np.median(rates[name]))), f"{ratio:.2f}", f"{peak:.2f} GiB"])
  return tables.markdown(("train rows", "rows/s", "ratio", "peak of the process"), lines, False)


def format_population(record: Record) -> str:
  """Formats seconds of a population and of separate runs of its members."""
  together = [r["seconds"] for r in record.runs if r["process"] == "population"]
  separate = sum(r["seconds"] for r in record.runs if r["process"] == "run")
  worst = max(record.settings["largest_difference"].values())
  lines = [
    [f"{record.settings['members']} seeds as a population", f"{together[0]:.1f} s", "1"],
    ["the same as separate runs", f"{separate:.1f} s", f"{separate / together[0]:.2f}"],
    ["largest difference of an AUC or log loss", f"{worst:.3g}", ""],
  ]
  return tables.markdown(("", "whole processes", "ratio"), lines, False)


# ---- Reliability -----------------------------------------------------------------------------


def format_damage(record: Record) -> str:
  """Formats how often each use of damaged files ended in each way."""
  outcomes = {"error line": "one error line", "same": "the same result"}
  outcomes |= {"warning": "another result, with a warning"}
  lines = []
  for use in dict.fromkeys(run["use"] for run in record.runs):
    runs = [run for run in record.runs if run["use"] == use]
    counts = [sum(r["count"] for r in runs if r["outcome"] == outcome) for outcome in outcomes]
    wrong = sum(run["count"] for run in runs) - sum(counts)
    lines.append([use, *counts, wrong])
  header = ("use", *outcomes.values(), "silently wrong, or a traceback")
  return tables.markdown(header, lines, False)


def format_kills(record: Record) -> str:
  """Formats kills by job, and how the jobs ended."""
  lines = []
  for job in [*dict.fromkeys(run["job"] for run in record.runs), "all"]:
    runs = [run for run in record.runs if job in (run["job"], "all")]
    trials = [run["trial"] for run in runs]
    several = sum(trials.count(trial) > 1 for trial in set(trials))
    identical = sum(run["outcome"] == "identical" for run in runs)
    lines.append([job, len(runs), len(set(trials)), several, identical, len(runs) - identical])
  header = ("job", "kills", "jobs", "killed twice or more", "ended bitwise identical", "otherwise")
  return tables.markdown(header, lines)


def format_cost(record: Record) -> str:
  """Formats what saving costs, and how soon a run resumes and leaves."""
  (run,) = record.runs
  seconds = lambda values: f"{min(values):.1f} to {max(values):.1f} s"
  lines = [
    [
      f"a save of {save['bytes'] / 1e6:.1f} MB: training waits; epoch with a save, without",
      f"{save['call_s']:.2f} s; {save['ratio']:.2f} of {save['epoch_s']:.2f} s",
    ]
    for save in run["saves"]
  ]
  leaving, long = run["leaving"], run["leaving_a_long_epoch"]
  lines += [
    ["`census.py`, from start to its first step, resumed", seconds(run["resuming_s"])],
    [
      f"`census.py`, from SIGTERM to exit; of {leaving['runs']} resumed, bitwise identical",
      f"{seconds(leaving['seconds'])}; {leaving['identical']}",
    ],
    [f"the same, an epoch of {long['rows']:,} streamed rows", f"{long['seconds']:.1f} s"],
    ["load of the machine over 1 and 5 minutes", " and ".join(f"{x:.1f}" for x in run["load"][:2])],
  ]
  return tables.markdown(("", "figure"), lines, False)


def format_serving(record: Record) -> str:
  """Formats the measurements of the server."""
  (run,) = record.runs
  ms = run["latency_ms"]
  stops = [sum(column) for column in zip(*run["stops"], strict=True)]
  clients = record.settings.get("clients", 8)
  lines = [
    ["raw rows, server minus `Predictor`, largest difference", f"{run['largest_difference']:g}"],
    [
      f"requests of one row, {clients} clients that wait: median, 90 %, 99 %",
      f"{ms['50']:.1f}, {ms['90']:.1f}, {ms['99']:.1f} ms",
    ],
    [
      "requests of 256 rows, 2 clients",
      f"{_rate(run['rows_per_second_json'])} rows/s as JSON, "
      f"{_rate(run['rows_per_second_arrow'])} as Arrow",
    ],
    ["reloads under load", f"{run['swaps'][0]:,} requests, {sum(run['swaps'][1:])} lost or wrong"],
    [
      f"{len(run['stops'])} stops by SIGTERM under load",
      f"{stops[0]:,} requests, {stops[1] + stops[2]} lost or wrong, exit status {stops[3]}",
    ],
    [
      "wrong bodies",
      f"{run['malformed'][0]} not answered 4xx; {run['malformed'][1] / 2**20:.0f} MiB of memory "
      f"after 500, {run['malformed'][2] / 2**20:.0f} after all",
    ],
  ]
  return tables.markdown(("", "figure"), lines, False)


TABLES: dict[str, Table] = {
  "race": Table(("race",), format_race, "Medians over rounds, ratios per round."),
  "race/overview": Table(
    ("race",), format_race_overview, "Medians over rounds; PyTorch with the better threads."
  ),
  "vocabularies": Table(("vocabularies",), format_vocabularies),
  "vocabularies/large_batches": Table(("vocabularies",), format_vocabularies_large),
  "lists": Table(("lists",), format_lists),
  "epoch_parts": Table(("epoch_parts",), format_parts),
  "scaling": Table(("scaling",), format_scaling),
  "waiting": Table(("waiting",), format_waiting),
  "streaming": Table(("streaming",), format_streaming),
  "population_speed": Table(("population_speed",), format_population),
  "reliability/kills": Table(("reliability/kills",), format_kills),
  "reliability/cost": Table(("reliability/cost",), format_cost),
  "reliability/damage": Table(("reliability/damage",), format_damage),
  "serving": Table(("serving",), format_serving),
}
FIGURES: dict[str, Figure] = {
  "vocabularies/rate": Figure(("vocabularies",), format_large_rate),
  "vocabularies/ratio": Figure(("vocabularies",), format_large_ratio),
}
