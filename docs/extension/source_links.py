"""Links from a path in backquotes to the page with the source of that module."""

from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from docs.extension.links import module_of


class LinkPaths(SphinxPostTransform):
  """Makes a path of a module in backquotes a link to its source, if the site shows it."""

  default_priority = 900
  formats = ("html",)

  def run(self, **kwargs: Any) -> None:
    """Replaces literals by references."""
    del kwargs
    shown = getattr(self.env, "_viewcode_modules", {})
    for literal in list(self.document.findall(nodes.literal)):
      module = module_of(literal.astext())
      if not module or not shown.get(module) or isinstance(literal.parent, nodes.reference):
        continue
      source = f"_modules/{module.replace('.', '/')}"
      uri = self.app.builder.get_relative_uri(self.env.docname, source)
      literal.replace_self(nodes.reference("", "", literal.deepcopy(), refuri=uri))
