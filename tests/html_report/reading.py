"""Reading of a page as a parser of HTML reads it."""

import html.parser
import json

_VOID = {"meta", "br", "input", "link", "hr"}


class Page(html.parser.HTMLParser):
  """Elements of a page, its texts and its data for scripts."""

  def __init__(self, path):
    super().__init__()
    self.elements = []
    self.ids, self.links = [], []
    self._open = []
    with open(path, encoding="utf-8") as file:
      self.source = file.read()
    self.feed(self.source)
    assert not self._open, f"not closed: {self._open}"

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self.elements.append((tag, attributes, []))
    self.ids += [attributes["id"]] if "id" in attributes else []
    self.links += [attributes["href"]] if "href" in attributes else []
    if tag not in _VOID:
      self._open.append((tag, self.elements[-1][2]))

  def handle_endtag(self, tag):
    name, _ = self._open.pop()
    assert name == tag, f"{tag} closes {name}"

  def handle_startendtag(self, tag, attributes):
    self.elements.append((tag, dict(attributes), []))

  def handle_data(self, data):
    for _, texts in self._open:
      texts.append(data)

  def all(self, tag):
    return [
      (attributes, "".join(texts)) for name, attributes, texts in self.elements if name == tag
    ]

  def json(self, key):
    """Returns the JSON in the script with this id; None without one."""
    found = [text for attributes, text in self.all("script") if attributes.get("id") == key]
    return json.loads(found[0]) if found else None
