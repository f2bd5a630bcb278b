#!/usr/bin/env bash
# Trains one run on several nodes: one process per GPU, all of which share each batch.
#
#   CONFIG=configs/census.py WORKDIR=runs/hosts sbatch --nodes=4 docs/batch/slurm_hosts.sh
#
# Submit it from the repository, in a folder that all nodes mount. Keep --ntasks-per-node equal to
# --gpus-per-node: JAX gives the process with SLURM_LOCALID = i the GPU i of its node.
#SBATCH --job-name=mmoe_hosts
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=02:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@90
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit it with sbatch from the repository}"

export MMOE_MULTIHOST=1  # JAX reads the rest from Slurm's variables.
status=0
# Processes that stop at a signal end within the same minute; others wait no longer for a lost one.
srun --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  "${PYTHON:-.venv/bin/python}" -m mmoe_jax.main --config "${CONFIG:-configs/census.py}" \
  --workdir "${WORKDIR:-runs/$SLURM_JOB_NAME}" "$@" || status=$?
if [ "$status" = 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi  # It has saved, and resumes.
exit "$status"
