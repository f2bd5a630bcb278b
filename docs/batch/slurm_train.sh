#!/usr/bin/env bash
# Trains one run on one node; all of its GPUs share each batch.
#
#   CONFIG=configs/census.py WORKDIR=runs/census sbatch docs/batch/slurm_train.sh [--config.KEY=VALUE …]
#
# Submit it from the repository. It is requeued 90 s before its time is over, and resumes.
#SBATCH --job-name=mmoe_train
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=02:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@90
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit it with sbatch from the repository}"

status=0
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  "${PYTHON:-.venv/bin/python}" -m mmoe_jax.main --config "${CONFIG:-configs/census.py}" \
  --workdir "${WORKDIR:-runs/$SLURM_JOB_NAME}" "$@" || status=$?
if [ "$status" = 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi  # It has saved, and resumes.
exit "$status"
