"""Executes the notebooks, for CI, two at a time; it writes nothing.

  MMOE_EPOCHS=1 python -m notebooks.execute [NAME.ipynb …]

A cell with an error, or a figure without an image, fails the command. `MMOE_EPOCHS` selects the
short form, which compiles with the options of the tests, in half the time. `MMOE_DATA` is the
folder of the prepared Census data.
"""

import asyncio
import glob
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import nbclient
import nbformat

from tests import FAST_COMPILE

FOLDER = os.path.dirname(os.path.abspath(__file__))
_AT_ONCE = 2
_CELL_SECONDS = 3600  # Limit of a cell, in the full form on a busy machine.


def find_figures_without_image(notebook: Any) -> list[str]:
  """Returns the ids of cells whose output is the text of a figure."""
  return [
    cell.id
    for cell in notebook.cells
    for output in cell.get("outputs", [])
    if "data" in output
    and output.data.get("text/plain", "").startswith("<Figure")
    and "image/png" not in output.data
  ]


async def _execute(path: str, limit: asyncio.Semaphore) -> None:
  """Executes a notebook from the root of the checkout, and prints what its cells print."""
  async with limit:
    start = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": os.path.dirname(FOLDER)}}
    client = nbclient.NotebookClient(notebook, timeout=_CELL_SECONDS, resources=resources)
    await client.async_execute()
  name = os.path.basename(path)
  print(f"== {name}")
  for cell in notebook.cells:
    for output in cell.get("outputs", []):
      if output.output_type == "stream" and output.name == "stdout":
        sys.stdout.write(output.text)
  found = find_figures_without_image(notebook)
  if found:
    raise SystemExit(f"{name}: the figures of {', '.join(found)} have no image")
  print(f"{name}: {len(notebook.cells)} cells in {time.perf_counter() - start:.0f} s", flush=True)


async def _execute_all(paths: Sequence[str]) -> None:
  limit = asyncio.Semaphore(_AT_ONCE)
  await asyncio.gather(*(_execute(path, limit) for path in paths))


def main() -> None:
  """Executes the notebooks that are named, or all in this folder."""
  if "MMOE_EPOCHS" in os.environ:
    os.environ.setdefault("XLA_FLAGS", FAST_COMPILE)
  names = sys.argv[1:] or sorted(os.path.basename(p) for p in glob.glob(f"{FOLDER}/*.ipynb"))
  asyncio.run(_execute_all([os.path.join(FOLDER, name) for name in names]))


if __name__ == "__main__":
  main()
