"""Tables of the study of fresh rows, from its result files.

Shape letters: R runs, G groups, M models.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.records import Record
from mmoe_jax.evaluation import statistics, tables
from studies import synthetic_figures as figures
from studies.documents import Figure, Table
from studies.variance_components import components

LOSS = "test/mse"
STUCK = 0.1  # A run above this loss counts as stuck; most end below half of it.
FOLDER = "paper_synthetic_fresh"
Runs = Sequence[Mapping[str, Any]]
# Measures of a network and what they are called.
MEASURES = {
  "aligned_units": "aligned units",
  "dead_units": "dead units",
  "entropy": "entropy of the gates",
  "gate_overlap": "overlap of the gates",
}


def search(record: Record) -> str:
  """Formats the mean validation loss of each setting, model and p."""
  columns = sorted({(r["model"], r["correlation"]) for r in record.runs}, key=_order)
  found: dict[tuple, dict[tuple, list[float]]] = {}
  for r in record.runs:
    setting = (r["learning_rate"], r["batch_size"], r["schedule"])
    losses = found.setdefault(setting, {})
    losses.setdefault((r["model"], r["correlation"]), []).append(r["validation/mse"])
  best = {c: min(np.mean(v[c]) for v in found.values() if c in v) for c in columns}
  lines = []
  for setting in sorted(found, key=lambda s: (s[1], s[2] != "constant", s[0])):
    cells = [f"{setting[0]:g}, {setting[1]}, {setting[2]}"]
    for column in columns:
      losses = found[setting].get(column)
      text = tables.number(np.mean(losses) if losses else None, 3)
      cells.append(f"**{text}**" if losses and np.mean(losses) == best[column] else text)
    lines.append(cells)
  header = ("rate, batch size, schedule", *(f"{p:g}, {model}" for model, p in columns))
  return tables.markdown(header, lines)


def spread(record: Record) -> str:
  """Formats level and spread of the final loss of each model and p."""
  lines = []
  for p, losses in _by_model(record.runs).items():
    for row in figures.summarise(p, losses):
      loss_R = losses[row["model"]]
      low, high = _std_interval(loss_R)
      cells = [f"{p:g}, {row['model']}", str(row["runs"]), tables.number(row["mean"])]
      cells += [f"{tables.number(row['mean_low'])} to {tables.number(row['mean_high'])}"]
      quantiles = np.quantile(loss_R, (0.05, 0.5, 0.95))
      cells += [tables.number(q) for q in (*quantiles, row["largest"])]
      cells += [f"{tables.number(row['std'])} ({tables.number(low)} to {tables.number(high)})"]
      above = int((loss_R > STUCK).sum())
      share = statistics.share_interval(above, len(loss_R))
      cells += [f"{above} ({' to '.join(tables.number(100 * s, 0) for s in share)} %)"]
      lines.append([*cells, tables.number(row["paper_loss"], 3)])
  header = ("p, model", "runs", "mean", "95 % interval", "5 %", "median", "95 %", "largest")
  header += ("std (95 % interval)", f"runs above {STUCK}", "paper, by eye")
  return tables.markdown(header, lines)


def pairs(record: Record) -> str:
  """Formats the differences between models on the same runs."""
  lines = []
  for p, losses in _by_model(record.runs).items():
    for row in figures.compare(p, losses):
      share = [tables.number(100 * row[k], 0) for k in ("share", "share_low", "share_high")]
      ratio = [tables.number(row[k], 2) for k in ("ratio_of_std", "ratio_low", "ratio_high")]
      cells = [f"{p:g}, {row['second']} {tables.MINUS} {row['first']}"]
      cells += [tables.signed(row["difference"])]
      cells += [f"{tables.signed(row['low'])} to {tables.signed(row['high'])}"]
      cells += [
        f"{share[0]} % ({share[1]} to {share[2]})",
        f"{ratio[0]} ({ratio[1]} to {ratio[2]})",
      ]
      lines.append(cells)
  header = ("p, pair", "difference of means", "95 % interval", "lower in … of runs", "ratio of std")
  return tables.markdown(header, lines)


def networks(record: Record) -> str:
  """Formats what the trained networks are like, and how fast their loss still falls."""
  lines = []
  for (p, model), runs in _groups(record.runs, ("correlation", "model")).items():
    end_R, before_R = (
      np.array([r[f"validation/mse_at_{name}"] for r in runs]) for name in ("end", "three_quarters")
    )
    fall = statistics.over_seeds(100 * (before_R - end_R) / before_R)
    cells = [
      f"{p:g}, {model}",
      tables.number(fall.value, 0) + tables.plus_minus(fall.half_seeds, 0),
    ]
    for measure in MEASURES:
      values = [r[measure] for r in runs if measure in r]
      digits = 1 if "units" in measure else 2
      cells.append(tables.number(np.mean(values) if values else None, digits))
    ranks = _rank_correlation(runs, "aligned_units")
    lines.append([*cells, ranks])
  header = ("p, model", "fall in the last quarter, %", *MEASURES.values())
  return tables.markdown((*header, "rank correlation of loss and aligned units"), lines)


def rates(study: Record, causes: Record) -> str:
  """Formats the same runs with the searched learning rate and with the highest."""
  high = [r for r in causes.runs if r["group"].startswith("rate/")]
  lines = []
  for (p, model), runs in _groups(high, ("correlation", "model")).items():
    searched = _same_runs(study.runs, runs, p, model)
    for kind, each in (("searched", searched), ("highest", runs)):
      loss_R = np.array([r[LOSS] for r in each])
      found = statistics.over_seeds(loss_R)
      cells = [f"{p:g}, {model}", f"{kind}: {each[0]['learning_rate']:g}", str(len(each))]
      cells += [tables.number(found.value) + tables.plus_minus(found.half_seeds)]
      cells += [tables.number(v) for v in (loss_R.min(), loss_R.max())]
      for measure in ("aligned_units", "dead_units"):
        cells.append(tables.number(np.mean([r[measure] for r in each]), 1))
      lines.append(cells)
  header = ("p, model", "learning rate", "runs", "mean loss", "least", "largest", "aligned units")
  return tables.markdown((*header, "dead units"), lines)


def longer(study: Record, causes: Record) -> str:
  """Formats the same runs on the study's rows and on several times as many."""
  lines = []
  runs_longer = [r for r in causes.runs if r["group"].startswith("longer/")]
  for (p, model), runs in _groups(runs_longer, ("correlation", "model")).items():
    first = _same_runs(study.runs, runs, p, model)
    loss_R, longer_R = (np.array([r[LOSS] for r in each]) for each in (first, runs))
    difference = statistics.over_seeds(longer_R - loss_R)
    for each, of_R in ((first, loss_R), (runs, longer_R)):
      std = tables.number(of_R.std(ddof=1))
      cells = [f"{p:g}, {model}", f"{each[0]['rows']:,}", tables.number(of_R.mean()), std]
      cells.append(tables.number(of_R.max()))
      text = tables.signed(difference.value) + tables.plus_minus(difference.half_seeds)
      lines.append([*cells, text if each is runs else ""])
  return tables.markdown(("p, model", "rows", "mean", "std", "largest", "difference"), lines)


