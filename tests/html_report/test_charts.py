"""Charts, scales and markup: places, text alternatives, escaping."""

import re

import numpy as np
import pytest

from mmoe_jax.html_report import charts, markup, numbers, scales


@pytest.mark.parametrize(
  ("low", "high", "texts"),
  [
    (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    (0.9943, 0.9949, ["0.9942", "0.9944", "0.9946", "0.9948", "0.9950"]),
    (-3, 12, ["\u22125", "0", "5", "10", "15"]),
    (0, 40_000, ["0", "10,000", "20,000", "30,000", "40,000"]),
    (5.0, 5.0, ["4.7", "4.8", "4.9", "5.0", "5.1", "5.2", "5.3"]),
  ],
)
def test_linear_scales_have_round_ticks_around_the_values(low, high, texts):
  scale = scales.linear(low, high)
  assert list(scale.texts) == texts
  assert 0 <= scale.place(low) <= scale.place(high) <= 1
  assert [round(scale.place(scale.ticks[i])) for i in (0, -1)] == [0, 1]


def test_logarithmic_scales_end_at_round_numbers():
  scale = scales.log(0.0011, 0.019)
  assert list(scale.texts) == ["0.001", "0.002", "0.005", "0.01", "0.02"]
  np.testing.assert_allclose(scale.place(0.001 * 20**0.5), 0.5)
  assert len(scales.log(1e-9, 1e3).texts) <= 13
  assert scales.log(0.5, 0.5).place(0.5) == 0


def test_log_odds_scales_hold_both_ends_and_clip_what_lies_beyond():
  scale = scales.log_odds(0.002, 0.97)
  assert list(scale.texts) == ["0.1%", "1%", "10%", "50%", "90%", "99%"]
  assert (scale.place(0.0), scale.place(1.0)) == (0, 1)
  symmetric = scales.log_odds(0.01, 0.99)
  assert symmetric.place(0.5) == pytest.approx(0.5)
  assert symmetric.place(0.1) == pytest.approx(1 - symmetric.place(0.9))
  assert scales.log_odds(1e-9, 1 - 1e-12).texts[0] == "0.01%"


def test_epochs_have_few_ticks():
  for last in (1, 2, 12, 97, 1000):
    scale = charts.epochs_scale(last)
    assert scale.ticks[0] == 1
    assert len(scale.ticks) <= 10


def points(chart, class_):
  (found,) = re.findall(rf'<polyline class="{class_}" points="([^"]*)"', chart)
  return np.array([list(map(float, pair.split(","))) for pair in found.split()])


def test_a_line_lies_where_its_values_are_and_leaves_out_nan():
  x = scales.fixed(0, 4, [0, 2, 4], ["0", "2", "4"])
  y = scales.fixed(0, 1, [0, 1], ["0", "1"])
  series = charts.Series([0, 1, 2, 4], [0.0, np.nan, 0.5, 1.0], 0)
  chart = charts.line_chart("Title <1>", "A & B", [series], x, y, ("x", "y"))
  drawn = points(chart, "line s0")
  assert len(drawn) == 3
  np.testing.assert_allclose(drawn[1], (drawn[0] + drawn[2]) / 2, atol=0.1)
  assert drawn[0][1] > drawn[2][1]  # Upwards is smaller in SVG.
  assert 'aria-label="Title &lt;1&gt;"' in chart
  assert "<desc>A &amp; B</desc>" in chart
  assert chart.count('class="mark s0"') == 3
  assert 'class="many"' not in chart


def test_bars_have_lengths_in_proportion_and_negative_ones_end_at_zero():
  bars = [charts.Bar("a", 0.4, 0.1, "+0.4"), charts.Bar("b<", -0.2, 0.0, "-0.2")]
  scale = scales.fixed(-0.4, 0.4, [-0.4, 0, 0.4], ["", "", ""])
  chart = charts.bar_chart("Title", "Text", bars, scale, "label")
  found = re.findall(r'<rect class="fill s0" x="([^"]*)" y="[^"]*" width="([^"]*)"', chart)
  (x1, width1), (x2, width2) = [tuple(map(float, pair)) for pair in found]
  assert width1 == pytest.approx(2 * width2, abs=0.2)
  assert x2 + width2 == pytest.approx(x1, abs=0.2)
  assert chart.count('class="whisker"') == 1
  assert "b&lt;" in chart
  assert "b<" not in chart.replace("b&lt;", "")


def test_heat_maps_are_darkest_at_the_largest_value():
  values = np.array([[0.1, 0.9], [0.5, 0.5]])
  chart = charts.heat_map("Title", "Text", ["r", "s"], ["0", "1"], values, "expert")
  depths = list(map(float, re.findall(r'fill-opacity="([^"]*)"', chart)))
  assert depths[1] == 1.0
  assert depths[0] < depths[2] == depths[3] < depths[1]
  assert [text in chart for text in (">.10<", ">.90<", ">.50<")] == [True] * 3
  many = charts.heat_map("Title", "Text", ["r"], [str(e) for e in range(64)], np.eye(64)[:1], "x")
  assert ">.10<" not in many


def test_long_names_keep_both_ends():
  assert charts.shorten("short") == "short"
  assert charts.shorten("a very long name of a value") == "a very lo… a value"


def test_elements_escape_texts_and_keep_html():
  inner = markup.element("b", "<&>")
  assert markup.element("p", inner, '"', class_="x", hidden=True, id=None) == (
    '<p class="x" hidden><b>&lt;&amp;&gt;</b>&quot;</p>'
  )
  assert markup.with_code("Try `--a=<1>` now") == "Try <code>--a=&lt;1&gt;</code> now"


def test_data_for_scripts_cannot_end_its_element():
  text = markup.script_data("key", {"a": "</script><!--\u2028&", "b": float("nan")})
  assert text == (
    '<script type="application/json" id="key">'
    '{"a":"\\u003c/script\\u003e\\u003c!--\\u2028\\u0026","b":null}</script>'
  )


@pytest.mark.parametrize(
  ("metric", "name"),
  [
    ("auc", "AUC"),
    ("auc_16_and_over", "AUC, rows 16 and over"),
    ("log_loss_weighted", "log loss, weighted"),
    ("pcoc_weighted_german", "predicted / observed, weighted, rows german"),
    ("other", "other"),
  ],
)
def test_metrics_have_names_for_people(metric, name):
  assert numbers.metric_name(metric) == name


def test_numbers_have_texts():
  assert numbers.change(-0.00001) == "0.0000"
  assert numbers.change(-0.5, 1) == "\u22120.5"
  assert numbers.text(None) == numbers.text(float("nan")) == "\u2013"
  assert numbers.setting((1, 0.5)) == "(1, 0.5)"
  assert numbers.sentence(["a", "b", "c"]) == "a, b and c"
