"""Census study of Ma et al. (KDD 2018): eight methods, two groups of tasks, many seeds.

  python -m studies.paper_census --search --trials 16 --out runs/paper_census_search
  python -m studies.paper_census --seeds 20 --out runs/paper_census

The search gives every method the same budget on validation rows, does not use test rows, and writes
the best settings to studies/paper_census_settings.json. The study trains each method with these,
its seeds as one population, and writes table.md, table.json, table.csv and plots to --out, and with
--results the result file paper_census.json. Each population has a separate folder in --out: started
again, a study resumes.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks import records
from benchmarks.machine import describe_machine
from configs import census
from mmoe_jax import cache, commands, data, parallel
from mmoe_jax.config import override
from mmoe_jax.errors import require, require_known
from mmoe_jax.evaluation import statistics, tables
from mmoe_jax.files import write_atomically, write_json
from mmoe_jax.training import search
from studies import census_results, plots, published, resumable
from studies.census_results import aucs_of
from studies.paper_census_tables import format_tables
from studies.progress import Progress

SETTINGS = os.path.join(os.path.dirname(__file__), "paper_census_settings.json")
BASELINE = "mmoe"
EPOCHS = (
  6  # Half of configs/census.py: equally good at the higher learning rates that the search finds.
)
# The first task is the main one of the paper.
GROUPS = {"group1": ("income_50k", "marital_stat"), "group2": ("education", "marital_stat")}

_BOTTOM = {
  # Keys joined by + have the same value.
  "optimizer.dense.learning_rate+optimizer.embedding.learning_rate": ("log", 2e-3, 2e-2),
  "model.embedding_dropout": ("uniform", 0.0, 0.3),
  "model.bottom_dropout": ("uniform", 0.0, 0.5),
}
_EXPERT = {k.replace("bottom", "expert"): v for k, v in _BOTTOM.items()}
# Search space of each method, in the order of the paper's tables.
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
  """Returns the config of a method on a group of tasks, under the paper's protocol."""
  config = census.get_config(f"{method},tasks={'+'.join(GROUPS[group])},protocol=paper")
  config.data_dir = data_dir
  if epochs is not None:
    config.train.epochs = epochs
  return config


def selection_value(result: Mapping[str, Any], config: Any) -> float:
  """Returns the selection metric of a member's best epoch on validation rows; higher is better."""
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
  """Searches every method and group with equally many trials; writes the best on validation rows.

  Args:
    groups: keys of GROUPS.
    methods: keys of SPACES.
    trials: trials of each method and group, earlier ones in `out` included.
    out: folder of the searches.
    data_dir: prepared data.
    epochs: epochs of each training; None for the config's.
    path: settings file, which keeps its other methods and groups.
  """
  progress = Progress(len(groups) * len(methods))
  for group in groups:
    for method in methods:
      config = create_config(group, method, data_dir, epochs)
      folder = os.path.join(out, group, method)
      finished = search.run_search(config, SPACES[method], trials, folder)
      best = finished[0]
      chosen = resumable.read_if_exists(path)
      chosen.setdefault(group, {})[method] = {
        "settings": best["settings"],
        "validation": best["value"],  # The mean of `metric` over `tasks`.
        "metric": config.select.metric,
        "tasks": list(config.select.tasks or config.data.tasks),
        "trials": len(finished),
        "failed": sum(t["value"] is None for t in finished),
        "values": [t["value"] for t in finished],  # Best first.
      }
      write_json(path, chosen)
      settings = ", ".join(f"{k}={v:.3g}" for k, v in best["settings"].items())
      progress.finish(f"{group} {method}: validation {best['value']:.5f}; {settings}")


# ---- The study -------------------------------------------------------------------------------


