"""Tidies the notebooks: no outputs, the same shared cells, links that open them on Colab.

  python -m notebooks.tidy                                              # after a change
  python -m notebooks.tidy --repository "$(git remote get-url origin)"  # sets the address

Cells with the ids in SHARED are copied from the notebook FIRST, so change them there. The address
is set in the set-up cells, in badges at the top of the notebooks, and in README.md; --repository=
removes it. Colab opens notebooks from GitHub only.
"""

import glob
import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import flags

from mmoe_jax import commands
from mmoe_jax.errors import require
from mmoe_jax.files import write_atomically

FOLDER = os.path.dirname(os.path.abspath(__file__))
FIRST = "mmoe_census.ipynb"
SHARED = ("set-up", "census")
METADATA = {
  "accelerator": "GPU",
  "colab": {"provenance": []},
  "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
  "language_info": {"name": "python"},
}
_COLAB = "https://colab.research.google.com"
_LINK = re.compile(rf"\({_COLAB}/github/([^/\s]+)/([^/\s]+)/blob/(\S+)/notebooks/\w+\.ipynb\)")
_BADGE = re.compile(r"\A\[!\[Open in Colab\].*\n\n")
_GITHUB = re.compile(
  r"(?:https://(?:[^/@\s]+@)?|ssh://git@|git@)github\.com[/:]([\w.-]+)/([\w.-]+?)(?:\.git)?/?"
)


class Repository(NamedTuple):
  """Repository on GitHub, and the branch that Colab opens."""

  owner: str
  name: str
  branch: str

  @property
  def address(self) -> str:
    """The address to clone."""
    return f"https://github.com/{self.owner}/{self.name}"

  def link(self, notebook: str) -> str:
    """Returns the address that opens a notebook on Colab."""
    return f"{_COLAB}/github/{self.owner}/{self.name}/blob/{self.branch}/notebooks/{notebook}"


def parse_repository(address: str, branch: str) -> Repository | None:
  """Parses the address of a repository, as git prints it; None if it is empty.

  Raises:
    UserError: if it is not on GitHub.
  """
  found = _GITHUB.fullmatch(address)
  require(
    not address or found is not None,
    f"--repository={address}: must be on GitHub, from which Colab opens notebooks, such as "
    "https://github.com/OWNER/NAME",
  )
  return Repository(*found.groups(), branch) if found else None


def find_repository(notebook: Mapping[str, Any]) -> Repository | None:
  """Returns the repository in the badge of a notebook; None without a badge."""
  found = _LINK.search("".join(notebook["cells"][0]["source"]))
  return Repository(*found.groups()) if found else None


def tidy_notebook(
  notebook: Mapping[str, Any],
  file_name: str,
  shared: Mapping[str, str],
  repository: Repository | None,
) -> dict[str, Any]:
  """Returns a notebook without outputs, with the shared cells and the badge.

  Args:
    notebook: content of the file.
    file_name: name of the file, for the link.
    shared: id of a shared cell -> its source.
    repository: where Colab finds the notebook; None removes the badge.
  """
  cells = []
  for number, cell in enumerate(notebook["cells"]):
    source = shared.get(cell["id"], "".join(cell["source"]))
    if number == 0:
      source = _BADGE.sub("", source)
      if repository:
        badge = f"[![Open in Colab]({_COLAB}/assets/colab-badge.svg)]({repository.link(file_name)})"
        source = f"{badge}\n\n{source}"
    new = {"cell_type": cell["cell_type"], "id": cell["id"], "metadata": {}}
    if cell["cell_type"] == "code":
      new |= {"execution_count": None, "outputs": []}
    cells.append(dict(sorted({**new, "source": source.splitlines(keepends=True)}.items())))
  return {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def shared_cells(first: Mapping[str, Any], repository: Repository | None) -> dict[str, str]:
  """Returns the sources of the shared cells by id, with the address to clone."""
  found = {c["id"]: "".join(c["source"]) for c in first["cells"] if c["id"] in SHARED}
  address = repository.address if repository else ""
  line = f'repository = "{address}"  # @param {{type: "string"}}'
  found["set-up"] = re.sub(r"^repository = .*$", line, found["set-up"], flags=re.MULTILINE)
  return found


def tidy_table(text: str, repository: Repository | None) -> str:
  """Sets or removes the links to Colab in the table of README.md."""

  def row(match: re.Match[str]) -> str:
    link = f" ([Colab]({repository.link(match[2])}))" if repository else ""
    return f"{match[1]}{link} |"

  pattern = r"^(\| \[\w+\]\((\w+\.ipynb)\))(?: \(\[Colab\]\(\S+\)\))? \|"
  return re.sub(pattern, row, text, flags=re.MULTILINE)


def tidy(folder: str, address: str | None, branch: str = "main") -> list[str]:
  """Tidies all notebooks in a folder, and its README.md.

  Args:
    folder: the folder.
    address: address of the repository; empty to remove it, None to keep the present one.
    branch: branch that Colab opens, with a new address.

  Returns:
    Names of the files that changed.
  """
  notebooks = {}
  for path in sorted(glob.glob(os.path.join(folder, "*.ipynb"))):
    with open(path, encoding="utf-8") as file:
      notebooks[os.path.basename(path)] = json.load(file)
  first = notebooks[FIRST]
  repository = find_repository(first) if address is None else parse_repository(address, branch)
  shared = shared_cells(first, repository)
  texts = {}
  for name, notebook in notebooks.items():
    content = tidy_notebook(notebook, name, shared, repository)
    texts[name] = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
  with open(os.path.join(folder, "README.md"), encoding="utf-8") as file:
    texts["README.md"] = tidy_table(file.read(), repository)
  changed = []
  for name, text in texts.items():
    path = os.path.join(folder, name)
    with open(path, encoding="utf-8") as file:
      is_same = file.read() == text
    if not is_same:
      write_atomically(path, text)
      changed.append(name)
  return changed


def main(argv: list[str]) -> None:
  """Tidies the notebooks of this checkout."""
  del argv
  for name in tidy(FOLDER, _REPOSITORY.value, _BRANCH.value):
    print(f"changed notebooks/{name}")


if __name__ == "__main__":
  _REPOSITORY = flags.DEFINE_string("repository", None, "Address on GitHub, for Colab.")
  _BRANCH = flags.DEFINE_string("branch", "main", "Branch that Colab opens.")
  commands.run(main)