def sources(causes: Record) -> str:
  """Formats the components of the variance of the loss: between groups, and within them."""
  lines = []
  what = {"task": "task | initialisation and rows", "rows": "initialisation | rows"}
  for cause, text in what.items():
    of_cause = [r for r in causes.runs if r["group"].startswith(f"{cause}/")]
    for (p, model), runs in _groups(of_cause, ("correlation", "model")).items():
      groups = _groups(runs, ("group",))
      loss_GxR = np.array([[r[LOSS] for r in each] for each in groups.values()])
      c = components(loss_GxR)
      between, _, within = text.partition(" | ")
      count_G, count_R = loss_GxR.shape
      cells = [f"{p:g}, {model}", f"{between} ({count_G})", f"{within} ({count_R})"]
      cells += [tables.number(c.between), tables.number(c.within)]
      cells += [f"{100 * c.share:.0f} % ({100 * c.low:.0f} to {100 * c.high:.0f})"]
      lines.append([*cells, tables.number(c.p, 3)])
  header = ("p, model", "between (number)", "within (number)", "std between", "std within")
  return tables.markdown((*header, "share between", "p-value"), lines, numeric=False)


def _rank_correlation(runs: Runs, measure: str) -> str:
  """Formats Spearman's correlation of the loss and a measure, with Fisher's interval."""
  loss_R, measure_R = (np.array([r[name] for r in runs], float) for name in (LOSS, measure))
  if len(runs) < 5 or np.ptp(measure_R) == 0:
    return tables.DASH
  found = stats.spearmanr(loss_R, measure_R).statistic
  # The variance of Fisher's transform of Spearman's coefficient (Bonett and Wright 2000).
  half = stats.norm.ppf(0.975) * np.sqrt((1 + found**2 / 2) / (len(runs) - 3))
  limited = np.clip(found, -0.999999, 0.999999)
  low, high = np.tanh(np.arctanh(limited) - half), np.tanh(np.arctanh(limited) + half)
  low, high, found = (tables.signed(v, 2) for v in (low, high, found))
  return f"{found} ({low} to {high})"