def summarise(
  group: str,
  populations: Mapping[str, Mapping[str, Any]],
  scores: Mapping[str, np.ndarray],
  labels_NxT: np.ndarray,
) -> list[dict[str, Any]]:
  """Returns a row for each task and method of a group.

  Args:
    group: a key of GROUPS.
    populations: method -> result of resumable.train, and `best`: the member with the best
      validation metric.
    scores: method -> logits of the test rows, (M, N, T).
    labels_NxT: the test rows' labels.

  Returns:
    Rows of flat values; AUCs are of test rows, and `difference` is to BASELINE over the seeds that
    both have.

  Raises:
    UserError: if logits and metrics of a population do not match.
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


def _difference(
  method: str,
  t: int,
  aucs: Mapping[str, np.ndarray],
  placed: Mapping[str, statistics.Placements],
  scores: Mapping[str, np.ndarray],
  labels_NxT: np.ndarray,
) -> dict[str, float | None]:
  names = ("value", "half", "half_seeds", "half_rows", "p")
  keys = ["difference", *(f"difference_{name}" for name in names[1:])]
  if method == BASELINE or BASELINE not in aucs:
    return dict.fromkeys(keys)
  difference_M = aucs[method] - aucs[BASELINE]
  seeds = np.flatnonzero(np.isfinite(difference_M))
  if not len(seeds):
    return dict.fromkeys(keys)
  pair = [placed[method], placed[BASELINE]]
  if len(seeds) < len(difference_M):
    pair = [
      statistics.mean_placements(scores[m][seeds, :, t], labels_NxT[:, t])
      for m in (method, BASELINE)
    ]
  found = statistics.over_seeds(difference_M[seeds], statistics.auc_variances(*pair))
  return {key: getattr(found, name) for key, name in zip(keys, names, strict=True)}


def draw(group: str, rows: Sequence[Mapping[str, Any]], seeds: Mapping, out: str) -> list[str]:
  """Writes the plots of a group.

  Args:
    group: a key of GROUPS.
    rows: result of `summarise`.
    seeds: (task, method) -> test AUC of each seed.
    out: output folder.

  Returns:
    Paths of the plots.
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
  results: str | None = None,
) -> list[dict[str, Any]]:
  """Trains the missing populations, and writes tables and plots; returns the rows.

  With a folder of `results` also writes the result file paper_census.json.
  """
  require(seeds >= 1, f"--seeds={seeds}: must be at least 1")
  chosen = resumable.read_if_exists(path)
  progress = Progress(len(groups) * len(methods))
  rows, listed, untuned, covariances = [], [], [], {}
  for group in groups:
    populations, scores = {}, {}
    for method in methods:
      choice = chosen.get(group, {}).get(method)
      settings = choice["settings"] if choice else {}
      untuned += [] if choice else [f"{method} ({group})"]
      config = override(create_config(group, method, data_dir, epochs), settings)
      folder = os.path.join(out, group, method)
      was_there = resumable.is_done(folder)
      members = [{"seed": seed} for seed in range(seeds)]
      done = resumable.train(config, members, folder, save_logits=("test",))
      fit = [r for r in done["results"] if "error" not in r]
      done["best"] = done["results"].index(max(fit, key=lambda r: selection_value(r, config)))
      populations[method] = done
      scores[method] = np.load(os.path.join(folder, "logits_test.npy"), mmap_mode="r")
      listed.append({"group": group, "method": method, "chosen": choice, **done})
      means = [f"{t} {np.nanmean(aucs_of(done['results'], t)):.4f}" for t in GROUPS[group]]
      progress.finish(f"{group} {method}: test AUC {', '.join(means)}", not was_there)
    _, splits = data.load(data_dir, **config.data)
    labels_NxT = np.asarray(splits["test"].labels, np.float64)
    of_group = summarise(group, populations, scores, labels_NxT)
    covariances |= census_results.covariances_of(
      group, GROUPS[group], populations, scores, labels_NxT
    )
    aucs = {(t, m): aucs_of(p["results"], t) for m, p in populations.items() for t in GROUPS[group]}
    draw(group, of_group, aucs, out)
    rows += of_group
  write_json(
    os.path.join(out, "table.json"),
    {
      "machine": describe_machine(),
      "wall_seconds": sum(p["seconds"] for p in listed),
      "seeds": seeds,
      "rows": rows,
      "populations": listed,
    },
  )
  runs = census_results.runs_of(listed)
  settings = {"seeds": seeds, "epochs": epochs, "wall_seconds": sum(p["seconds"] for p in listed)}
  records.write(results, "paper_census", runs, settings=settings, rows=covariances)
  write_atomically(os.path.join(out, "table.csv"), tables.comma_separated(rows))
  text = format_tables(rows, untuned)
  write_atomically(os.path.join(out, "table.md"), text)
  print(text)
  return rows


def main(argv: list[str]) -> None:
  """Runs the search or the study."""
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
    run_study(_GROUPS.value, _METHODS.value, _SEEDS.value, *where, results=_RESULTS.value)
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
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  commands.run(main, resumes=True)
