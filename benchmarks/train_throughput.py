"""Race: training speed of the same MMoE here and in other libraries, in interleaved epochs.

  pip install -r benchmarks/requirements.txt
  python -m benchmarks.train_throughput --out runs/throughput/table.json

Every contender (benchmarks/contenders/) is a process with the rows in memory, which trains one
epoch while the others wait. Every PyTorch contender runs twice, with one thread and with one per
core; the faster one counts. The first epoch of each is not timed with the others but with set-up,
because some compile in one, some in the other. Test AUCs after all epochs, equally many for all,
show that speed does not cost quality. Writes --out, and the same as Markdown,
and with --results the result file race.json.
"""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from sklearn.metrics import roc_auc_score

from benchmarks import records
from benchmarks.contenders.process import Process
from benchmarks.machine import describe_machine
from mmoe_jax import commands, data
from mmoe_jax.errors import require, require_known
from mmoe_jax.evaluation import tables
from mmoe_jax.files import write_atomically, write_json

OURS = ("ours", "ours_all_cores", "ours_population")
PEERS = ("lean_torch", "deepctr_torch", "torch_rechub")
TASKS = ("income_50k", "marital_stat")


def write_arrays(data_dir: str, path: str) -> data.Split:
  """Writes the contenders' rows as an .npz file; returns the test split."""
  schema, splits = data.load(data_dir, TASKS, "demo", "standardize")
  train, test = splits["train"], splits["test"]
  np.savez(
    path,
    sizes=np.array([f.size for f in schema.id_features]),
    ids=train.features["ids"],
    numbers=train.features["numeric"],
    labels=train.labels,
    test_ids=test.features["ids"],
    test_numbers=test.features["numeric"],
  )
  return test


def variants(contenders: Sequence[str], cores: int) -> dict[str, tuple[str, int]]:
  """Returns name -> (module, threads): PyTorch contenders with one thread and one per core."""
  named = {}
  for module in contenders:
    if module in PEERS:
      named |= {f"{module}, {n} threads": (module, n) for n in dict.fromkeys((1, cores))}
    else:
      named[module] = (module, cores)
  return named


def race(contenders: Mapping[str, Process], rounds: int) -> dict[str, list[dict[str, Any]]]:
  """Returns each contender's answers on its epochs: one warm-up, then `rounds` interleaved ones."""
  epochs = {name: [process.ask("epoch")] for name, process in contenders.items()}
  for number in range(rounds):
    # Alternating directions, so that no contender always follows the same one.
    for name in list(contenders)[:: -1 if number % 2 else 1]:
      epochs[name].append(contenders[name].ask("epoch"))
    print(f"round {number + 1} of {rounds}", flush=True)
  return epochs


def summarise(
  batch_size: int,
  epochs: Mapping[str, Sequence[Mapping[str, float]]],
  ready: Mapping[str, Mapping[str, float]],
  aucs: Mapping[str, Sequence[float]],
) -> list[dict[str, Any]]:
  """Returns a row per contender: rows/s, and the median over rounds of ours relative to it."""
  rates = {n: np.array([e["rows"] / e["seconds"] for e in each[1:]]) for n, each in epochs.items()}
  rows = []
  for name, rate_R in rates.items():
    row = {"batch_size": batch_size, "contender": name, "parameters": ready[name]["parameters"]}
    row |= {"rows_per_second": float(np.median(rate_R))}
    row |= {"least": float(rate_R.min()), "most": float(rate_R.max()), "rates": rate_R.tolist()}
    for ours in (o for o in OURS if o in rates):
      row[f"{ours}_times"] = float(np.median(rates[ours] / rate_R))
    first = ready[name]["seconds"] + epochs[name][0]["seconds"]
    row |= {"set_up_and_first_epoch_seconds": first, "epochs": len(epochs[name])}
    rows.append(row | dict(zip((f"test_auc_{t}" for t in TASKS), aucs[name], strict=True)))
  return rows