def _std_interval(loss_R: np.ndarray) -> tuple[float, float]:
  """Returns the bootstrap interval of the standard deviation over runs."""
  draws = statistics.bootstrap(np.asarray(loss_R)[None], lambda a, axis: a.std(axis, ddof=1))
  return statistics.percentile_interval(draws[0])


def _same_runs(study: Runs, runs: Runs, correlation: float, model: str) -> Runs:
  """Returns the runs of the study with the seeds of `runs`, in their order."""
  of_seed = {r["seed"]: r for r in study if (r["correlation"], r["model"]) == (correlation, model)}
  return [of_seed[r["seed"]] for r in runs]


def _groups(runs: Runs, keys: Sequence[str]) -> dict[tuple, list[Mapping[str, Any]]]:
  found: dict[tuple, list[Mapping[str, Any]]] = {}
  for run in runs:
    found.setdefault(tuple(run[key] for key in keys), []).append(run)
  return found if keys == ("group",) else dict(sorted(found.items(), key=lambda g: _order(g[0])))


def _by_model(runs: Runs) -> dict[float, dict[str, np.ndarray]]:
  """Returns p -> model -> loss of each run, in the order of seeds; runs that all models have."""
  found: dict[float, dict[str, np.ndarray]] = {}
  for p in sorted({r["correlation"] for r in runs}):
    of_model: dict[str, dict[int, float]] = {}
    for r in runs:
      if r["correlation"] == p:
        of_model.setdefault(r["model"], {})[r["seed"]] = r[LOSS]
    seeds = sorted(set.intersection(*(set(losses) for losses in of_model.values())))
    ordered = sorted(of_model, key=_MODELS.index)
    found[p] = {model: np.array([of_model[model][s] for s in seeds]) for model in ordered}
  return found


_MODELS = ("shared_bottom", "omoe", "mmoe")


def _order(pair: tuple) -> tuple:
  """Returns a key that sorts (model, p) or (p, model) by p, then by the size of the model."""
  model, p = sorted(pair, key=lambda part: not isinstance(part, str))
  return p, _MODELS.index(model)


_STUDY, _CAUSES = f"{FOLDER}/study", f"{FOLDER}/causes"
TABLES: dict[str, Table] = {
  f"{FOLDER}/search": Table((f"{FOLDER}/search",), search),
  f"{FOLDER}/spread": Table((_STUDY,), spread),
  f"{FOLDER}/pairs": Table((_STUDY,), pairs),
  f"{FOLDER}/networks": Table((_STUDY,), networks),
  f"{FOLDER}/rates": Table((_STUDY, _CAUSES), rates),
  f"{FOLDER}/longer": Table((_STUDY, _CAUSES), longer),
  f"{FOLDER}/sources": Table((_CAUSES,), sources),
}
FIGURES: dict[str, Figure] = {}
