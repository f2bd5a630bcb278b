"""Links of the documentation site to files of the repository.

Pages are written for GitHub, too, where a link may lead to any file. On the site a link to a
document leads to its page, and a path in backquotes, such as `mmoe_jax/training/step.py`, to the
source of that module.
"""

import os
import re
from typing import Any

from docs.extension.pages import PACKAGES, ROOT

# Documents outside docs/ -> the page that includes them.
PAGES = {
  "README.md": "readme",
  "data_prep/README.md": "data",
  "studies/README.md": "studies",
  "benchmarks/README.md": "benchmarks",
  "notebooks/README.md": "notebooks",
}
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_TEXT_AND_LINK = re.compile(r"\[([^\]]*)" + LINK.pattern)


def on_source_read(app: Any, docname: str, source: list[str]) -> None:
  """Rewrites the links of a page."""
  del app
  source[0] = rewrite(source[0], os.path.join("docs", os.path.dirname(docname)), docname)


def on_include_read(app: Any, path: Any, docname: str, content: list[str]) -> None:
  """Rewrites the links of a document that a page includes."""
  folder = os.path.dirname(os.path.relpath(os.path.join(app.srcdir, str(path)), ROOT))
  content[0] = rewrite(content[0], folder, docname)


def rewrite(text: str, folder: str, docname: str) -> str:
  """Returns the text of a document in a folder with links that work on a page.

  Args:
    text: Markdown.
    folder: folder of the document, from the root of the repository.
    docname: page that shows it.
  """

  def replace(match: re.Match[str]) -> str:
    label, target, anchor = match[1], match[2], match[3] or ""
    path = os.path.normpath(os.path.join(folder, target))
    if path in PAGES:
      return f"[{label}](/{PAGES[path]}.md{anchor})"
    if path.startswith("docs/") and path.endswith(".md"):
      return f"[{label}](/{path.removeprefix('docs/')}{anchor})"
    if os.path.isfile(os.path.join(ROOT, path)):  # Its content, to be downloaded.
      return f"[{label}]({os.path.relpath(path, os.path.join('docs', os.path.dirname(docname)))})"
    return f"`{path}`" if os.path.isdir(os.path.join(ROOT, path)) else match[0]

  return _TEXT_AND_LINK.sub(replace, text)


def module_of(path: str) -> str | None:
  """Returns the module of a path in backquotes, which may omit `mmoe_jax/`; None if it is none."""
  if not re.fullmatch(r"[\w/]+\.py", path):
    return None
  for candidate in (path, f"mmoe_jax/{path}"):
    is_ours = candidate.split("/")[0] in PACKAGES
    if is_ours and os.path.isfile(os.path.join(ROOT, candidate)):
      return candidate[:-3].replace("/", ".")
  return None
