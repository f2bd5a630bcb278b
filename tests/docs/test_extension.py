"""Extension of the documentation site: docstrings, links, drawings. CI builds the site itself."""

import glob
import os
import re
import xml.etree.ElementTree as ET

import pytest

from docs.extension import check_links, docstrings, links, pages
from tests import ROOT


def test_docstrings_keep_code_formulas_drawings_and_sections():
  text = """Adds a|b| to x_ of `y_*`s.

    step --> epoch

`mean` (T,): a mean,
  on two lines.
`entropy` (T,): the other.

Args:
  x: an x_, with **more.
    Indented further."""
  assert docstrings.convert(text.splitlines()) == [
    "Adds a\\|b\\| to x\\_ of ``y_*``\\ s.",
    "",
    "::",
    "",
    "    step --> epoch",
    "",
    "- ``mean`` (T,): a mean,",
    "  on two lines.",
    "- ``entropy`` (T,): the other.",
    "",
    "Args:",
    "  x: an x\\_, with \\*\\*more.",
    "    Indented further.",
  ]


@pytest.mark.parametrize(
  ("folder", "link", "expected"),
  [
    ("", "[a](docs/usage.md#exports)", "[a](/usage.md#exports)"),
    ("docs", "[a](usage.md)", "[a](/usage.md)"),
    ("studies", "[a](../benchmarks/README.md#race)", "[a](/benchmarks.md#race)"),
    ("docs", "[a](../data_prep/flights.toml)", "[a](../data_prep/flights.toml)"),
    ("", "[a](notebooks)", "`notebooks`"),
    ("", "[a](https://doi.org/1)", "[a](https://doi.org/1)"),
    ("docs", "[a](#here)", "[a](#here)"),
  ],
)
def test_links_of_documents_lead_to_pages(folder, link, expected):
  assert links.rewrite(link, folder, "usage") == expected


def test_a_path_names_a_module():
  assert links.module_of("training/step.py") == "mmoe_jax.training.step"
  assert links.module_of("configs/census.py") == "configs.census"
  assert links.module_of("step.py") is None


def test_every_package_has_a_page():
  found = set()
  for path in glob.glob(f"{ROOT}/docs/api/*.md"):
    with open(path, encoding="utf-8") as file:
      found |= set(re.findall("<!-- modules: (.*) -->", file.read()))
  inits = glob.glob(f"{ROOT}/mmoe_jax/**/__init__.py", recursive=True)
  packages = {os.path.relpath(os.path.dirname(path), ROOT).replace("/", ".") for path in inits}
  assert packages <= found
  assert "mmoe_jax.training.step" in pages.modules("mmoe_jax.training")


@pytest.mark.parametrize("path", sorted(glob.glob(f"{ROOT}/docs/drawings/*.svg")))
def test_drawings_have_the_colours_of_the_page_and_load_nothing(path):
  root = ET.parse(path).getroot()
  assert root.get("class") == "drawing"
  assert root.find("{http://www.w3.org/2000/svg}title").text
  with open(path, encoding="utf-8") as file:
    text = file.read()
  assert "fill: currentColor" in text
  assert "prefers-color-scheme: dark" in text
  assert not any(word in text for word in ("href", "url(", "@import", "<script"))


def test_broken_links_of_a_site_are_found(tmp_path):
  (tmp_path / "a.html").write_text(
    '<a href="b.html#x">1</a><a href="b.html#y">2</a><a href="c.html">3</a>'
    '<a href="https://x.org">4</a><script src="https://x.org/s.js"></script>'
  )
  (tmp_path / "b.html").write_text('<p id="x">')
  assert check_links.find_faults(str(tmp_path)) == [
    "a.html: b.html#y has no such anchor",
    "a.html: c.html does not exist",
    "a.html: loads https://x.org/s.js",
  ]
