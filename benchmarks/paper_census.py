"""The census study of Ma et al. (KDD 2018): eight methods, two groups of tasks, many seeds.

  python -m benchmarks.paper_census --search --trials 16 --out runs/paper_census_search
  python -m benchmarks.paper_census --seeds 20 --out runs/paper_census

The search gives every method the same budget on validation rows, never looks at test rows, and
writes its choice to benchmarks/paper_census_settings.json. The study trains each method with its
choice, the seeds as one population, and leaves table.md, table.json, table.csv and plots in --out.
Each population has a folder of its own below --out: started again, a study goes on where it was.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks import plots, published, statistics, studies, tables
from configs import census
from mmoe_jax import cache, data, errors, parallel, tune
from mmoe_jax.config import override
from mmoe_jax.errors import require, require_known
from mmoe_jax.table import write_atomically

SETTINGS = os.path.join(os.path.dirname(__file__), "paper_census_settings.json")
BASELINE = "mmoe"
EPOCHS = 6  # Half of configs/census.py: at higher rates, which the search finds, as good.
# The first task is the main one of the paper.
GROUPS = {"group1": ("income_50k", "marital_stat"), "group2": ("education", "marital_stat")}

_BOTTOM = {
  # Keys joined by + share their value.
  "optimizer.dense.learning_rate+optimizer.embedding.learning_rate": ("log", 2e-3, 2e-2),
  "model.embedding_dropout": ("uniform", 0.0, 0.3),
  "model.bottom_dropout": ("uniform", 0.0, 0.5),
}
_EXPERT = {k.replace("bottom", "expert"): v for k, v in _BOTTOM.items()}
# What the search varies for each method; the methods in the order of the paper's tables.
SPACES: dict[str, dict[str, tuple]] = {
  "single_task": _BOTTOM,
  "shared_bottom": _BOTTOM,
  "l2_constrained": _BOTTOM | {"model.l2_strength": ("log", 1e-6, 1e-2)},
  "cross_stitch": _BOTTOM | {"model.stitch_own": ("uniform", 0.5, 1.0)},
  "tensor_factorization": _BOTTOM,
  "omoe": _EXPERT,
  "mmoe": _EXPERT,
  "ple": _EXPERT,
}


def create_config(group: str, method: str, data_dir: str, epochs: int | None) -> Any:
  """The config of a method on a group of tasks, under the paper's protocol."""
  config = census.get_config(f"{method},tasks={'+'.join(GROUPS[group])},protocol=paper")
  config.data_dir = data_dir
  if epochs is not None:
    config.train.epochs = epochs
  return config


def selection_value(result: Mapping[str, Any], config: Any) -> float:
  """What the config selects by, of a member's best epoch on validation rows; higher is better."""
  tasks = config.select.tasks or config.data.tasks
  value = np.mean([result["validation"][f"{t}/{config.select.metric}"] for t in tasks])
  return float(-value if config.select.metric == "log_loss" else value)


# ---- The search ------------------------------------------------------------------------------


def run_search(
  groups: Sequence[str],
  methods: Sequence[str],
  trials: int,
  out: str,
  data_dir: str,
  epochs: int | None,
  path: str = SETTINGS,
) -> None:
  """Searches every method of every group with as many trials; writes the best on validation rows.

  Args:
    groups, methods: keys of GROUPS and SPACES.
    trials: of each method and group, earlier ones in `out` included.
    out: the searches' folder.
    data_dir: what data preparation wrote.
    epochs: of each training; None for the config's.
    path: of the settings file, in which the other methods and groups stay.
  """
  progress = studies.Progress(len(groups) * len(methods))
  for group in groups:
    for method in methods:
      config = create_config(group, method, data_dir, epochs)
      folder = os.path.join(out, group, method)
      finished = tune.search(config, SPACES[method], trials, folder)
      best = finished[0]
      chosen = studies.read_settings(path)
      chosen.setdefault(group, {})[method] = {
        "settings": best["settings"],
        "validation": best["value"],  # The mean of `metric` over `tasks`.
        "metric": config.select.metric,
        "tasks": list(config.select.tasks or config.data.tasks),
        "trials": len(finished),
        "failed": sum(t["value"] is None for t in finished),
        "values": [t["value"] for t in finished],  # Best first.
      }
      studies.write_json(path, chosen)
      settings = ", ".join(f"{k}={v:.3g}" for k, v in best["settings"].items())
      progress.done(f"{group} {method}: validation {best['value']:.5f}; {settings}")


