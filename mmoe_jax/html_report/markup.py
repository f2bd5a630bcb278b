"""HTML of the page's parts; every text is escaped here, on its way into the page."""

import html
import json
from collections.abc import Sequence
from typing import Any

from mmoe_jax.files import nan_to_none


class Html(str):
  """Text that is HTML already."""

  __slots__ = ()


def escape(text: Any) -> Html:
  """Returns a text as HTML; HTML stays as it is."""
  return text if isinstance(text, Html) else Html(html.escape(str(text), quote=True))


def join(parts: Sequence[Any], between: str = "") -> Html:
  """Returns parts one after another, escaped."""
  return Html(between.join(escape(part) for part in parts))


def element(name: str, *content: Any, **attributes: Any) -> Html:
  """Returns an element.

  Args:
    name: name of the tag.
    content: texts and HTML.
    attributes: its attributes; `class_` is class and `_` in others is `-`. None leaves one out,
      True writes it without a value.
  """
  words = [name]
  for key, value in attributes.items():
    key = key.rstrip("_").replace("_", "-")
    if value is True:
      words.append(key)
    elif value is not None and value is not False:
      words.append(f'{key}="{escape(value)}"')
  return Html(f"<{' '.join(words)}>{join(content)}</{name}>")


def paragraph(*content: Any, class_: str | None = None) -> Html:
  """Returns a paragraph."""
  return element("p", *content, class_=class_)


def with_code(text: str) -> Html:
  """Returns a text whose parts between backticks are code."""
  parts = text.split("`")
  return join([element("code", part) if i % 2 else part for i, part in enumerate(parts)])


def table(
  header: Sequence[Any],
  rows: Sequence[Sequence[Any]],
  caption: str = "",
  text_columns: int = 1,
) -> Html:
  """Returns a table that scrolls sideways where it is wider than the page.

  Args:
    header: names of the columns.
    rows: cells of each row.
    caption: text that says what the table shows.
    text_columns: number of leading columns that are aligned to the left; the first of them names
      its row.
  """
  kind = lambda i: None if i < text_columns else "number"
  head = [element("th", cell, scope="col", class_=kind(i)) for i, cell in enumerate(header)]
  body = []
  for row in rows:
    cells = [element("th", row[0], scope="row")]
    cells += [element("td", cell, class_=kind(i)) for i, cell in enumerate(row[1:], 1)]
    body.append(element("tr", *cells))
  parts = [element("caption", caption)] if caption else []
  parts += [element("thead", element("tr", *head)), element("tbody", *body)]
  return element(
    "div",
    element("table", *parts),
    class_="scroll",
    tabindex="0",
    role="region",
    aria_label=caption or str(header[0]),
  )


def details(summary: Any, *content: Any) -> Html:
  """Returns content that opens on request."""
  return element("details", element("summary", summary), *content)


def figure(title: str, note: Any, chart: Html, legend: Html | str = "", data: Any = "") -> Html:
  """Returns a chart with its title, a sentence on how to read it, a legend and its numbers."""
  caption = [element("strong", title), *([element("span", note)] if note else [])]
  numbers = [details("Numbers of this chart", data)] if data else []
  return element("figure", element("figcaption", *caption), legend, chart, *numbers)


def legend(labels: Sequence[str], first: int = 0, kind: str = "line") -> Html:
  """Returns names of series with their keys, a `line` or a `dot`, as charts.py draws them."""
  items = [
    element("li", element("i", class_=f"key {kind} s{(first + i) % 6}", aria_hidden="true"), label)
    for i, label in enumerate(labels)
  ]
  return element("ul", *items, class_="legend")


def section(key: str, title: str, *content: Any) -> Html:
  """Returns a section of the page with its heading."""
  heading = element("h2", title, id=f"{key}-title")
  return element("section", heading, *content, id=key, aria_labelledby=f"{key}-title")


def script_data(key: str, value: Any) -> Html:
  """Returns JSON for scripts of the page.

  `<` is written as an escape, so that no text ends the element; `&` and the two line separators
  of Unicode likewise.
  """
  text = json.dumps(nan_to_none(value), ensure_ascii=False, separators=(",", ":"))
  for character in "<>&\u2028\u2029":
    text = text.replace(character, f"\\u{ord(character):04x}")
  return Html(f'<script type="application/json" id="{escape(key)}">{text}</script>')