def markdown(rows: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> str:
  """Formats the rows as a table, and the machine."""
  ours = [o for o in OURS if f"{o}_times" in rows[0]]
  header = ("batch", "contender", "rows/s", "range", *(f"{o} / it" for o in ours))
  header += ("set-up and first epoch, s", *(f"test AUC {t}" for t in TASKS), "parameters")
  lines = [
    [
      f"{r['batch_size']:,}",
      r["contender"],
      f"{r['rows_per_second']:,.0f}",
      f"{r['least']:,.0f} to {r['most']:,.0f}",
      *(f"{r[f'{o}_times']:.2f}" for o in ours),
      f"{r['set_up_and_first_epoch_seconds']:.1f}",
      *(f"{r[f'test_auc_{t}']:.4f}" for t in TASKS),
      f"{r['parameters']:,}",
    ]
    for r in rows
  ]
  counted = rows[0]["epochs"] - 1
  return (
    f"{tables.markdown(header, lines)}\n\nMedians of {counted} interleaved epochs, ratios per "
    f"round; AUCs after {counted + 1} epochs, one seed. {machine['cores']} cores of "
    f"{machine['processor']}, jax {machine['jax']}, {machine['device']}.\n"
  )


def main(argv: list[str]) -> None:
  """Races the contenders at each batch size."""
  del argv
  require(_ROUNDS.value >= 1, f"--rounds={_ROUNDS.value}: must be at least 1")
  require(len(_CONTENDERS.value) > 0, f"--contenders is empty; known: {', '.join(OURS + PEERS)}")
  for name in _CONTENDERS.value:
    require_known(name, OURS + PEERS, "a name in --contenders")
  sizes = [int(b) if b.isdigit() else 0 for b in _BATCHES.value]
  require(
    bool(sizes) and min(sizes) > 0, f"--batches={','.join(_BATCHES.value)}: must be numbers above 0"
  )
  rows, machine, cores = [], describe_machine(), len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory() as folder:
    arrays, scores = os.path.join(folder, "arrays.npz"), os.path.join(folder, "scores.npy")
    test = write_arrays(_DATA_DIR.value, arrays)
    for batch_size in sizes:
      started, aucs = {}, {}
      for name, (module, threads) in variants(_CONTENDERS.value, cores).items():
        python = _PYTHON.value if module in PEERS else sys.executable
        command = [python, "-m", f"benchmarks.contenders.{module}"]
        command += [arrays, str(batch_size), str(_SEED.value), scores]
        started[name] = Process(command, threads)
      epochs = race(started, _ROUNDS.value)
      for name, process in started.items():
        process.ask("scores")
        test_scores = np.load(scores)
        aucs[name] = [
          roc_auc_score(test.labels[:, t], test_scores[:, t]) for t in range(len(TASKS))
        ]
        process.close()
      ready = {name: process.ready for name, process in started.items()}
      rows += summarise(batch_size, epochs, ready, aucs)
      write_json(_OUT.value, {"machine": machine, "rows": rows})
  settings = {"rounds": _ROUNDS.value, "seed": _SEED.value}
  records.write(_RESULTS.value, "race", rows, settings=settings)
  text = markdown(rows, machine)
  write_atomically(os.path.splitext(_OUT.value)[0] + ".md", text)
  print(text)


if __name__ == "__main__":
  _CONTENDERS = flags.DEFINE_list("contenders", list(OURS + PEERS), "Contenders.")
  _BATCHES = flags.DEFINE_list("batches", ["1024", "4096"], "Rows per step.")
  _ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed epochs of each.")
  _SEED = flags.DEFINE_integer("seed", 0, "Seed of shuffling and initialisation.")
  _PYTHON = flags.DEFINE_string("python", sys.executable, "Python with the other libraries.")
  _DATA_DIR = flags.DEFINE_string("data_dir", "data/census", "Prepared data.")
  _OUT = flags.DEFINE_string("out", None, "JSON file to write.", required=True)
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  commands.run(main)
