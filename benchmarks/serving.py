"""Measures the scoring server under load, and what it must not lose.

  pip install -r mmoe_jax/serve/requirements.txt
  python -m benchmarks.serving --workdir runs/census --input data.parquet --out runs/serving

Starts `python -m mmoe_jax.serve` on loopback; clients are threads of this process, on the same
cores. --input: raw rows, Parquet. Measures:

  equal      rows of --input, scored in requests of 256, against `Predictor`
  latency    requests of one row by --clients clients that wait for their answers
  throughput requests of 256 rows by two clients, as JSON and as Arrow
  swaps      20 reloads under load: every request must be answered 200
  stops      3 signals under load: every accepted request must be answered
  malformed  2,000 wrong bodies: each answered 4xx, and the memory of the server after 500 and all

Writes serving.json and serving.md, and with --results the result file serving.json; fails if a
request is lost.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from absl import flags

from benchmarks import records
from benchmarks.machine import describe_machine
from mmoe_jax import commands, data
from mmoe_jax.errors import require
from mmoe_jax.files import write_atomically, write_json
from mmoe_jax.prediction.predictor import Predictor

_BATCH = 256
_ARROW = "application/vnd.apache.arrow.stream"
_EXPECTED_LOSS = (ConnectionError, http.client.HTTPException, OSError)


class Service:
  """Server in a process."""

  def __init__(self, model: str, *flags_of_server: str):
    """Starts it and waits until it is ready."""
    command = [sys.executable, "-m", "mmoe_jax.serve", "--model", model, "--port", "0"]
    command += flags_of_server
    self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = self.process.stdout.readline()
    require(line.startswith("ready: "), f"the server did not start: {line.strip()}")
    self.port = int(line.rsplit(":", 1)[1])

  def connect(self) -> http.client.HTTPConnection:
    """Returns a connection."""
    return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

  def memory(self) -> int:
    """Returns the resident memory in bytes."""
    with open(f"/proc/{self.process.pid}/statm", encoding="utf-8") as file:
      return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

  def stop(self) -> int:
    """Stops it by SIGTERM; returns its exit status."""
    self.process.send_signal(signal.SIGTERM)
    with self.process.stdout:
      return self.process.wait(60)


def post(
  connection: http.client.HTTPConnection, path: str, body: bytes, kind: str = "application/json"
) -> tuple[int, bytes]:
  """Posts a body; returns status and answer."""
  connection.request("POST", path, body, {"content-type": kind})
  response = connection.getresponse()
  return response.status, response.read()


def body_of(rows: Sequence[Any]) -> bytes:
  """Returns rows as JSON."""
  return json.dumps({"rows": list(rows)}).encode()


def arrow_of(table: pa.Table) -> bytes:
  """Returns a table as an Arrow stream."""
  sink = pa.BufferOutputStream()
  with pa.ipc.new_stream(sink, table.schema) as writer:
    writer.write_table(table)
  return sink.getvalue().to_pybytes()


def load(
  service: Service,
  bodies: Sequence[bytes],
  clients: int,
  seconds: float,
  kind: str,
  stops: Any = None,
) -> tuple[list[float], int, int]:
  """Posts bodies to /score by clients that wait for their answers.

  Args:
    service: the server.
    bodies: bodies to post, one after another.
    clients: number of clients.
    seconds: how long.
    kind: content type.
    stops: event after which a refused connection is no loss; None for never.

  Returns:
    Seconds of each answered request, number answered by another status than 200, number lost.
  """
  taken: list[float] = []
  wrong, lost = [0], [0]
  end = time.perf_counter() + seconds

  def client(number: int) -> None:
    connection, at = service.connect(), number
    while time.perf_counter() < end and not (stops is not None and stops.is_set()):
      start = time.perf_counter()
      try:
        connection.connect() if connection.sock is None else None
      except OSError:
        lost[0] += stops is None or not stops.is_set()
        return
      try:
        status, _ = post(connection, "/score", bodies[at % len(bodies)], kind)
      except _EXPECTED_LOSS:
        lost[0] += 1
        connection = service.connect()
        continue
      taken.append(time.perf_counter() - start)
      wrong[0] += status != 200
      at += clients
    connection.close()

  threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return taken, wrong[0], lost[0]


def measure_equality(service: Service, rows: list[dict[str, Any]], expected: pd.DataFrame) -> float:
  """Returns the largest difference between scores of the server and of the predictor."""
  connection, worst = service.connect(), 0.0
  for start in range(0, len(rows), _BATCH):
    status, answer = post(connection, "/score", body_of(rows[start : start + _BATCH]))
    require(status == 200, f"the rows from {start} on were answered {status}: {answer[:200]!r}")
    for name, values in json.loads(answer)["scores"].items():
      difference = np.abs(np.array(values) - expected[name][start : start + _BATCH])
      worst = max(worst, float(difference.max()))
  return worst


def measure_swaps(service: Service, body: bytes, count: int) -> tuple[int, int, int]:
  """Reloads the model under load; returns answered, answered otherwise than 200, and lost."""
  result: list[Any] = []
  over = threading.Event()

  def work() -> None:
    result.append(load(service, [body], 4, 600, "application/json", over))

  thread = threading.Thread(target=work)
  thread.start()
  connection = service.connect()
  for _ in range(count):
    status, answer = post(connection, "/reload", b"")
    require(status == 200, f"a reload was answered {status}: {answer[:200]!r}")
  over.set()
  thread.join()
  taken, wrong, lost = result[0]
  return len(taken), wrong, lost


def measure_stop(model: str, body: bytes) -> tuple[int, int, int, int]:
  """Stops a server under load; returns answered, otherwise than 200, lost, and its status."""
  service = Service(model)
  result: list[Any] = []
  over = threading.Event()
  thread = threading.Thread(
    target=lambda: result.append(_load_until_refused(service, body, 4, over))
  )
  thread.start()
  time.sleep(1.5)
  over.set()
  status = service.stop()
  thread.join()
  return (*result[0], status)


def _load_until_refused(
  service: Service, body: bytes, clients: int, over: threading.Event
) -> tuple[int, int, int]:
  """Posts on new connections until they are refused; a request without an answer is lost.

  After the signal a server closes idle connections and accepts no others; one that it has accepted
  and not read from may be reset, which a client sees before it has sent its request.
  """
  answered, wrong, lost = [0], [0], [0]

  def client() -> None:
    while True:
      connection = service.connect()
      try:
        connection.connect()
      except OSError:
        lost[0] += not over.is_set()
        return
      try:
        status, _ = post(connection, "/score", body)
      except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
        lost[0] += not over.is_set()
        return
      except (http.client.HTTPException, OSError):
        lost[0] += 1
        return
      answered[0] += 1
      wrong[0] += status != 200
      connection.close()

  threads = [threading.Thread(target=client) for _ in range(clients)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return answered[0], wrong[0], lost[0]


def malformed(rng: np.random.Generator, row: dict[str, Any]) -> tuple[bytes, str]:
  """Returns a wrong body and its content type."""
  good = body_of([row])
  cut = int(rng.integers(0, len(good) - 1))
  flipped = bytearray(arrow_of(pa.table({"a": [1, 2, 3]})))
  flipped[int(rng.integers(len(flipped)))] ^= 1 << int(rng.integers(8))
  column = list(row)[int(rng.integers(len(row)))]
  choices: list[Callable[[], tuple[bytes, str]]] = [
    lambda: (good[:cut], "application/json"),
    lambda: (rng.bytes(int(rng.integers(0, 5000))), "application/json"),
    lambda: (rng.bytes(int(rng.integers(0, 5000))), _ARROW),
    lambda: (bytes(flipped), _ARROW),
    lambda: (b"[" * int(rng.integers(1, 100_000)), "application/json"),
    lambda: (b'{"rows": {}}', "application/json"),
    lambda: (b'{"rows": []}', "application/json"),
    lambda: (b'{"rows": [null, 1, "x", [], true]}', "application/json"),
    lambda: (body_of([{k: v for k, v in row.items() if k != column}]), "application/json"),
    lambda: (body_of([{**row, column: {"a": 1}}]), "application/json"),
    lambda: (body_of([{}] * 5000), "application/json"),
  ]
  return choices[int(rng.integers(len(choices)))]()


def measure_malformed(service: Service, row: dict[str, Any], count: int) -> tuple[int, int, int]:
  """Posts wrong bodies; returns how many were not answered 4xx, memory after 500 and after all."""
  rng = np.random.default_rng(0)
  bad, early = 0, 0
  connection = service.connect()
  for i in range(count):
    status, _ = post(connection, "/score", *malformed(rng, row))
    bad += not 400 <= status < 500
    if i == 499:
      early = service.memory()
  return bad, early, service.memory()


def main(argv: list[str]) -> None:
  """Measures, prints and writes the results."""
  del argv
  predictor = Predictor(_WORKDIR.value)
  frame = pd.read_parquet(_INPUT.value).head(_ROWS.value)[data.needed_columns(predictor.schema)]
  rows = json.loads(frame.to_json(orient="records"))
  expected = predictor(rows)
  table = pa.Table.from_pandas(frame, preserve_index=False)
  service = Service(_WORKDIR.value)
  results: dict[str, Any] = {"machine": describe_machine()}
  results["largest_difference"] = measure_equality(service, rows, expected)
  one = [body_of([row]) for row in rows[:1000]]
  load(service, one, _CLIENTS.value, 2, "application/json")
  taken, wrong, lost = load(service, one, _CLIENTS.value, _SECONDS.value, "application/json")
  results["latency_ms"] = {str(q): float(np.percentile(taken, q) * 1e3) for q in (50, 90, 99)} | {
    "requests": len(taken),
    "wrong": wrong,
    "lost": lost,
  }
  many = [body_of(rows[i : i + _BATCH]) for i in range(0, len(rows) - _BATCH, _BATCH)]
  arrows = [arrow_of(table.slice(i, _BATCH)) for i in range(0, len(rows) - _BATCH, _BATCH)]
  for name, bodies, kind in (("json", many, "application/json"), ("arrow", arrows, _ARROW)):
    taken, wrong, lost = load(service, bodies, 2, _SECONDS.value, kind)
    results[f"rows_per_second_{name}"] = len(taken) * _BATCH / _SECONDS.value
    results[f"lost_{name}"] = wrong + lost
  results["swaps"] = measure_swaps(service, one[0], 20)
  results["malformed"] = measure_malformed(service, rows[0], 2000)
  results["exit_status"] = service.stop()
  results["stops"] = [measure_stop(_WORKDIR.value, one[0]) for _ in range(3)]
  os.makedirs(_OUT.value, exist_ok=True)
  write_json(os.path.join(_OUT.value, "serving.json"), results)
  run = {key: value for key, value in results.items() if key != "machine"}
  settings = {"clients": _CLIENTS.value, "seconds": _SECONDS.value, "rows": len(rows)}
  records.write(_RESULTS.value, "serving", [run], settings=settings)
  text = json.dumps(results, indent=2)
  write_atomically(os.path.join(_OUT.value, "serving.md"), f"```json\n{text}\n```\n")
  print(text)
  lost = [results["swaps"][1:], *[stop[1:] for stop in results["stops"]]]
  require(not any(map(any, lost)), f"requests were lost: {lost}")


if __name__ == "__main__":
  _WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a run.", required=True)
  _INPUT = flags.DEFINE_string("input", None, "Raw rows, Parquet.", required=True)
  _OUT = flags.DEFINE_string("out", None, "Output folder.", required=True)
  _ROWS = flags.DEFINE_integer("rows", 5000, "Rows that are compared.")
  _CLIENTS = flags.DEFINE_integer("clients", 8, "Clients that post one row at a time.")
  _SECONDS = flags.DEFINE_float("seconds", 8.0, "Seconds per measurement.")
  _RESULTS = flags.DEFINE_string("results", None, "Folder of result files to write to.")
  commands.run(main)
