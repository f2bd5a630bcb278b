"""Pages in headless Chromium, offline: no request, no error, scores of prediction, all widths."""

import importlib.util
import os
import shutil

import numpy as np
import pytest

from mmoe_jax.export import golden
from mmoe_jax.html_report.page import write_report
from mmoe_jax.prediction.predictor import MEAN, Predictor, score_names
from mmoe_jax.training import loop
from tests.html_report.reading import Page

INSTALL = "pip install -r tests/requirements-browser.txt && apt-get install chromium"
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")


def find_chromium():
  """Returns the path of an installed Chromium; None without one."""
  if importlib.util.find_spec("playwright") is None:
    return None
  for name in ("chromium", "chromium-browser", "google-chrome"):
    if path := shutil.which(name):
      return path
  from playwright.sync_api import sync_playwright

  with sync_playwright() as playwright:
    path = playwright.chromium.executable_path
  return path if os.path.exists(path) else None


CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"needs playwright, Chromium: {INSTALL}")


@pytest.fixture(scope="module")
def browser():
  from playwright.sync_api import sync_playwright

  with sync_playwright() as playwright:
    found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
    yield found
    found.close()


@pytest.fixture
def visit(browser):
  """Returns a function that opens a file; at the end, asserts no error and no further request."""
  contexts, problems, requests = [], [], []

  def visit(path, **settings):
    context = browser.new_context(offline=True, **settings)
    contexts.append(context)
    found = context.new_page()
    found.on("console", lambda message: problems.append(message.text))
    found.on("pageerror", lambda error: problems.append(str(error)))
    found.on("request", lambda request: requests.append(request.url))
    found.goto(f"file://{os.path.abspath(path)}")
    return found

  yield visit
  for context in contexts:
    context.close()
  assert problems == []
  assert len(requests) == len(contexts)
  assert all(url.startswith("file://") for url in requests)


def check_scores(visited, run, member=None):
  """Asserts that the page's scores of rows with missing and unknown values are those of predict."""
  predictor = Predictor(run, member)
  rows = golden.make_rows(predictor.schema, 30)
  found = visited.evaluate("rows => rows.map(row => mmoeWhatIf.score(row))", rows)
  scores = predictor.scores(rows)
  for name in score_names(predictor.schema.tasks):
    values = scores[name]
    np.testing.assert_allclose([row["scores"][name] for row in found], values, atol=1e-5)
  return found


def test_scores_in_the_browser_are_those_of_prediction(visit, page, run):
  found = check_scores(visit(page), run)
  assert all(len(gates) == 4 for gates in (row["gates"] for row in found))


def test_the_page_of_a_mean_has_the_range_of_its_members(visit, mean_page, members_with_gates):
  visited = visit(mean_page)
  (first, *_) = check_scores(visited, members_with_gates, MEAN)
  assert first["gates"] is None
  texts = visited.locator(".range").all_text_contents()
  assert len(texts) == len(first["scores"])
  assert all(text.startswith("Members: ") for text in texts)
  visited.get_by_label("price").fill("0.01")
  changed = visited.locator(".range").all_text_contents()
  assert changed != texts


@pytest.mark.slow
@pytest.mark.parametrize(("model", "tasks"), [("ple", "click+rating"), ("esmm", "click+buy")])
def test_scores_of_other_models_are_those_of_prediction(visit, shop, tmp_path, model, tasks):
  config = shop.config(model, tasks)
  loop.train_and_evaluate(config, str(tmp_path / "run"))
  out = str(tmp_path / "page.html")
  write_report(str(tmp_path / "run"), out)
  visited = visit(out)
  found = check_scores(visited, str(tmp_path / "run"))
  assert all((row["gates"] is not None) == (model == "ple") for row in found)
  bars = sum(map(len, found[0]["gates"] or ()))
  assert visited.locator(".gates span").count() == bars


def test_controls_change_what_is_shown(visit, page, run):
  visited = visit(page)
  payload = Page(page).json("what-if-data")
  start = payload["rows"][2]["values"]
  click = visited.locator(".result .value").first
  before = click.text_content()
  assert visited.locator(".change").first.text_content() == "as at the start"
  price, device = visited.get_by_label("price"), visited.get_by_label("device")
  price.fill("0.01")
  device.select_option("(unknown value)")
  visited.get_by_label("tags").fill("red|blue")
  row = {**start, "price": "0.01", "device": "(unknown value)", "tags": ["red", "blue"]}
  expected = Predictor(run).scores([row])["click"][0]
  assert abs(float(click.text_content().rstrip("%")) / 100 - expected) < 1e-3
  changed = set(visited.locator(".field.changed label").all_text_contents())
  assert {"price", "device"} <= changed <= {"price", "device", "tags"}
  price.fill("")
  assert "price must not be missing" in visited.get_by_role("alert").text_content()
  visited.get_by_role("button", name="Back to the start").click()
  assert click.text_content() == before
  assert visited.locator(".problem").is_hidden()
  visited.get_by_role("button", name=payload["rows"][4]["name"]).click()
  assert visited.locator("button[aria-pressed=true]").text_content() == payload["rows"][4]["name"]


@pytest.mark.parametrize("width", [320, 390, 800, 1400])
def test_nothing_is_wider_than_the_screen(visit, page, width):
  visited = visit(page, viewport={"width": width, "height": 800})
  assert visited.evaluate("document.documentElement.scrollWidth") <= width
  small = visited.evaluate(
    "[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width)"
    ".map(s => 11 * s.getBoundingClientRect().width / 360)"
  )
  assert min(small) >= (8.5 if width < 360 else 9.5)  # Pixels of the texts in charts.


def test_dark_mode_and_print_have_readable_colours(visit, page):
  for settings, media in (
    ({"color_scheme": "light"}, "screen"),
    ({"color_scheme": "dark"}, "screen"),
    ({"color_scheme": "dark"}, "print"),
  ):
    visited = visit(page, **settings)
    visited.emulate_media(media=media, color_scheme=settings["color_scheme"])
    for selector in ("p", "h2", ".small", "svg text", "a", "thead th"):
      ratio = visited.evaluate(_CONTRAST, selector)
      assert ratio >= 4.5, (settings, media, selector, ratio)
    is_dark = settings["color_scheme"] == "dark" and media == "screen"
    background = visited.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background != "rgb(255, 255, 255)") == is_dark


_CONTRAST = """
selector => {
  const numbers = (text) => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
  const luminance = (color) => {
    const [r, g, b] = numbers(color).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const element = document.querySelector(selector), style = getComputedStyle(element);
  const front = luminance(element.closest("svg") ? style.fill : style.color);
  const back = luminance(getComputedStyle(document.body).backgroundColor);
  return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
}
"""
