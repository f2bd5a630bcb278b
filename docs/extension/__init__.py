"""Sphinx extension of the documentation site: links, docstrings, and pages that code determines."""

from typing import Any


def setup(app: Any) -> dict[str, bool]:
  """Registers the parts of the extension."""
  # Imported here, because tests of other modules have no Sphinx.
  from docs.extension import docstrings, links, pages, source_links

  app.connect("source-read", pages.expand)
  app.connect("source-read", links.on_source_read, priority=600)
  app.connect("include-read", links.on_include_read)
  app.connect("autodoc-process-docstring", docstrings.to_restructured_text, priority=400)
  app.connect("autodoc-skip-member", docstrings.is_skipped)
  app.add_post_transform(source_links.LinkPaths)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