# ---- The study -------------------------------------------------------------------------------


def summarise(
  group: str,
  populations: Mapping[str, Mapping[str, Any]],
  scores: Mapping[str, np.ndarray],
  labels_NxT: np.ndarray,
) -> list[dict[str, Any]]:
  """A row for each task and method of a group.

  Args:
    group: a key of GROUPS.
    populations: method -> what `studies.train` returns, and `best`: which member has the best
      validation measure.
    scores: method -> logits of the test rows, (M, N, T).
    labels_NxT: the test rows' labels.

  Returns:
    Rows of flat values; AUCs are of test rows, and `difference` is to BASELINE over the seeds that
    both have.

  Raises:
    UserError: where logits and metrics of a population do not belong together.
  """
  rows = []
  for t, task in enumerate(GROUPS[group]):
    aucs = {m: aucs_of(p["results"], task) for m, p in populations.items()}
    placed = {}
    for method, auc_M in aucs.items():
      seeds = np.flatnonzero(np.isfinite(auc_M))
      placed[method] = statistics.mean_placements(scores[method][seeds, :, t], labels_NxT[:, t])
      require(
        abs(placed[method].auc - auc_M[seeds].mean()) < 1e-5,
        f"{group} {method}: its logits give an AUC of {placed[method].auc:.6f} for {task} and its "
        f"results {auc_M[seeds].mean():.6f}; delete its folder",
      )
    for method, auc_M in aucs.items():
      kept_M = auc_M[np.isfinite(auc_M)]
      own = statistics.over_seeds(kept_M, statistics.auc_variances(placed[method]))
      paper = published.CENSUS[group].get(method)
      rows.append(
        {"group": group, "task": task, "method": method}
        | {"parameters": populations[method]["results"][0]["parameters"]}
        | {"seeds": len(kept_M), "diverged": len(auc_M) - len(kept_M), "mean": own.value}
        | {"half": own.half, "half_seeds": own.half_seeds, "half_rows": own.half_rows}
        | {"std": own.std, "at_best_validation": float(auc_M[populations[method]["best"]])}
        | {"best": float(kept_M.max()), "worst": float(kept_M.min())}
        | _difference(method, t, aucs, placed, scores, labels_NxT)
        | {"paper_mean": paper[t].mean if paper else None}
        | {"paper_best": paper[t].best if paper else None}
        | {"seconds": populations[method]["seconds"]}
      )
  return rows


def aucs_of(results: Sequence[Mapping[str, Any]], task: str) -> np.ndarray:
  """(M,) test AUC of each member, NaN for one that diverged."""
  name = f"{task}/auc"
  return np.array([np.nan if "error" in r else r["test"][name] for r in results], np.float64)


def _difference(
  method: str,
  t: int,
  aucs: Mapping[str, np.ndarray],
  placed: Mapping[str, statistics.Placements],
  scores: Mapping[str, np.ndarray],
  labels_NxT: np.ndarray,
) -> dict[str, float | None]:
  names = ("difference", "difference_half", "difference_half_seeds", "difference_half_rows")
  if method == BASELINE or BASELINE not in aucs:
    return dict.fromkeys(names)
  difference_M = aucs[method] - aucs[BASELINE]
  seeds = np.flatnonzero(np.isfinite(difference_M))
  if not len(seeds):
    return dict.fromkeys(names)
  pair = [placed[method], placed[BASELINE]]
  if len(seeds) < len(difference_M):
    pair = [
      statistics.mean_placements(scores[m][seeds, :, t], labels_NxT[:, t])
      for m in (method, BASELINE)
    ]
  found = statistics.over_seeds(difference_M[seeds], statistics.auc_variances(*pair))
  values = (found.value, found.half, found.half_seeds, found.half_rows)
  return dict(zip(names, values, strict=True))


def markdown(rows: Sequence[Mapping[str, Any]], untuned: Sequence[str] = ()) -> str:
  """The rows as Markdown: a table of both tasks for each group, and one of each task in detail.

  Args:
    rows: as `summarise` gives them, of one group or more.
    untuned: what to name as trained with the config's own settings.
  """
  parts = []
  for group in dict.fromkeys(r["group"] for r in rows):
    of_group = [r for r in rows if r["group"] == group]
    tasks = list(dict.fromkeys(r["task"] for r in of_group))
    parts += [f"### {group}: {' and '.join(tasks)}", _overview(of_group, tasks)]
    for task in tasks:
      parts += [f"#### {group}, {task}", _detail([r for r in of_group if r["task"] == task])]
  parts.append(_explanation(rows, untuned))
  return "\n\n".join(parts) + "\n"


