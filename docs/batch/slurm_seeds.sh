#!/usr/bin/env bash
# Trains many seeds: each job of the array a population of SEEDS seeds on all cores of a node.
#
#   SEEDS=16 CONFIG=configs/census.py WORKDIR=runs/seeds sbatch --array=0-3 docs/batch/slurm_seeds.sh
#
# Submit it from the repository. Job i trains the seeds i·SEEDS to (i + 1)·SEEDS − 1 in WORKDIR/i.
#SBATCH --job-name=mmoe_seeds
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=02:00:00
#SBATCH --array=0-3
#SBATCH --requeue
#SBATCH --signal=TERM@90
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit it with sbatch from the repository}"

seeds=${SEEDS:-16}
status=0
JAX_PLATFORMS=cpu srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  "${PYTHON:-.venv/bin/python}" -m mmoe_jax.population \
  --config "${CONFIG:-configs/census.py}" --seeds "$seeds" \
  "--config.seed=$((SLURM_ARRAY_TASK_ID * seeds))" \
  --workdir "${WORKDIR:-runs/$SLURM_JOB_NAME}/$SLURM_ARRAY_TASK_ID" "$@" || status=$?
if [ "$status" = 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi  # It has saved, and resumes.
exit "$status"
