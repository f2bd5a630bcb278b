"""Parts of pages that the code determines: modules of a package, flags of the commands.

A page asks for them by a line `<!-- modules: PACKAGE -->` or `<!-- commands: PACKAGE … -->`.
"""

import ast
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PACKAGES = (
  "mmoe_jax",
  "configs",
  "data_prep",
  "studies",
  "benchmarks",
  "examples",
  "notebooks",
)


class Flag(NamedTuple):
  """Flag of a command: its name, its default as source text or `required`, its help."""

  name: str
  default: str
  help: str


def expand(app: Any, docname: str, source: list[str]) -> None:
  """Replaces the lines that ask for generated text."""
  del app, docname
  source[0] = re.sub(r"^<!-- modules: (.*) -->$", _modules, source[0], flags=re.M)
  source[0] = re.sub(r"^<!-- commands: (.*) -->$", _commands, source[0], flags=re.M)


def modules(package: str) -> list[str]:
  """Returns the modules directly in a package, and the package if it has a docstring to show."""
  folder = os.path.join(ROOT, *package.split("."))
  names = sorted(name[:-3] for name in os.listdir(folder) if name.endswith(".py"))
  return [f"{package}.{name}" for name in names if not name.startswith("__")]


def commands() -> dict[str, str]:
  """Returns module -> file of everything that `python -m` executes."""
  found = {}
  for package in PACKAGES:
    for folder, _, names in os.walk(os.path.join(ROOT, package)):
      for name in sorted(names):
        path = os.path.join(folder, name)
        if name.endswith(".py") and '__name__ == "__main__"' in _read(path):
          module = os.path.relpath(path, ROOT)[:-3].replace(os.sep, ".")
          found[module.removesuffix(".__main__")] = path
  return found


def flags(path: str) -> list[Flag]:
  """Returns the flags that a file defines by absl, --config included."""
  calls = [node for node in ast.walk(ast.parse(_read(path))) if isinstance(node, ast.Call)]
  calls = [call for call in calls if isinstance(call.func, ast.Attribute)]
  needed = set()
  for call in calls:
    if call.func.attr in ("mark_flag_as_required", "mark_flags_as_required"):
      names = ast.literal_eval(call.args[0])
      needed |= {names} if isinstance(names, str) else set(names)
  found = [flag for call in calls for flag in _flags(call)]
  return [flag._replace(default="required") if flag.name in needed else flag for flag in found]


def _flags(call: ast.Call) -> Iterator[Flag]:
  """Yields the flag that a call of a method defines, if it does."""
  if call.func.attr == "define_config":
    yield Flag("config", "None", "FILE.py or FILE.py:ARG; --config.KEY=VALUE overrides.")
  elif call.func.attr.startswith("DEFINE_"):
    # The last of a name, a default, maybe the values of an enumeration, and a help text.
    name, default, *_, text = call.args[:4] if call.func.attr == "DEFINE_enum" else call.args[:3]
    is_required = any(k.arg == "required" for k in call.keywords)
    shown = "required" if is_required else ast.unparse(default)
    yield Flag(ast.literal_eval(name), shown, ast.literal_eval(text))


def _modules(match: re.Match[str]) -> str:
  """Returns a section per module with everything public in it."""
  sections = []
  for module in modules(match[1]):
    sections += [
      f"## {module.rpartition('.')[2]}\n",
      "```{eval-rst}",
      f".. automodule:: {module}",
      "```\n",
    ]
  return "\n".join(sections)


def _commands(match: re.Match[str]) -> str:
  """Returns a section per command with its docstring's first line and a table of its flags."""
  wanted, lines = match[1].split(), []
  for module, path in commands().items():
    found = flags(path)
    if module.rpartition(".")[0] not in wanted or not found:
      continue
    title = (ast.get_docstring(ast.parse(_read(path))) or "").splitlines()[0]
    purpose = title.partition(": python")[0].rstrip(".:")
    lines += [f"### {module}\n", f"{purpose}.\n", "| flag | default | meaning |", "|---|---|---|"]
    for flag in found:
      default = f"`{flag.default}`".replace("`required`", "required")
      default = "" if flag.default in ("None", "''", "[]") else default
      lines.append(f"| `--{flag.name}` | {default} | {flag.help.replace('|', chr(92) + '|')} |")
    lines.append("")
  return "\n".join(lines)


def _read(path: str) -> str:
  with open(path, encoding="utf-8") as file:
    return file.read()
