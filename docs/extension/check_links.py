"""Checks the links of a built site, without a network: python -m docs.extension.check_links FOLDER.

Every link, image and script must be a file of the site, every anchor exist, and nothing be loaded
from another site. Prints a line per fault; exits with 1 if there are any.
"""

import os
import sys
import urllib.parse
from html.parser import HTMLParser

_LOADS = {"script", "img", "link", "source", "iframe"}


class _Page(HTMLParser):
  """Collects the links, loaded files and anchors of a page."""

  def __init__(self, path: str):
    super().__init__()
    self.links: list[tuple[str, str]] = []
    self.anchors = {""}
    with open(path, encoding="utf-8") as file:
      self.feed(file.read())

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    """Collects what a tag refers to and names."""
    for name, value in attrs:
      if name == "id" or (name == "name" and tag == "a"):
        self.anchors.add(value or "")
      elif name in ("href", "src") and value and not _is_description(tag, attrs):
        self.links.append((tag, value))


def _is_description(tag: str, attrs: list[tuple[str, str | None]]) -> bool:
  """Returns whether a tag names a page without loading it, as its canonical address."""
  return tag == "link" and dict(attrs).get("rel") == "canonical"


def find_faults(folder: str) -> list[str]:
  """Returns a line for each broken link of a folder of HTML pages."""
  pages = {}
  for base, _, names in os.walk(folder):
    for name in names:
      if name.endswith(".html"):
        path = os.path.join(base, name)
        pages[os.path.relpath(path, folder)] = _Page(path)
  faults = []
  for path, page in sorted(pages.items()):
    for tag, link in page.links:
      url = urllib.parse.urlsplit(link)
      if url.scheme or url.netloc:
        if tag in _LOADS and url.scheme != "data":
          faults.append(f"{path}: loads {link}")
        continue
      target = os.path.normpath(os.path.join(os.path.dirname(path), urllib.parse.unquote(url.path)))
      target = target if url.path else path
      if not os.path.isfile(os.path.join(folder, target)):
        faults.append(f"{path}: {link} does not exist")
      elif target in pages and urllib.parse.unquote(url.fragment) not in pages[target].anchors:
        faults.append(f"{path}: {link} has no such anchor")
  return faults


def main() -> None:
  """Prints the faults of the folder on the command line."""
  if len(sys.argv) != 2:
    sys.exit("usage: python -m docs.extension.check_links FOLDER")
  faults = find_faults(sys.argv[1])
  print("\n".join(faults) or f"{sys.argv[1]}: all links lead to a page")
  sys.exit(bool(faults))


if __name__ == "__main__":
  main()
