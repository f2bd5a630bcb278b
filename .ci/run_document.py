"""Executes the commands of a document: python .ci/run_document.py docs/your_own_table.md.

Commands are the indented lines that start with `python -m`. They run in order in a temporary folder
that has links to this checkout's packages; the first that fails ends the run.
"""

import os
import re
import subprocess
import sys
import tempfile


def commands(text: str) -> list[str]:
  """Returns the commands of a document, with their continued lines."""
  joined = re.sub(r"\\\n\s*", "", text)
  return re.findall(r"^ {4}(python -m .*)$", joined, re.MULTILINE)


def main() -> None:
  """Executes the commands of the documents that are named on the command line."""
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
      found = commands(file.read())
    if not found:
      sys.exit(f"{path}: contains no command")
    with tempfile.TemporaryDirectory() as folder:
      for name in ("mmoe_jax", "configs", "data_prep"):
        os.symlink(os.path.join(root, name), os.path.join(folder, name))
      for command in found:
        print(f"$ {command}", flush=True)
        command = command.replace("python", f'"{sys.executable}"', 1)
        done = subprocess.run(command, shell=True, cwd=folder, check=False)
        if done.returncode:
          sys.exit(f"{path}: failed with status {done.returncode}: {command}")


if __name__ == "__main__":
  main()
