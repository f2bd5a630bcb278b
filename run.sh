#!/usr/bin/env bash
# From a fresh clone to a table of AUCs, or to passed tests; sets up all that either needs.
#
#   ./run.sh [--config.KEY=VALUE …]     prepares the data, trains, evaluates
#   ./run.sh test [PYTEST ARGUMENT …]   runs the tests, on the CPU
#
# Environment:
#   CONFIG    the config file, with its argument if any     (configs/census.py)
#   DATA      where prepared data is or goes                (data/census)
#   SOURCE    folder or archive with the raw files          (cache, UCI, package index)
#   WORKDIR   where the run leaves everything               (runs/NAME-OF-CONFIG)
#   PYTHON    the Python that makes .venv                   (python3)
#   SMOKE=1   the short form: the smoke config on the real data, in a fresh work directory
#
# An active virtual environment is used, and gets what it lacks; else .venv is made here.
set -euo pipefail
cd "$(dirname "$0")"

if [ -z "${VIRTUAL_ENV:-}" ]; then
  if [ ! -x .venv/bin/python ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      { echo "error: Python 3.11 or newer is needed; name one with PYTHON=…" >&2; exit 2; }
    echo "making .venv …"
    "${PYTHON:-python3}" -m venv .venv
  fi
  VIRTUAL_ENV=$PWD/.venv
fi
python=$VIRTUAL_ENV/bin/python
# The list that was last installed is kept, so that a second start does not ask the index again.
installed=$VIRTUAL_ENV/.mmoe_jax_requirements
if ! cmp -s requirements.txt "$installed"; then
  echo "installing requirements.txt …"
  "$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
  cp requirements.txt "$installed"
fi

if [ "${1:-}" = test ]; then
  exec "$python" -m pytest "${@:2}"
fi

if [ "${SMOKE:-0}" = 1 ]; then
  CONFIG=${CONFIG:-configs/smoke.py}
  WORKDIR=${WORKDIR:-$(mktemp -d "${TMPDIR:-/tmp}/mmoe_jax_smoke.XXXXXX")/run}
fi
CONFIG=${CONFIG:-configs/census.py}
DATA=${DATA:-data/census}
# configs/census.py:ple,protocol=paper gets runs/census_ple_protocol=paper.
name=$(basename "$CONFIG" | sed 's/\.py//; s/[^A-Za-z0-9=+._-]/_/g')
WORKDIR=${WORKDIR:-runs/$name}

if [ ! -f "$DATA/schema.json" ]; then
  "$python" -m data_prep.census_income --out "$DATA" ${SOURCE:+--source "$SOURCE"}
elif [ -n "${SOURCE:-}" ]; then
  echo "$DATA is prepared already; SOURCE is not looked at"
fi
echo "training $CONFIG in $WORKDIR …"
exec "$python" -m mmoe_jax.main --config "$CONFIG" --workdir "$WORKDIR" \
  "--config.data_dir=$DATA" "$@"
