"""Documents name keys, flags, files and commands that exist."""

import glob
import inspect
import itertools
import os
import re
import shlex
import subprocess

import pytest

from configs import census, census_demo, synthetic
from docs.extension import pages
from examples import own_model
from mmoe_jax.config import KEYS
from mmoe_jax.training import optimizer, row_optimizer
from tests import ROOT

FOLDERS = (
  "docs",
  "examples",
  "mmoe_jax",
  "configs",
  "data_prep",
  "studies",
  "benchmarks",
  "tests",
  "notebooks",
)
_TRACKED = subprocess.run(
  ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
).stdout.split()
# Without git, as in an archive: what is there.
FILES = [path for path in _TRACKED if os.path.exists(os.path.join(ROOT, path))] or [
  os.path.relpath(path, ROOT)
  for folder in FOLDERS
  for path in glob.glob(f"{ROOT}/{folder}/**", recursive=True)
]
DOCUMENTS = sorted({path for path in FILES if path.endswith(".md")} | {"README.md"})
SCRIPTS = [path for path in FILES if path.startswith("docs/batch/")]
every_document = pytest.mark.parametrize("path", [*DOCUMENTS, *SCRIPTS])


def read(path: str) -> str:
  with open(os.path.join(ROOT, path), encoding="utf-8") as file:
    return file.read()


def flatten(tree, prefix=""):
  for key, value in tree.items():
    yield f"{prefix}{key}"
    if hasattr(value, "items"):
      yield from flatten(value, f"{prefix}{key}.")


def known_keys() -> set[str]:
  """Returns every key that some run can have, and the groups of keys."""
  arguments = [f"{model},weighting=static" for model in census.MODELS]
  arguments += [f"mmoe,weighting={name}" for name in census.WEIGHTINGS]
  configs = [census.get_config(argument) for argument in arguments]
  configs += [census_demo.get_config(), synthetic.get_config(), own_model.get_config()]
  keys = set(flatten(KEYS)).union(*(flatten(config.to_dict()) for config in configs))
  functions = [*optimizer.DIRECTIONS.values(), optimizer.ftrl, row_optimizer.rowwise_adagrad]
  for group, function in itertools.product(optimizer.GROUPS, functions):
    keys |= {f"optimizer.{group}.{name}" for name in inspect.signature(function).parameters}
  return keys


def unknown_keys(text: str, known: set[str]) -> list[str]:
  """Returns the keys in a text that no config has."""
  found = re.findall(r"\bconfig\.((?:[a-z]\w*|\*)(?:\.(?:[a-z]\w*|\*))*)", text)
  found += re.findall(r"`((?:train|loss|optimizer|select)\.[a-z]\w*(?:\.\w+)*)[`=]", text)
  found = [key for key in found if key not in ("json", "py", "x") and not key.endswith(".py")]
  return [
    key
    for key in found
    if not any(re.fullmatch(key.replace(".", r"\.").replace("*", r"\w+"), k) for k in known)
  ]


def commands(text: str) -> list[list[str]]:
  """Returns the words of each `python -m …` of a text, from the module on."""
  joined = re.sub(r"\\\n\s*", " ", text)
  found = re.findall(r"python3? -m ([a-z]\w*(?:\.\w+)*[^`\n|<>&;]*)", joined)
  return [shlex.split(line.split("  #")[0].replace("'", "")) for line in found]


def wrong_words(words: list[str], modules: dict[str, str]) -> list[str]:
  """Returns what is wrong in a command of this project: its module, or flags without a match."""
  module, *arguments = words
  if module in ("pip", "venv", "pytest", "http.server", "sphinx", "benchmarks.peak_memory"):
    return []
  if module not in modules:
    return [f"python -m {module}"]
  known = {flag.name for flag in pages.flags(modules[module])}
  flags = [re.match(r"--(\w+)", word) for word in arguments]
  wrong = [flag[0] for flag in flags if flag and flag[1] not in known]
  files = [word for word in arguments if word.startswith("configs/")]
  return wrong + [f for f in files if not os.path.isfile(os.path.join(ROOT, f.split(":")[0]))]


def missing_paths(text: str, path: str) -> list[str]:
  """Returns the paths in a text that are not those of files or folders."""
  folder = os.path.dirname(path)
  found = set(re.findall(rf"(?<![\w/.~])((?:{'|'.join(FOLDERS)})/[\w/.-]*[\w/])", text))
  found |= set(re.findall(r"`([\w/]+\.(?:py|toml|sh|yaml|svg))[`:]", text))
  found |= set(re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", text))
  tails = {tail for file in FILES for tail in _tails(file)}
  return [
    name
    for name in sorted(found)
    if name.rstrip("/") not in tails
    and not name.startswith("docs/_build")  # The site, which is built.
    and not os.path.exists(os.path.join(ROOT, name))
    and not os.path.exists(os.path.join(ROOT, folder, name))
  ]


def _tails(path: str) -> list[str]:
  names = path.split("/")
  return ["/".join(names[i:]) for i in range(len(names))]


@every_document
def test_keys_files_and_commands_of_a_document_exist(path):
  text = read(path)
  assert unknown_keys(text, known_keys()) == []
  assert missing_paths(text, path) == []
  modules = pages.commands()
  assert [wrong for words in commands(text) for wrong in wrong_words(words, modules)] == []


def test_code_that_pages_include_is_there():
  found = []
  for path in DOCUMENTS:
    pattern = r"```\{literalinclude\} (\S+)\n((?::.*\n)*)"
    for name, options in re.findall(pattern, read(path)):
      code = read(os.path.normpath(os.path.join(os.path.dirname(path), name)))
      found.append(name)
      for option, value in re.findall(r":([a-z-]+): (.*)", options):
        if option in ("start-at", "end-before"):
          assert value in code, (path, value)
        elif option == "pyobject":
          assert re.search(rf"^ *(def|class) {value.split('.')[-1]}\b", code, re.M), (path, value)
  assert len(found) > 10


def test_a_name_that_does_not_exist_is_found():
  text = "`--config.train.epoch=3`, `train.no`, `mmoe_jax/no.py`, `no.toml`, [a](../no.md)"
  assert unknown_keys(text, known_keys()) == ["train.epoch", "train.no"]
  assert missing_paths(text, "docs/x.md") == ["../no.md", "mmoe_jax/no.py", "no.toml"]
  modules = pages.commands()
  (words,) = commands("    python -m mmoe_jax.main --config configs/no.py \\\n      --epochs=3")
  assert wrong_words(words, modules) == ["--epochs", "configs/no.py"]
  assert wrong_words(["mmoe_jax.training.loop"], modules) == ["python -m mmoe_jax.training.loop"]


def test_flags_are_read_from_the_code():
  found = pages.flags(pages.commands()["mmoe_jax.population"])
  assert [flag.default for flag in found] == ["required", "required", "1", "[]", "0"]
  assert [flag.name for flag in found] == ["config", "workdir", "seeds", "vary", "at_once"]
  assert found[2] == ("seeds", "1", "Seeds per setting, from config.seed up.")
