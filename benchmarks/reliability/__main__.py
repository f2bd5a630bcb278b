"""Long form of the reliability tests.

  python -m benchmarks.reliability --out runs/reliability

Parts (--parts): `kills` kills jobs at random moments; `damage` damages files. Each writes a JSON
file in --out. Kills resume: the same command continues, --minutes limits a call.
"""

import os

from absl import flags

from benchmarks.machine import describe_machine
from benchmarks.reliability import kills
from mmoe_jax import commands
from mmoe_jax.errors import require, require_known
from mmoe_jax.files import write_json


def measure_kills() -> None:
  """Kills, and writes kills.json."""
  out = _OUT.value
  found = kills.run(
    out, _KILLS.value, 60 * _MINUTES.value, _SEED.value, _JOBS.value, _WORKERS.value
  )
  print(kills.markdown(found))
  _write("kills", kills.summarise(found))
  kills.require_all(found)


def _write(name: str, content: dict) -> None:
  found = {"machine": describe_machine(), **content}
  write_json(os.path.join(_OUT.value, f"{name}.json"), found)


PARTS = {"kills": measure_kills}


def main(argv: list[str]) -> None:
  """Runs the parts, one after another."""
  del argv
  require(_MINUTES.value > 0, f"--minutes={_MINUTES.value}: must be above 0")
  for name in _PARTS.value:
    require_known(name, PARTS, "a name in --parts")
  os.makedirs(_OUT.value, exist_ok=True)
  for name in _PARTS.value:
    PARTS[name]()


if __name__ == "__main__":
  _PARTS = flags.DEFINE_list("parts", list(PARTS), "Parts to run.")
  _KILLS = flags.DEFINE_integer("kills", 200, "Number of kills, earlier ones included.")
  _JOBS = flags.DEFINE_list("jobs", [], "Jobs to kill; empty for all.")
  _WORKERS = flags.DEFINE_integer("workers", 1, "Jobs to kill at a time.")
  _MINUTES = flags.DEFINE_float("minutes", 60.0, "Time after which no further job is killed.")
  _SEED = flags.DEFINE_integer("seed", 0, "Seed of jobs and moments.")
  _OUT = flags.DEFINE_string("out", None, "Output folder.", required=True)
  commands.run(main)
