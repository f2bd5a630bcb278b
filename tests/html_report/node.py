"""The page's scripts in Node.js, without a browser."""

import json
import os
import shutil
import subprocess

import pytest

from tests import ROOT

STATIC = os.path.join(ROOT, "mmoe_jax", "html_report", "static")
needs_node = pytest.mark.skipif(
  shutil.which("node") is None, reason="Node.js is not installed: apt-get install nodejs"
)
_COMMON = """
const input = JSON.parse(require("fs").readFileSync(0, "utf8"));
"""


def run(code, value):
  """Returns what a script prints as JSON; it can use the page's functions, and `input`."""
  names = ("encoder.js", "model.js", "what_if.js")
  parts = []
  for name in names:
    with open(os.path.join(STATIC, name), encoding="utf-8") as file:
      parts.append(file.read())
  script = '"use strict";' + "\n".join([*parts, _COMMON, code])
  done = subprocess.run(
    ["node", "-e", script], input=json.dumps(value), capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)
