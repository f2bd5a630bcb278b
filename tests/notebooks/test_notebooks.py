"""Notebooks as they are stored, the command that tidies them, and what their execution refuses."""

import glob
import json
import os
import re
import shutil

import nbformat
import pytest

from mmoe_jax.errors import UserError
from notebooks import execute, tidy
from tests.commands import run

NAMES = sorted(os.path.basename(path) for path in glob.glob(os.path.join(tidy.FOLDER, "*.ipynb")))
MOST_LINES = 32  # Of a cell, so that it fits on a screen.


def read(folder: str) -> dict[str, str]:
  """Returns the text of each notebook, and of README.md."""
  found = {}
  for name in [*NAMES, "README.md"]:
    with open(os.path.join(folder, name), encoding="utf-8") as file:
      found[name] = file.read()
  return found


@pytest.fixture
def folder(tmp_path):
  """Returns a copy of the notebooks without an address."""
  for name in [*NAMES, "README.md"]:
    shutil.copy(os.path.join(tidy.FOLDER, name), tmp_path)
  tidy.tidy(str(tmp_path), "")
  return str(tmp_path)


def test_stored_notebooks_are_tidy(tmp_path):
  for name in [*NAMES, "README.md"]:
    shutil.copy(os.path.join(tidy.FOLDER, name), tmp_path)
  assert tidy.tidy(str(tmp_path), None) == [], "run: python -m notebooks.tidy"


@pytest.mark.parametrize("name", NAMES)
def test_form_of_a_notebook(name):
  with open(os.path.join(tidy.FOLDER, name), encoding="utf-8") as file:
    cells = json.load(file)["cells"]
  sources = ["".join(cell["source"]) for cell in cells]
  assert "# " in sources[0]
  assert "**Expect**" in sources[0]
  assert cells[1]["id"] == "set-up"
  assert len({cell["id"] for cell in cells}) == len(cells)
  for cell, source in zip(cells, sources, strict=True):
    assert 0 < len(source.splitlines()) <= MOST_LINES, cell["id"]
    if "colab.research" not in source:
      assert max(map(len, source.splitlines())) <= 100, cell["id"]


def test_shared_cells_are_the_same_and_the_table_is_complete():
  shared = {name: {} for name in tidy.SHARED}
  for name in NAMES:
    with open(os.path.join(tidy.FOLDER, name), encoding="utf-8") as file:
      cells = json.load(file)["cells"]
    for cell in cells:
      source = "".join(cell["source"])
      if cell["id"] in shared:
        shared[cell["id"]][name] = source
      else:
        assert "MMOE_DATA" not in source
        assert "google.colab" not in source
  assert sorted(shared["set-up"]) == NAMES
  assert [name for name, found in shared.items() if len(set(found.values())) != 1] == []
  rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.ipynb\)", read(tidy.FOLDER)["README.md"], re.MULTILINE)
  assert sorted(rows) == [(name.removesuffix(".ipynb"),) * 2 for name in NAMES]


@pytest.mark.parametrize(
  "address",
  [
    "https://github.com/someone/some.repo",
    "https://github.com/someone/some.repo.git",
    "git@github.com:someone/some.repo.git",
    "ssh://git@github.com/someone/some.repo",
    "https://token@github.com/someone/some.repo/",
  ],
)
def test_an_address_becomes_badges_and_is_kept_and_removed(folder, address):
  before = read(folder)
  assert sorted(tidy.tidy(folder, address, "trunk")) == sorted(before)
  after = read(folder)
  base = "https://colab.research.google.com/github/someone/some.repo/blob/trunk/notebooks/"
  for name in NAMES:
    cells = json.loads(after[name])["cells"]
    badge = "".join(cells[0]["source"]).splitlines()[0]
    assert badge.startswith("[![Open in Colab](https://colab.research.google.com/assets/")
    assert badge.endswith(f"]({base}{name})")
    (set_up,) = ["".join(c["source"]) for c in cells if c["id"] == "set-up"]
    assert 'repository = "https://github.com/someone/some.repo"  # @param' in set_up
    assert f"({name}) ([Colab]({base}{name})) |" in after["README.md"]
  assert tidy.tidy(folder, None) == []
  tidy.tidy(folder, "")
  assert read(folder) == before


def test_an_address_that_colab_cannot_open_is_refused(folder):
  before = read(folder)
  for address in ("https://example.org/someone/repo", "/a/folder", "https://github.com/someone"):
    with pytest.raises(UserError, match="must be on GitHub"):
      tidy.tidy(folder, address)
  assert read(folder) == before
  done = run("notebooks.tidy", "--repository=nowhere")
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith("error: --repository=nowhere: must be on GitHub")


def test_outputs_and_other_shared_cells_are_removed(folder):
  name = next(name for name in NAMES if name != tidy.FIRST)
  path = os.path.join(folder, name)
  expected = read(folder)[name]
  notebook = nbformat.reads(expected, as_version=4)
  for cell in notebook.cells:
    cell.metadata["collapsed"] = True
    if cell.cell_type == "code":
      cell.execution_count = 3
      cell.outputs = [nbformat.v4.new_output("stream", text="printed")]
    if cell["id"] == "set-up":
      cell.source += "\nprint('another')"
  notebook.metadata["language_info"]["version"] = "3.11.0"
  nbformat.write(notebook, path)
  assert tidy.tidy(folder, None) == [name]
  assert read(folder)[name] == expected


def test_figures_without_an_image_are_found():
  output = nbformat.v4.new_output
  text = {"text/plain": "<Figure size 720x290 with 2 Axes>"}
  outputs = [
    [output("stream", text="<Figure")],
    [output("display_data", data=text)],
    [output("display_data", data=text | {"image/png": ""})],
    [output("display_data", data={"text/plain": "1.0"})],
  ]
  cells = [nbformat.v4.new_code_cell("", outputs=each) for each in outputs]
  notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(""), *cells])
  assert execute.find_figures_without_image(notebook) == [cells[1]["id"]]
