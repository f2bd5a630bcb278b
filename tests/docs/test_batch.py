"""Scripts of batch systems: their syntax, the commands that they start, and a run on two hosts."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from docs.extension import pages
from tests import ROOT
from tests.commands import environment

FOLDER = os.path.join(ROOT, "docs", "batch")
SCRIPTS = sorted(name for name in os.listdir(FOLDER) if name.endswith(".sh"))
MANIFESTS = sorted(name for name in os.listdir(FOLDER) if name.endswith(".yaml"))
# Starts $TASKS processes with the variables that Slurm gives to those of a step on one node.
SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do echo "$1" >> "$SRUN_OPTIONS"; shift; done
export SLURM_NTASKS=$TASKS SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1
for ((i = 0; i < TASKS; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids+=($!)
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit $status
"""
# Prints its arguments in place of Python.
ECHO = '#!/usr/bin/env bash\necho "$MMOE_MULTIHOST|$JAX_PLATFORMS|$*"\nexit "${STATUS:-0}"\n'
SCONTROL = '#!/usr/bin/env bash\necho "scontrol $*"\n'


def submit(script, tmp_path, *arguments, **settings) -> subprocess.CompletedProcess:
  """Executes a script as a job of sbatch would: from a copy, in the folder of the submission."""
  for name, text in (("srun", SRUN), ("echo_python", ECHO), ("scontrol", SCONTROL)):
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  variables = {
    "PATH": f"{tmp_path}:{os.environ['PATH']}",
    "SLURM_SUBMIT_DIR": ROOT,
    "SLURM_JOB_NAME": "job",
    "SLURM_JOB_ID": str(os.getpid()),
    "SRUN_OPTIONS": str(tmp_path / "options"),
    "PYTHON": str(tmp_path / "echo_python"),
    "TASKS": "2",
    "MMOE_MULTIHOST": "",
    "JAX_PLATFORMS": "",
  }
  with open(os.path.join(FOLDER, script), encoding="utf-8") as file:
    text = file.read()
  return subprocess.run(
    ["bash", "-c", text, script, *map(str, arguments)],
    env=environment(**variables | settings),
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=200,
  )


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_syntax_of_a_script(script):
  path = os.path.join(FOLDER, script)
  assert subprocess.run(["bash", "-n", path], capture_output=True).stderr == b""
  assert os.access(path, os.X_OK)
  with open(path, encoding="utf-8") as file:
    lines = file.read().splitlines()
  options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
  # Slurm reads options up to the first command.
  first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
  assert options
  assert max(options) < first_command
  assert all(lines[i].startswith("#SBATCH --") for i in options)


def test_one_run_on_one_node(tmp_path):
  done = submit("slurm_train.sh", tmp_path, "--config.train.epochs=1", TASKS="1")
  config = "--config configs/census.py --workdir runs/job --config.train.epochs=1"
  assert done.stdout == f"||-m mmoe_jax.main {config}\n"


def test_an_array_of_populations_has_separate_seeds_and_work_directories(tmp_path):
  settings = {"SLURM_ARRAY_TASK_ID": "3", "WORKDIR": "runs/a", "SEEDS": "8", "TASKS": "1"}
  done = submit("slurm_seeds.sh", tmp_path, **settings)
  seeds = "--seeds 8 --config.seed=24 --workdir runs/a/3"
  assert done.stdout == f"|cpu|-m mmoe_jax.population --config configs/census.py {seeds}\n"


