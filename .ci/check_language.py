"""Checks the language of tracked text: words with a plain alternative, and docstring openings.

  python .ci/check_language.py

Prints FILE:LINE, the word and its alternative for each finding; exits with 1 if there are any.
"""

import ast
import json
import re
import subprocess
import sys

# Word or phrase (a regular expression, whole words, any case) -> plain alternative.
WORDS = {
  r"go(es)? on": "resume, continue",
  r"to the bit": "bitwise identical",
  r"bit for bit": "bitwise identical",
  r"(rows|lines|tokens) a second": "rows/s",
  r"an? (epoch|row|step|task|member|seed|device|line|file|run|gate|expert) each": "one per …",
  r"seconds an? (epoch|step|row)": "seconds per …",
  r"s an epoch": "s per epoch",
  r"rooms?": "module, memory",
  r"rims?": "loop, outer layer",
  r"aloud": "verbose",
  r"spent": "elapsed",
  r"learnt": "learned",
  r"beside": "next to, with",
  r"anew": "again",
  r"what else": "other",
  r"lack(s|ing)?": "is missing, has no",
  r"the very": "the same",
  r"not to be had": "not available",
  r"could not be got": "could not obtain",
  r"say so": "report it",
  r"says so": "reports it",
  r"has the last word": "takes precedence",
  r"whoever": "the caller",
  r"nobody": "no one, no caller",
  r"made-?up": "synthetic, fake",
  r"of (its|their|one's) own": "own, separate",
  r"by itself": "alone, automatically",
  r"is_on": "is_enabled",
  r"made rows": "synthetic rows",
  r"in turns": "interleaved",
  r"one after another as": "sequentially",
  r"so many": "that many",
  r"yet to": "not … until now",
  r"was there": "existed",
  r"told": "reported",
}
PATTERN = re.compile("|".join(rf"(?P<w{i}>\b{word}\b)" for i, word in enumerate(WORDS)), re.I)
OPENINGS = ("what", "how", "whether", "where", "who", "which", "why")
SUFFIXES = (".py", ".md", ".sh", ".toml", ".txt", ".ipynb")
SKIPPED = ("LICENSE", ".ci/check_language.py")


def read_lines(path: str) -> list[str]:
  """Returns the lines of a file; of a notebook those of its cells."""
  with open(path, encoding="utf-8") as file:
    text = file.read()
  if path.endswith(".ipynb"):
    text = "".join("".join(cell["source"]) + "\n" for cell in json.loads(text)["cells"])
  return text.splitlines()


def find_words(path: str) -> list[str]:
  """Returns a finding for each word in a file."""
  findings = []
  for number, line in enumerate(read_lines(path), start=1):
    for match in PATTERN.finditer(line):
      alternative = WORDS[list(WORDS)[int(match.lastgroup[1:])]]
      findings.append(f"{path}:{number}: '{match[0]}': write {alternative}")
  return findings


def find_openings(path: str) -> list[str]:
  """Returns a finding for each docstring of a Python file that begins with a question word."""
  with open(path, encoding="utf-8") as file:
    tree = ast.parse(file.read())
  findings = []
  for node in ast.walk(tree):
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      continue
    words = (ast.get_docstring(node) or "").split()
    if words and words[0].strip(",.:").lower() in OPENINGS:
      line = getattr(node, "lineno", 1)
      findings.append(f"{path}:{line}: docstring begins with '{words[0]}': use a verb or a noun")
  return findings


def main() -> None:
  """Prints all findings."""
  files = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout
  findings = []
  for path in files.split():
    if path.endswith(SUFFIXES) and path not in SKIPPED:
      findings += find_words(path)
      if path.endswith(".py"):
        findings += find_openings(path)
  print("\n".join(findings))
  sys.exit(bool(findings))


if __name__ == "__main__":
  main()
