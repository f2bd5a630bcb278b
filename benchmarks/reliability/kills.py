"""Kills: a job is killed at random moments, started again, and compared with an uninterrupted one.

Moments are uniform over the life of a process, or follow a random change of its files, so that
saves, which are short, are hit as well. Some jobs start without compiled programs, and compile.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.reliability import jobs
from benchmarks.reliability.starter import Command, Starter
from mmoe_jax.errors import require
from mmoe_jax.evaluation import tables
from mmoe_jax.files import read_json_object, write_json

_POLL_SECONDS = 0.02
_LEFT_SECONDS = 15.0  # Until worker processes of a killed one must have ended.
_HANG_SECONDS = 300.0
_KILLS = (1, 2, 3, 4, 6)  # Of a trial.
_COLD = {"run": 0.2}  # Job -> share of trials without compiled programs.


class Failure(Exception):
  """A job did not survive its kills."""


class Kills:
  """Trials of jobs in a folder, one JSON line a kill in `kills.jsonl`."""

  def __init__(self, folder: str, seed: int = 0, rows: int = jobs.ROWS):
    """Prepares the inputs, unless they are there."""
    self._folder, self._seed = folder, seed
    self._inputs = os.path.join(folder, "inputs")
    self.path = os.path.join(folder, "kills.jsonl")
    self._programs = os.path.join(folder, "programs")
    self._lock, self._measuring = threading.Lock(), threading.Lock()
    jobs.prepare_inputs(self._inputs, rows)
    if not os.path.exists(os.path.join(self._inputs, "run")):
      with Starter() as starter:
        self._run(starter, "run", self._inputs, self._programs)
      os.rename(os.path.join(self._inputs, "work"), os.path.join(self._inputs, "run"))

  def read(self) -> list[dict[str, Any]]:
    """Returns the kills so far."""
    if not os.path.exists(self.path):
      return []
    with open(self.path, encoding="utf-8") as file:
      return [json.loads(line) for line in file]

  def reference(self, starter: Starter, name: str, cold: bool) -> dict[str, Any]:
    """Returns `results`, `seconds` and `changes` of an uninterrupted job, measured once.

    Args:
      starter: starts it.
      name: a key of jobs.JOBS.
      cold: whether it starts without compiled programs.
    """
    title = f"{name}{' cold' if cold else ''}"
    path = os.path.join(self._folder, "whole", f"{title}.json")
    if os.path.exists(path):
      return read_json_object(path)
    folder = jobs.empty(os.path.join(self._folder, "whole", title))
    programs = os.path.join(folder, "programs") if cold else self._programs
    if not cold:  # The first start compiles.
      self._run(starter, name, folder, programs)
      folder = jobs.empty(folder)
    changes = _Changes(folder)
    seconds = self._run(starter, name, folder, programs, changes)
    shutil.rmtree(os.path.join(folder, "programs"), ignore_errors=True)
    with self._lock:
      results = jobs.JOBS[name].results(folder)
    found = {"results": results, "seconds": seconds, "changes": changes.count}
    write_json(path, found)
    shutil.rmtree(folder)
    return found

  def trial(self, starter: Starter, number: int, names: list[str]) -> list[dict[str, Any]]:
    """Kills a job once or more often, and lets it end.

    Args:
      starter: starts it.
      number: number of the trial, which with the seed decides everything.
      names: keys of jobs.JOBS to choose from, in turn.

    Returns:
      A record of each kill: `trial`, `job`, `cold`, `kill`, `by` (time or change), `seconds` since
      the start, `share` of an uninterrupted life, `phase`, `outcome` of the trial (`identical`, or
      what went wrong) and `warnings` of the last process.
    """
    rng = random.Random(f"{self._seed} {number}")
    name = names[number % len(names)]
    cold = rng.random() < _COLD.get(name, 0.0)
    with self._measuring:  # Once for all workers.
      whole = self.reference(starter, name, cold)
    folder = jobs.empty(os.path.join(self._folder, "trials", str(number)))
    programs = os.path.join(folder, "programs") if cold else self._programs
    kills: list[dict[str, Any]] = []
    try:
      for kill in range(rng.choice(_KILLS)):
        found = self._kill(starter, name, folder, programs, whole, rng)
        if found is None:  # It ended before.
          break
        kills.append({"trial": number, "job": name, "cold": cold, "kill": kill + 1, **found})
      self._run(starter, name, folder, programs)
      shutil.rmtree(os.path.join(folder, "programs"), ignore_errors=True)
      with self._lock:
        outcome = compare(whole["results"], jobs.JOBS[name].results(folder))
    except Failure as failure:
      outcome = str(failure)
    notes = _warnings(f"{folder}.log")
    if outcome == "identical":
      shutil.rmtree(folder)
      os.remove(f"{folder}.log")
    found = [{**kill, "outcome": outcome, "warnings": notes} for kill in kills]
    with self._lock, open(self.path, "a", encoding="utf-8") as file:
      file.writelines(json.dumps(record) + "\n" for record in found)
    return found

  def _start(self, starter: Starter, name: str, folder: str, programs: str) -> Command:
    words = jobs.JOBS[name].words(self._inputs, folder)
    return starter.start(words, {"XDG_CACHE_HOME": programs}, f"{folder}.log")

  def _run(
    self,
    starter: Starter,
    name: str,
    folder: str,
    programs: str,
    changes: "_Changes | None" = None,
  ) -> float:
    """Lets a job end; returns its seconds, and counts changes of its files."""
    start = time.perf_counter()
    process = self._start(starter, name, folder, programs)
    while process.wait(_POLL_SECONDS if changes else _HANG_SECONDS) is None:
      if changes:
        changes.look()
      if time.perf_counter() - start > _HANG_SECONDS:
        os.kill(process.pid, signal.SIGKILL)
        raise Failure(f"hangs for {_HANG_SECONDS:.0f} s")
    seconds = time.perf_counter() - start
    _require_success(process, folder)
    _require_no_process(process.pid)
    return seconds

  def _kill(
    self,
    starter: Starter,
    name: str,
    folder: str,
    programs: str,
    whole: Mapping[str, Any],
    rng: random.Random,
  ) -> dict[str, Any] | None:
    """Starts a job and kills it; returns what is known of the kill, None if it ended before."""
    by_change = rng.random() < 0.5
    wait = rng.expovariate(1 / 0.02) if by_change else rng.uniform(0, whole["seconds"])
    wanted = rng.randint(1, max(1, whole["changes"])) if by_change else 0
    start = time.perf_counter()
    process = self._start(starter, name, folder, programs)
    changes = _Changes(folder)
    while changes.count < wanted and process.wait(_POLL_SECONDS) is None:
      changes.look()
    if process.wait(wait) is not None:
      _require_success(process, folder)
      return None
    os.kill(process.pid, signal.SIGKILL)
    seconds = time.perf_counter() - start
    process.wait(_HANG_SECONDS)
    return {
      "by": "change" if by_change else "time",
      "seconds": round(seconds, 3),
      "share": round(seconds / whole["seconds"], 3),
      "phase": jobs.phase_of(jobs.JOBS[name], folder),
    }


class _Changes:
  """Counts changes of the files of a folder."""

  def __init__(self, folder: str):
    self._folder, self.count = folder, 0
    self._before = self._list()

  def look(self) -> None:
    """Counts one change if there are any."""
    now = self._list()
    if now != self._before:
      self._before, self.count = now, self.count + 1

  def _list(self) -> set[tuple[str, int]]:
    found = set()
    folders = [self._folder]
    while folders:
      with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
        for entry in entries:
          with contextlib.suppress(OSError):
            is_folder = entry.is_dir(follow_symlinks=False)
            found.add((entry.path, 0 if is_folder else entry.stat().st_size))
            if is_folder and entry.name != "programs":
              folders.append(entry.path)
    return found


def compare(whole: Mapping[str, str], killed: Mapping[str, str]) -> str:
  """Returns `identical`, or the first names of what differs."""
  names = [n for n in {**whole, **killed} if whole.get(n) != killed.get(n)]
  return f"{len(names)} differ: {', '.join(names[:4])}" if names else "identical"


def run(
  folder: str,
  count: int,
  seconds: float,
  seed: int = 0,
  names: list[str] | None = None,
  workers: int = 1,
) -> list[dict[str, Any]]:
  """Kills until there are `count` kills, or the time is over; returns all kills so far.

  Args:
    folder: output folder.
    count: number of kills, earlier ones included.
    seconds: time after which no further job is started.
    seed: seed of jobs and moments.
    names: keys of jobs.JOBS; all by default.
    workers: number of jobs at a time.
  """
  kills = Kills(folder, seed)
  names = names or list(jobs.JOBS)
  end = time.perf_counter() + seconds
  records = kills.read()
  numbers = itertools.count(1 + max((r["trial"] for r in records), default=-1))

  def work() -> None:
    with Starter() as starter:
      while len(records) < count and time.perf_counter() < end:
        found = kills.trial(starter, next(numbers), names)
        records.extend(found)
        for r in found:
          print(
            f"{len(records)} of {count}: {r['job']}, kill {r['kill']} after {r['seconds']} s "
            f"({r['phase']}): {r['outcome']}",
            flush=True,
          )

  with ThreadPoolExecutor(workers) as pool:
    for future in [pool.submit(work) for _ in range(workers)]:
      future.result()
  return records


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
  """Returns counts: all, identical, repeated, cold, by job and by phase."""
  is_identical = lambda r: r["outcome"] == "identical"
  return {
    "kills": len(records),
    "identical": sum(map(is_identical, records)),
    "trials": len({r["trial"] for r in records}),
    "trials_killed_again": len({r["trial"] for r in records if r["kill"] > 1}),
    "without_programs": sum(r["cold"] for r in records),
    "by_job": dict(Counter(r["job"] for r in records)),
    "by_phase": dict(Counter(r["phase"] for r in records)),
    "failures": [r for r in records if not is_identical(r)],
  }


def markdown(records: list[dict[str, Any]]) -> str:
  """Formats the kills as a table: job by phase."""
  names = list(dict.fromkeys(r["job"] for r in records))
  rows = []
  for name in names:
    own = [r for r in records if r["job"] == name]
    phases = Counter(r["phase"] for r in own)
    identical = sum(r["outcome"] == "identical" for r in own)
    text = ", ".join(f"{phase} {n}" for phase, n in phases.items())
    rows.append([name, len(own), sum(r["kill"] > 1 for r in own), text, identical])
  return tables.markdown(["job", "kills", "repeated", "phases", "identical"], rows)


def require_all(records: list[dict[str, Any]]) -> None:
  """Raises UserError unless every killed job ended identical."""
  failures = summarise(records)["failures"]
  first = failures[0] if failures else {}
  require(
    not failures,
    f"{len(failures)} of {len(records)} kills were not survived, first trial {first.get('trial')} "
    f"({first.get('job')}): {first.get('outcome')}",
  )


def _require_no_process(group: int) -> None:
  """Waits until no process of a group is left."""
  end = time.perf_counter() + _LEFT_SECONDS
  while time.perf_counter() < end:
    try:
      os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
      return
    time.sleep(0.05)
  raise Failure("leaves a process")


def _require_success(process: Command, folder: str) -> None:
  if process.returncode != 0:
    raise Failure(f"ends with {process.returncode}: {_tail(f'{folder}.log')}")


def _tail(path: str) -> str:
  with open(path, encoding="utf-8", errors="replace") as file:
    return " / ".join(file.read().strip().splitlines()[-6:])[-600:]


def _warnings(path: str) -> list[str]:
  with open(path, encoding="utf-8", errors="replace") as file:
    return [line.strip()[:300] for line in file if "warn" in line.lower() or "Error" in line][:5]