def _overview(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> str:
  header = ["method"]
  for task in tasks:
    header += [task, f"{tables.MINUS} {BASELINE}", "paper"]
  lines = []
  for method in dict.fromkeys(r["method"] for r in rows):
    line = [method]
    for r in (r for r in rows if r["method"] == method):
      line += [_mean(r), _gap(r), tables.number(r["paper_mean"])]
    lines.append(line)
  return tables.markdown(header, lines)


def _detail(rows: Sequence[Mapping[str, Any]]) -> str:
  header = ["method", "parameters", "mean", "seeds alone", "std", "at best validation", "best"]
  header += [f"{tables.MINUS} {BASELINE}", "seeds alone", "paper's mean", "paper's best", "seconds"]
  lines = [
    [
      r["method"] + (f" ({r['diverged']} diverged)" if r["diverged"] else ""),
      f"{r['parameters']:,}",
      _mean(r),
      tables.half(r["half_seeds"]),
      tables.number(r["std"], 5),
      tables.number(r["at_best_validation"]),
      tables.number(r["best"]),
      _gap(r),
      tables.half(r["difference_half_seeds"]),
      tables.number(r["paper_mean"]),
      tables.number(r["paper_best"]),
      f"{r['seconds']:,.0f}",
    ]
    for r in rows
  ]
  return tables.markdown(header, lines)


def _mean(row: Mapping[str, Any]) -> str:
  return tables.number(row["mean"]) + tables.plus_minus(row["half"])


def _gap(row: Mapping[str, Any]) -> str:
  if row["difference"] is None:
    return tables.NOTHING
  half = row["difference_half"]
  text = tables.signed(row["difference"], 5) + tables.plus_minus(half, 5)
  # Bold where zero lies outside the interval.
  return f"**{text}**" if half is not None and abs(row["difference"]) > half else text


def _explanation(rows: Sequence[Mapping[str, Any]], untuned: Sequence[str]) -> str:
  seeds = sorted({r["seeds"] + r["diverged"] for r in rows})
  text = (
    f"Test AUC of {' or '.join(map(str, seeds))} seeds a method: the mean over seeds, and the half "
    "width of its 95 % interval over seeds and test rows together (DeLong's variance of the rows); "
    f"`seeds alone` takes the rows as given. `{tables.MINUS} {BASELINE}` is the difference to "
    f"{BASELINE}, paired by seed and by row, with the same two intervals; bold where the first "
    "leaves zero out. `at best validation` is the seed with the best validation measure, `best` is "
    f"the best of all. The paper's columns: {published.MA_2018}, on a split of its own, 400 "
    "trainings."
  )
  if untuned:
    text += f" With the settings of configs/census.py, not searched: {', '.join(untuned)}."
  return text


def draw(group: str, rows: Sequence[Mapping[str, Any]], seeds: Mapping, out: str) -> list[str]:
  """Writes the plots of a group.

  Args:
    group: a key of GROUPS.
    rows: as `summarise` gives them, of that group.
    seeds: (task, method) -> test AUC of each seed.
    out: the folder.

  Returns:
    Their paths.
  """
  means: dict[str, list[plots.Row]] = {}
  gaps: dict[str, list[plots.Row]] = {}
  for r in rows:
    auc_M = seeds[r["task"], r["method"]]
    means.setdefault(r["task"], []).append(
      plots.Row(
        r["method"],
        r["mean"],
        r["half"],
        r["half_seeds"],
        auc_M[np.isfinite(auc_M)],
        r["paper_mean"],
      )
    )
    if r["difference"] is not None:
      base = [x for x in rows if x["task"] == r["task"] and x["method"] == BASELINE]
      paper = None if r["paper_mean"] is None else r["paper_mean"] - base[0]["paper_mean"]
      values = (r["difference"], r["difference_half"], r["difference_half_seeds"])
      gaps.setdefault(r["task"], []).append(plots.Row(r["method"], *values, paper=paper))
  notes = {
    "half": "mean, 95 % over seeds and rows",
    "half_inner": "95 % over seeds",
    "seeds": "one seed",
    "paper": "paper's mean",
  }
  paths = [os.path.join(out, f"census_{group}.png")]
  plots.dots(paths[0], means, f"Census, {group}", "test AUC", notes)
  if gaps:
    paths.append(os.path.join(out, f"census_{group}_differences.png"))
    del notes["seeds"]
    notes |= {"half": "difference, 95 % over seeds and rows", "paper": "paper's means"}
    title = f"Census, {group}: difference to {BASELINE}, paired"
    plots.dots(paths[1], gaps, title, "difference of test AUC", notes, zero=True)
  return paths


def run_study(
  groups: Sequence[str],
  methods: Sequence[str],
  seeds: int,
  out: str,
  data_dir: str,
  epochs: int | None,
  path: str = SETTINGS,
) -> list[dict[str, Any]]:
  """Trains what is not there yet, and writes tables and plots. Returns the rows."""
  require(seeds >= 1, f"--seeds={seeds}: must be at least 1")
  chosen = studies.read_settings(path)
  progress = studies.Progress(len(groups) * len(methods))
  rows, listed, untuned = [], [], []
  for group in groups:
    populations, scores = {}, {}
    for method in methods:
      choice = chosen.get(group, {}).get(method)
      settings = choice["settings"] if choice else {}
      untuned += [] if choice else [f"{method} ({group})"]
      config = override(create_config(group, method, data_dir, epochs), settings)
      folder = os.path.join(out, group, method)
      was_there = studies.is_done(folder)
      members = [{"seed": seed} for seed in range(seeds)]
      done = studies.train(config, members, folder, save_logits=("test",))
      fit = [r for r in done["results"] if "error" not in r]
      done["best"] = done["results"].index(max(fit, key=lambda r: selection_value(r, config)))
      populations[method] = done
      scores[method] = np.load(os.path.join(folder, "logits_test.npy"), mmap_mode="r")
      listed.append({"group": group, "method": method, "chosen": choice, **done})
      means = [f"{t} {np.nanmean(aucs_of(done['results'], t)):.4f}" for t in GROUPS[group]]
      progress.done(f"{group} {method}: test AUC {', '.join(means)}", not was_there)
    _, splits = data.load(data_dir, **config.data)
    of_group = summarise(group, populations, scores, np.asarray(splits["test"].labels, np.float64))
    aucs = {(t, m): aucs_of(p["results"], t) for m, p in populations.items() for t in GROUPS[group]}
    draw(group, of_group, aucs, out)
    rows += of_group
  studies.write_json(
    os.path.join(out, "table.json"),
    {
      "machine": studies.machine(),
      "wall_seconds": sum(p["seconds"] for p in listed),
      "seeds": seeds,
      "rows": rows,
      "populations": listed,
    },
  )
  write_atomically(os.path.join(out, "table.csv"), tables.comma_separated(rows))
  text = markdown(rows, untuned)
  write_atomically(os.path.join(out, "table.md"), text)
  print(text)
  return rows


def main(argv: list[str]) -> None:
  """The command line."""
  del argv
  parallel.use_all_cores()
  cache.keep_programs()
  for flag, known in ((_GROUPS, GROUPS), (_METHODS, SPACES)):
    require(len(flag.value) > 0, f"--{flag.name} is empty; known: {', '.join(known)}")
    for name in flag.value:
      require_known(name, known, f"a name in --{flag.name}")
  where = (_OUT.value, _DATA_DIR.value, _EPOCHS.value)
  if _SEARCH.value:
    run_search(_GROUPS.value, _METHODS.value, _TRIALS.value, *where)
  else:
    run_study(_GROUPS.value, _METHODS.value, _SEEDS.value, *where)
  print(f"everything is in {_OUT.value}")


if __name__ == "__main__":
  _SEARCH = flags.DEFINE_bool("search", False, "Choose settings on validation rows instead.")
  _TRIALS = flags.DEFINE_integer("trials", 16, "Settings that the search tries, of each method.")
  _SEEDS = flags.DEFINE_integer("seeds", 20, "Seeds of each method, from 0 up.")
  _GROUPS = flags.DEFINE_list("groups", list(GROUPS), "Which groups of tasks.")
  _METHODS = flags.DEFINE_list("methods", list(SPACES), "Which methods.")
  _EPOCHS = flags.DEFINE_integer("epochs", EPOCHS, "Of each training.")
  _DATA_DIR = flags.DEFINE_string("data_dir", "data/census", "What data preparation wrote.")
  _OUT = flags.DEFINE_string("out", None, "Where populations, tables and plots go.", required=True)
  errors.run(main)
