#!/usr/bin/env bash
# From a fresh clone to a table of AUCs, or to passed tests, including the set-up.
#
#   ./run.sh [--config.KEY=VALUE …]     prepares the data, trains, evaluates
#   ./run.sh test [PYTEST ARGUMENT …]   runs the tests, on the CPU
#   ./run.sh docs                       builds the documentation site in docs/_build/html
#
# Environment:
#   CONFIG    config file, with its argument if any         (configs/census.py)
#   DATA      folder of the prepared data                   (data/census)
#   SOURCE    folder or archive with the raw files          (cache, UCI, package index)
#   WORKDIR   work directory of the run                     (runs/NAME-OF-CONFIG)
#   PYTHON    Python that creates .venv                     (python3)
#   SMOKE=1   short form: the smoke config on the real data, in a new work directory
#
# Uses the active virtual environment, or creates .venv, and installs missing requirements.
set -euo pipefail
cd "$(dirname "$0")"

if [ -z "${VIRTUAL_ENV:-}" ]; then
  if [ ! -x .venv/bin/python ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      { echo "error: needs Python 3.11 or newer; set PYTHON=…" >&2; exit 2; }
    echo "creating .venv …"
    "${PYTHON:-python3}" -m venv .venv
  fi
  VIRTUAL_ENV=$PWD/.venv
fi
python=$VIRTUAL_ENV/bin/python
# A copy of the installed list, so that a second start does not ask the package index.
installed=$VIRTUAL_ENV/.mmoe_jax_requirements
if ! cmp -s requirements.txt "$installed"; then
  echo "installing requirements.txt …"
  "$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
  cp requirements.txt "$installed"
fi

if [ "${1:-}" = test ]; then
  exec "$python" -m pytest "${@:2}"
fi

if [ "${1:-}" = docs ]; then
  "$python" -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
  rm -rf docs/_build
  JAX_PLATFORMS=cpu "$python" -m sphinx -q -W --keep-going -b html -d docs/_build/pages \
    docs docs/_build/html
  exec "$python" -m docs.extension.check_links docs/_build/html
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
  echo "$DATA is prepared already; SOURCE is ignored"
fi
echo "training $CONFIG in $WORKDIR …"
exec "$python" -m mmoe_jax.main --config "$CONFIG" --workdir "$WORKDIR" \
  "--config.data_dir=$DATA" "$@"
