"""Long form of the reliability tests.

  python -m benchmarks.reliability --out runs/reliability

Parts (--parts), each of which writes PART.json, with --results also the result file
reliability/PART.json, and fails if its bar is missed:

  kills    kills runs, populations, searches, preparation and prediction at random moments;
           the same command continues, and --minutes limits a call
  elastic  resumes on another number of devices, in every order of 1, 2, 4 and 8
  damage   damages files, each of the newest checkpoint in turn, others at random
  storage  the same commands in object storage, killed and moved, and in a folder
  cost     time of saving, resuming and leaving; needs prepared Census data
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from benchmarks import records
from benchmarks.machine import describe_machine
from benchmarks.reliability import cost, damage, elastic, jobs, kills, storage
from mmoe_jax import cache, commands
from mmoe_jax.errors import require, require_known
from mmoe_jax.files import write_json


def measure_kills() -> None:
  """Kills jobs."""
  settings = (_SEED.value, _JOBS.value, _WORKERS.value)
  found = kills.run(_OUT.value, _KILLS.value, 60 * _MINUTES.value, *settings)
  print(kills.markdown(found))
  _write("kills", kills.summarise(found), found)
  kills.require_all(found)


def measure_elastic() -> None:
  """Resumes on other numbers of devices."""
  found = elastic.run(os.path.join(_OUT.value, "elastic"), _inputs())
  totals = {name: elastic.summarise(pairs) for name, pairs in found.items()}
  print(totals)
  _write("elastic", {"totals": totals, "pairs": found}, [{"totals": totals}])
  elastic.require_equal(found)


def measure_damage() -> None:
  """Damages files."""
  cache.keep_programs()
  found = damage.measure(os.path.join(_OUT.value, "damage"), _DAMAGES.value, _SEED.value)
  for name, damages in found.items():
    print(f"{name}\n{damage.markdown(damages)}")
  outcomes = {name: dict(Counter(d["outcome"] for d in each)) for name, each in found.items()}
  kinds = Counter((d["use"], d["damage"], d["outcome"]) for each in found.values() for d in each)
  keys = ("use", "damage", "outcome", "count")
  counts = [dict(zip(keys, (*kind, count), strict=True)) for kind, count in sorted(kinds.items())]
  _write("damage", {"outcomes": outcomes, "damages": found}, counts)
  damage.require_noticed(found)


def measure_storage() -> None:
  """Uses object storage."""
  found = storage.measure(os.path.join(_OUT.value, "storage"), _inputs())
  print(found)
  _write("storage", found)
  storage.require_equal(found)


def measure_cost() -> None:
  """Times saving, resuming and leaving."""
  cache.keep_programs()
  folder, rounds = os.path.join(_OUT.value, "cost"), _ROUNDS.value
  found: dict[str, Any] = {"load": os.getloadavg()}
  for name, measure in (
    ("saves", lambda: cost.of_saves(folder, _DATA_DIR.value, rounds)),
    ("resuming_s", lambda: cost.of_resuming(folder, _DATA_DIR.value, rounds)),
    ("leaving", lambda: cost.of_leaving(folder, _DATA_DIR.value, rounds)),
    ("leaving_a_long_epoch", lambda: cost.of_leaving_a_long_epoch(folder, _DATA_DIR.value)),
  ):
    found[name] = measure()
    print(f"{name}: {found[name]}", flush=True)
    _write("cost", found)


def _inputs() -> str:
  """Returns the folder of the jobs' inputs."""
  folder = os.path.join(_OUT.value, "inputs")
  jobs.prepare_inputs(folder)
  return folder


def _write(
  name: str, content: dict[str, Any], runs: Sequence[Mapping[str, Any]] | None = None
) -> None:
  """Writes the measurements of a part, and its result file, of the content without `runs`."""
  path = os.path.join(_OUT.value, f"{name}.json")
  write_json(path, {"machine": describe_machine(), **content})
  settings = {"seed": _SEED.value}
  records.write(_RESULTS.value, f"reliability/{name}", runs or [content], settings=settings)


PARTS = {
  "kills": measure_kills,
  "elastic": measure_elastic,
  "damage": measure_damage,
  "storage": measure_storage,
  "cost": measure_cost,
}


def main(argv: list[str]) -> None:
  """Runs the parts, one after another."""
  del argv
  require(_MINUTES.value > 0, f"--minutes={_MINUTES.value}: must be above 0")
  for name, flag in (("kills", _KILLS), ("damages", _DAMAGES), ("rounds", _ROUNDS)):
    require(flag.value >= 1, f"--{name}={flag.value}: must be at least 1")
  for name in _PARTS.value:
    require_known(name, PARTS, "a name in --parts")
  for name in _JOBS.value:
    require_known(name, jobs.JOBS, "a name in --jobs")
  os.makedirs(_OUT.value, exist_ok=True)
  for name in _PARTS.value:
    PARTS[name]()


if __name__ == "__main__":
  _PARTS = flags.DEFINE_list("parts", list(PARTS), "Parts to run.")
  _KILLS = flags.DEFINE_integer("kills", 200, "Number of kills, earlier ones included.")
  _JOBS = flags.DEFINE_list("jobs", [], "Jobs to kill; empty for all.")
  _WORKERS = flags.DEFINE_integer("workers", 1, "Jobs to kill at a time.")
  _MINUTES = flags.DEFINE_float("minutes", 60.0, "Time after which no further job is killed.")
  _DAMAGES = flags.DEFINE_integer("damages", 1000, "Number of random damages.")
  _ROUNDS = flags.DEFINE_integer("rounds", 5, "Measurements of each time.")
  _DATA_DIR = flags.DEFINE_string("data_dir", "data/census", "Prepared Census data, for `cost`.")
  _SEED = flags.DEFINE_integer("seed", 0, "Seed of kills and damages.")
  _OUT = flags.DEFINE_string("out", None, "Output folder.", required=True)
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  commands.run(main)