def test_every_process_of_a_step_joins_the_hosts(tmp_path):
  done = submit("slurm_hosts.sh", tmp_path, TASKS="3", CONFIG="c.py", SLURM_CPUS_PER_TASK="4")
  line = "1||-m mmoe_jax.main --config c.py --workdir runs/job"
  assert done.stdout.splitlines() == [line] * 3
  assert (tmp_path / "options").read_text() == "--wait=60\n--cpus-per-task=4\n"


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("status", "is_requeued"), [(75, True), (2, False)])
def test_a_job_that_stopped_at_a_signal_is_requeued(script, status, is_requeued, tmp_path):
  settings = {"STATUS": str(status), "SLURM_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}
  done = submit(script, tmp_path, **settings)
  assert done.returncode == status
  assert ("scontrol requeue 17" in done.stdout.splitlines()) == is_requeued


@pytest.mark.slow
def test_a_step_of_two_processes_trains_one_run(prepared, tmp_path):
  done = submit(
    "slurm_hosts.sh",
    tmp_path,
    f"--config.data_dir={prepared}",
    "--config.train.epochs=1",
    CONFIG="configs/smoke.py",
    WORKDIR=str(tmp_path / "run"),
    PYTHON=sys.executable,
    JAX_PLATFORMS="cpu",
    SLURM_CPUS_PER_TASK="1",
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("best epoch 1 of 1") == 1  # Of the first process only.
  assert "devices: 2 x cpu" in done.stderr
  settings = json.loads((tmp_path / "run" / "config.json").read_text())
  assert settings["train"]["devices"] == 2


@pytest.mark.parametrize("name", MANIFESTS)
def test_containers_of_a_manifest_start_commands_with_known_flags(name):
  modules = pages.commands()
  containers = [c for spec in pod_specs(name) for c in spec["containers"]]
  assert containers
  for container in containers:
    python, dash_m, module = container["command"]
    assert (python, dash_m) == ("python", "-m")
    known = {flag.name for flag in pages.flags(modules[module])}
    flags = [word.removeprefix("--").split("=")[0] for word in container["args"]]
    assert {flag.split(".")[0] for flag in flags} <= known
  for spec in pod_specs(name):
    volumes = {volume["name"] for volume in spec["volumes"]}
    every = [*spec["containers"], *spec.get("initContainers", [])]
    assert {m["name"] for c in every for m in c["volumeMounts"]} == volumes


def pod_specs(name):
  with open(os.path.join(FOLDER, name), encoding="utf-8") as file:
    found = list(yaml.safe_load_all(file))
  return [item["spec"]["template"]["spec"] for item in found if "template" in item["spec"]]


def test_pods_that_join_have_a_number_and_a_coordinator():
  with open(os.path.join(FOLDER, "kubernetes_hosts.yaml"), encoding="utf-8") as file:
    service, job = yaml.safe_load_all(file)
  (container,) = job["spec"]["template"]["spec"]["containers"]
  variables = {item["name"]: item for item in container["env"]}
  job_name, service_name = job["metadata"]["name"], service["metadata"]["name"]
  address = variables["JAX_COORDINATOR_ADDRESS"]["value"]
  assert address.split(":")[0] == f"{job_name}-0.{service_name}"
  assert job["spec"]["template"]["spec"]["subdomain"] == service_name
  assert service["spec"]["selector"] == {"job-name": job_name}
  count = int(variables["JAX_NUM_PROCESSES"]["value"])
  assert job["spec"]["completions"] == job["spec"]["parallelism"] == count
  assert "JAX_PROCESS_ID" in variables


def test_servers_are_asked_on_their_port_for_a_path_that_exists():
  (spec,) = pod_specs("kubernetes_serve.yaml")
  (container,) = spec["containers"]
  assert "--port=8000" in container["args"]
  with open(os.path.join(ROOT, "mmoe_jax", "serve", "app.py"), encoding="utf-8") as file:
    assert '("/health", self._health, "GET")' in file.read()
  for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
    assert container[probe]["httpGet"] == {"path": "/health", "port": 8000}
  (variable,) = container["env"]
  assert f"--token_variable={variable['name']}" in container["args"]


def test_the_image_copies_files_that_exist_and_are_sent_to_the_builder():
  with open(os.path.join(FOLDER, "Dockerfile"), encoding="utf-8") as file:
    sources = [line.split()[1] for line in file if line.startswith("COPY")]
  with open(os.path.join(FOLDER, "Dockerfile.dockerignore"), encoding="utf-8") as file:
    sent = [line.strip()[1:] for line in file if line.startswith("!")]
  assert all(os.path.exists(os.path.join(ROOT, source)) for source in sources)
  assert {source.split("/")[0] for source in sources} == set(sent)
