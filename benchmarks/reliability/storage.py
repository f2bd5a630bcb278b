"""Object storage from end to end: prepare, train, kill, resume, move, predict, as in a folder.

The server is moto's on this machine: pip install "moto[server,s3]"
"""

import os
import signal
import subprocess
import sys
import time
from typing import Any

from pyarrow import fs

from benchmarks.reliability import jobs
from mmoe_jax import digests
from mmoe_jax.data import locations
from mmoe_jax.errors import UserError, require
from mmoe_jax.workdir import contract, preemption, remote, remote_state

_SETTINGS = (
  "--config.train.batch_size=256",
  "--config.train.epochs=8",
  "--config.select.patience=0",
)
_WAIT_SECONDS = 240.0
_NAMES = ("results", "scores")


def measure(folder: str, inputs: str) -> dict[str, Any]:
  """Runs all commands in a folder and in object storage.

  Args:
    folder: output folder.
    inputs: folder of jobs.prepare_inputs.

  Returns:
    `killed_after` and `stopped_after`: epochs; `exit_status` of the stopped run; `identical`: name
    -> whether results and scores are those of the folder.
  """
  try:
    from moto.server import ThreadedMotoServer
  except ImportError as error:
    raise UserError("needs a server: pip install 'moto[server,s3]'") from error
  server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
  server.start()
  try:
    host, port = server.get_host_and_port()
    os.environ |= {
      "XDG_CACHE_HOME": os.path.join(os.path.abspath(folder), "cache"),
      "AWS_ENDPOINT_URL": f"http://{host}:{port}",
      "AWS_ACCESS_KEY_ID": "key",
      "AWS_SECRET_ACCESS_KEY": "secret",
      "AWS_DEFAULT_REGION": "us-east-1",
    }
    system = fs.S3FileSystem(
      endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True
    )
    system.create_dir("bucket")
    return _measure(jobs.empty(os.path.abspath(folder)), os.path.abspath(inputs), "s3://bucket")
  finally:
    server.stop()


def _measure(folder: str, inputs: str, bucket: str) -> dict[str, Any]:
  table = os.path.join(inputs, "table.csv")
  _finish(_prepare(inputs, table, folder))
  _finish(_train(folder))
  _finish(_predict(folder, table))
  whole = _outputs(os.path.join(folder, "run"), os.path.join(folder, "scores.csv"))

  locations.upload(table, f"{bucket}/table.csv")
  _finish(_prepare(inputs, f"{bucket}/table.csv", bucket))
  first, other = (os.path.join(folder, name) for name in ("first_machine", "other_machine"))
  killed_after = _stop(bucket, first, signal.SIGKILL, uploads=2)[0]
  stopped_after, status = _stop(bucket, first, signal.SIGTERM, uploads=killed_after + 2)
  require(status == preemption.EXIT_STATUS, f"SIGTERM ended the run with {status}")
  _finish(_train(bucket), XDG_CACHE_HOME=other)
  _finish(_predict(bucket, f"{bucket}/table.csv"))
  scores = os.path.join(folder, "from_storage.csv")
  locations.download(f"{bucket}/scores.csv", scores)
  found = _outputs(remote.local_copy(f"{bucket}/run"), scores)
  return {
    "killed_after": killed_after,
    "stopped_after": stopped_after,
    "exit_status": status,
    "identical": {name: whole[name] == found[name] for name in _NAMES},
  }


def _prepare(inputs: str, table: str, where: str) -> list[str]:
  spec = os.path.join(inputs, "spec.toml")
  return ["data_prep.tabular", f"--spec={spec}", f"--input={table}", f"--out={where}/data"]


def _train(where: str) -> list[str]:
  words = ["mmoe_jax.main", f"--config=configs/tabular.py:mmoe,data={where}/data"]
  return [*words, f"--workdir={where}/run", *_SETTINGS]


def _predict(where: str, table: str) -> list[str]:
  words = ["mmoe_jax.predict", f"--workdir={where}/run", f"--input={table}"]
  return [*words, f"--output={where}/scores.csv"]


def _start(words: list[str], **env: str) -> subprocess.Popen:
  command = [sys.executable, "-m", *words]
  return subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **env})


def _finish(words: list[str], **env: str) -> None:
  require(_start(words, **env).wait() == 0, f"{' '.join(words)} failed")


def _stop(bucket: str, machine: str, number: int, uploads: int) -> tuple[int, int]:
  """Trains until that many epochs are uploaded, and sends a signal.

  Returns:
    The epoch that was uploaded last, and the exit status.
  """
  process = _start(_train(bucket), XDG_CACHE_HOME=machine)
  end = time.perf_counter() + _WAIT_SECONDS
  while _uploaded(bucket, machine) < uploads:
    require(process.poll() is None, "the run ended before it was stopped")
    require(time.perf_counter() < end, "no save was uploaded")
    time.sleep(0.1)
  process.send_signal(number)
  status = process.wait()
  return _uploaded(bucket, machine), status


def _uploaded(bucket: str, machine: str) -> int:
  """Returns the epoch of the state in object storage; -1 without."""
  os.makedirs(machine, exist_ok=True)
  state = remote_state.read(f"{bucket}/run", os.path.join(machine, "marker"))
  return -1 if state is None else state.epoch


def _outputs(workdir: str, scores: str) -> dict[str, Any]:
  results = contract.read_results(workdir)
  times = ("wall_seconds", "rows_per_second")
  return {
    "results": {k: v for k, v in results.items() if k not in times},
    "scores": digests.of_file(scores),
  }


def require_equal(found: dict[str, Any]) -> None:
  """Raises UserError unless everything is identical."""
  differ = [name for name, is_same in found["identical"].items() if not is_same]
  require(not differ, f"object storage gives other {' and '.join(differ)} than a folder")
