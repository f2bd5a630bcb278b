#!/usr/bin/env bash
# Trains one run on one node; all of its GPUs share each batch.
#
#   CONFIG=configs/census.py WORKDIR=runs/census sbatch docs/batch/slurm_train.sh [--config.KEY=VALUE …]
#
# Submit it from the repository. After a requeue it resumes from the last checkpoint.
#SBATCH --job-name=mmoe_train
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=02:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit it with sbatch from the repository}"

exec "${PYTHON:-.venv/bin/python}" -m mmoe_jax.main --config "${CONFIG:-configs/census.py}" \
  --workdir "${WORKDIR:-runs/$SLURM_JOB_NAME}" "$@"
