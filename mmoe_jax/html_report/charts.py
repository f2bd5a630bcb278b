"""Charts as inline SVG, with a title and a description for readers who do not see them.

Colours are classes of style.css, so that they follow dark mode and print. Charts are 360 units
wide, about the width of a phone, so that their texts stay readable there.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmoe_jax.html_report.markup import Html, escape
from mmoe_jax.html_report.scales import Scale, fixed

WIDTH = 360
_RIGHT, _TOP, _BOTTOM = 12, 10, 40
_LABEL = 132  # Width of the texts left of bars.
_LONGEST = 18  # Characters of such a text.
_MOST_MARKS = 30  # More points are drawn as a line alone.


class Series(NamedTuple):
  """Line of a chart.

  Attributes:
    x: values of the horizontal axis.
    y: values of the vertical axis; NaN is left out.
    style: number of its colour, dash and mark.
    low: lower end of its band, if any.
    high: upper end.
    faint: whether it is context for other lines.
    line: whether points are joined.
  """

  x: Sequence[float]
  y: Sequence[float]
  style: int = 0
  low: Sequence[float] | None = None
  high: Sequence[float] | None = None
  faint: bool = False
  line: bool = True


class Bar(NamedTuple):
  """Bar of a chart: its name, value, half width of an interval, and text of the value."""

  name: str
  value: float
  half: float
  text: str


def picture(title: str, description: str, height: float, *content: Any, class_: str = "") -> Html:
  """Returns an SVG with a text alternative."""
  name = escape(title)
  return Html(
    f'<svg class="{class_}" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{name}">'
    f"<title>{name}</title><desc>{escape(description)}</desc>{''.join(content)}</svg>"
  )


def line_chart(
  title: str,
  description: str,
  series: Sequence[Series],
  x: Scale,
  y: Scale,
  labels: tuple[str, str],
  mark: tuple[float, str] | None = None,
  diagonal: bool = False,
  height: int = 230,
) -> Html:
  """Draws lines with bands.

  Args:
    title: name of the chart, for its text alternative.
    description: what it shows, in a sentence.
    series: the lines, in the order of drawing.
    x: scale of the horizontal axis.
    y: scale of the vertical axis.
    labels: names of the two axes.
    mark: place on the horizontal axis of a vertical line, and its text.
    diagonal: whether to draw a line between the lower left and the upper right corner.
    height: height in units.
  """
  right, bottom = WIDTH - _RIGHT, height - _BOTTOM
  left = 12 + 6.5 * max(map(len, y.texts)) + (14 if labels[1] else 0)
  at_x = lambda v: left + x.place(v) * (right - left)
  at_y = lambda v: bottom - y.place(v) * (bottom - _TOP)
  parts = _axes(x, y, labels, at_x, at_y, (left, right, bottom))
  if diagonal:
    parts.append(_line("context", left, bottom, right, _TOP))
  if mark is not None:
    place = at_x(mark[0])
    anchor, shift = ("end", -4) if place > WIDTH / 2 else ("start", 4)
    parts.append(_line("context", place, _TOP, place, bottom))
    # Where lines do not cover it, most likely.
    is_low = np.nanmean([y.place(float(s.y[-1])) for s in series]) > 0.5
    height_of = bottom - 6 if is_low else _TOP + 10
    parts.append(_text(place + shift, height_of, mark[1], anchor, "note"))
  for each in series:
    parts += _draw_series(each, at_x, at_y)
  many = sum(not each.faint for each in series) > 1
  return picture(title, description, height, *parts, class_="many" if many else "")


def _axes(
  x: Scale,
  y: Scale,
  labels: tuple[str, str],
  at_x: Callable[[float], float],
  at_y: Callable[[float], float],
  box: tuple[float, float, float],
) -> list[str]:
  """Draws axes with ticks and labels in a box of left, right and lower end."""
  left, right, bottom = box
  parts = []
  for tick, text in zip(y.ticks, y.texts, strict=True):
    place = at_y(tick)
    parts.append(_line("grid", left, place, right, place))
    parts.append(_text(left - 6, place + 3.5, text, "end"))
  last = -100.0
  for tick, text in zip(x.ticks, x.texts, strict=True):
    place = at_x(tick)
    parts.append(_line("tick", place, bottom, place, bottom + 4))
    half = 3.5 * len(text)
    if place - half > last + 4:  # A text that would overlap is left out.
      anchor = "end" if place + half > WIDTH else "middle"
      parts.append(_text(min(place, WIDTH), bottom + 16, text, anchor))
      last = place + half
  parts.append(_line("axis", left, bottom, right, bottom))
  parts.append(_text((left + right) / 2, bottom + 33, labels[0], class_="label"))
  height = (bottom + _TOP) / 2
  parts.append(
    f'<text class="label" transform="translate(9 {height}) rotate(-90)" text-anchor="middle">'
    f"{escape(labels[1])}</text>"
  )
  return parts


def _draw_series(series: Series, at_x: Any, at_y: Any) -> list[str]:
  x, y = (np.asarray(v, float) for v in (series.x, series.y))
  known = np.isfinite(x) & np.isfinite(y)
  style = f"s{series.style % 6}{' faint' if series.faint else ''}"
  parts = []
  if series.low is not None and series.high is not None:
    low, high = (np.asarray(v, float)[known] for v in (series.low, series.high))
    there = [f"{at_x(a):.1f},{at_y(b):.1f}" for a, b in zip(x[known], high, strict=True)]
    back = [f"{at_x(a):.1f},{at_y(b):.1f}" for a, b in zip(x[known], low, strict=True)]
    parts.append(f'<polygon class="band {style}" points="{" ".join(there + back[::-1])}"/>')
  points = [(at_x(a), at_y(b)) for a, b in zip(x[known], y[known], strict=True)]
  if series.line and len(points) > 1:
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    parts.append(f'<polyline class="line {style}" points="{path}"/>')
  if not series.line or (len(points) <= _MOST_MARKS and not series.faint):
    parts += [_mark(series.style, style, a, b) for a, b in points]
  return parts


def _mark(number: int, style: str, x: float, y: float) -> str:
  """Draws a mark; its shape tells series apart without colour."""
  shapes = (
    f'<circle class="mark {style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>',
    f'<rect class="mark {style}" x="{x - 2.8:.1f}" y="{y - 2.8:.1f}" width="5.6" height="5.6"/>',
    f'<path class="mark {style}" d="M{x:.1f} {y - 3.8:.1f}l3.8 3.8l-3.8 3.8l-3.8-3.8z"/>',
    f'<path class="mark {style}" d="M{x:.1f} {y - 3.6:.1f}l3.6 6.2h-7.2z"/>',
    f'<path class="mark {style}" d="M{x:.1f} {y + 3.6:.1f}l3.6-6.2h-7.2z"/>',
    f'<circle class="mark hollow {style}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>',
  )
  return shapes[number % 6]


def bar_chart(
  title: str, description: str, bars: Sequence[Bar], x: Scale, label: str, style: int = 0
) -> Html:
  """Draws horizontal bars with intervals, each with its name and the text of its value."""
  row, value_width = 22, 58
  bottom = _TOP + row * len(bars)
  right = WIDTH - value_width
  at_x = lambda v: _LABEL + min(1.0, max(0.0, x.place(v))) * (right - _LABEL)
  zero = at_x(0)
  parts = []
  parts += [_line("grid", at_x(tick), _TOP, at_x(tick), bottom) for tick in x.ticks]
  step = max(1, len(x.ticks) // 3)
  for tick, text in zip(x.ticks[::step], x.texts[::step], strict=True):
    parts.append(_text(at_x(tick), bottom + 15, text))
  for i, bar in enumerate(bars):
    middle = _TOP + row * i + row / 2
    end = at_x(bar.value)
    parts.append(_text(_LABEL - 8, middle + 4, shorten(bar.name), "end"))
    start, width = min(zero, end), abs(end - zero)
    parts.append(
      f'<rect class="fill s{style}" x="{start:.1f}" y="{middle - 6}" width="{max(width, 0.5):.1f}" '
      f'height="12" rx="1.5"><title>{escape(bar.name)}: {bar.text}</title></rect>'
    )
    if bar.half > 0:
      ends = at_x(bar.value - bar.half), at_x(bar.value + bar.half)
      parts.append(_line("whisker", ends[0], middle, ends[1], middle))
    parts.append(_text(WIDTH, middle + 4, bar.text, "end", "value"))
  parts.append(_line("axis", zero, _TOP, zero, bottom))
  parts.append(_text((_LABEL + right) / 2, bottom + 31, label, class_="label"))
  return picture(title, description, bottom + 36, *parts)


def heat_map(
  title: str,
  description: str,
  rows: Sequence[str],
  columns: Sequence[str],
  values: np.ndarray,
  label: str,
  style: int = 0,
) -> Html:
  """Draws values from 0 on as depths of one colour, with numbers where they fit."""
  row = 22
  cell = (WIDTH - _LABEL) / len(columns)
  bottom = 20 + row * len(rows)
  top = max(float(np.nanmax(values)), 1e-12)
  parts = []
  step = max(1, round(16 / cell)) if cell < 16 else 1
  for j, name in list(enumerate(columns))[::step]:
    place = _LABEL + cell * (j + 0.5)
    parts.append(_text(place, 14, name))
  for i, name in enumerate(rows):
    y = 20 + row * i
    parts.append(_text(_LABEL - 8, y + 15, shorten(name), "end"))
    for j, value in enumerate(values[i]):
      share = float(value) / top
      x = _LABEL + cell * j
      parts.append(
        f'<rect class="cell s{style}" x="{x + 0.5:.1f}" y="{y + 0.5}" width="{cell - 1:.1f}" '
        f'height="{row - 1}" fill-opacity="{0.06 + 0.94 * share:.2f}"/>'
      )
      if cell >= 24:
        contrast = "on-dark" if share > 0.6 else "on-light"
        text = _short_share(float(value))
        parts.append(_text(x + cell / 2, y + 15, text, class_=contrast))
  parts.append(_text((_LABEL + WIDTH) / 2, bottom + 16, label, class_="label"))
  return picture(title, description, bottom + 22, *parts)


def _line(class_: str, x1: float, y1: float, x2: float, y2: float) -> str:
  return f'<line class="{class_}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", class_: str = "") -> str:
  name = f' class="{class_}"' if class_ else ""
  return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def shorten(text: str) -> str:
  """Returns a text that fits left of a bar; the middle of a long one is left out."""
  if len(text) <= _LONGEST:
    return text
  return f"{text[: _LONGEST - 9]}…{text[-8:]}"


def epochs_scale(last: int) -> Scale:
  """Returns the scale of epochs 1 to `last`."""
  step = max(1, -(-last // 8))
  ticks = sorted({1, *range(step, last + 1, step)})
  if len(ticks) > 2 and ticks[1] - ticks[0] < step / 2:
    ticks.pop(1)
  return fixed(1, max(last, 2), ticks, [str(t) for t in ticks])


def _short_share(value: float) -> str:
  return f"{value:.2f}".removeprefix("0") if value < 0.995 else "1"
