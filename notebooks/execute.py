"""Executes every notebook, for CI: python -m notebooks.execute. It writes nothing.

A cell with an error fails the command. `MMOE_DATA` and `MMOE_EPOCHS` select the short form.
"""

import glob
import os
import sys

import nbclient
import nbformat


def main() -> None:
  """Executes each notebook in this folder, from the root of the checkout."""
  folder = os.path.dirname(os.path.abspath(__file__))
  for path in sorted(glob.glob(os.path.join(folder, "*.ipynb"))):
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
      notebook, timeout=900, resources={"metadata": {"path": os.path.dirname(folder)}}
    )
    client.execute()
    for cell in notebook.cells:
      for output in cell.get("outputs", []):
        if output.output_type == "stream" and output.name == "stdout":
          sys.stdout.write(output.text)
    print(f"{os.path.basename(path)}: {len(notebook.cells)} cells executed")


if __name__ == "__main__":
  main()
