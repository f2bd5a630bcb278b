"""Runs a command, and prints its wall time and the peak memory of all its processes.

  python -m benchmarks.peak_memory python -m data_prep.tabular --spec SPEC --input FILES --out DIR

With `--results results --name memory/preparation` before the command it writes a result file, if
the command succeeds.

Memory is the proportional set size, in which pages that processes share count once (Linux).
"""

import argparse
import os
import subprocess
import sys
import time

_INTERVAL = 0.2  # Seconds between two looks.


def processes(pid: int) -> list[int]:
  """Returns a process and all its descendants."""
  found = [pid]
  try:
    for task in os.listdir(f"/proc/{pid}/task"):
      with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
        for child in file.read().split():
          found += processes(int(child))
  except OSError:  # It has ended.
    pass
  return found


def memory(pid: int) -> int:
  """Returns the proportional set size of a process in bytes, 0 if it has ended."""
  try:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
      return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
  except (OSError, StopIteration):
    return 0


def measure(command: list[str]) -> tuple[int, float, int]:
  """Runs a command.

  Returns:
    Its exit status, seconds, and peak memory in bytes.
  """
  start, peak = time.perf_counter(), 0
  process = subprocess.Popen(command)
  while process.poll() is None:
    peak = max(peak, sum(map(memory, processes(process.pid))))
    time.sleep(_INTERVAL)
  return process.returncode, time.perf_counter() - start, peak


def main() -> None:
  """Measures the command on the command line."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.peak_memory")
  parser.add_argument("--results", help="folder of result files to write to")
  parser.add_argument("--name", help="name of the result file, such as memory/preparation")
  parser.add_argument("command", nargs=argparse.REMAINDER, help="command to run")
  given = parser.parse_args()
  if not given.command:
    sys.exit("error: give a command, such as: python -m benchmarks.peak_memory sleep 1")
  if bool(given.results) != bool(given.name):
    sys.exit("error: give both --results and --name, or neither")
  status, seconds, peak = measure(given.command)
  print(f"{seconds:.1f} s, peak memory {peak / 2**30:.2f} GiB, status {status}", file=sys.stderr)
  if given.results and status == 0:
    from benchmarks import records  # Imports JAX, which is not to be in memory before.

    run = {"command": " ".join(given.command), "seconds": seconds, "peak_bytes": peak}
    records.write(given.results, given.name, [run])
  sys.exit(status)


if __name__ == "__main__":
  main()
