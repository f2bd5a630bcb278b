"""What-if: the page's encoder and scores against those of prediction, without a browser."""

import numpy as np
import pytest

from mmoe_jax import data
from mmoe_jax.export import golden
from mmoe_jax.html_report import raw_rows
from mmoe_jax.prediction.predictor import Predictor
from tests.html_report import node
from tests.html_report.reading import Page

_CODE = """
const whatIf = startWhatIf(input.data, null);
console.log(JSON.stringify(input.rows.map((row) => {
  try {
    const {ids, numeric} = whatIf.encode(row);
    return {ids: [...ids], numeric: [...numeric], ...whatIf.score(row)};
  } catch (error) {
    return {error: error.message};
  }
})));
"""


@pytest.fixture(scope="module")
def payload(page):
  return Page(page).json("what-if-data")


@pytest.fixture(scope="module")
def predictor(run):
  return Predictor(run)


def in_page(payload, rows):
  return node.run(_CODE, {"data": payload, "rows": rows})


@node.needs_node
def test_scores_of_rows_with_missing_and_unknown_values_are_those_of_prediction(payload, predictor):
  rows = golden.make_rows(predictor.schema, 60)
  times = ["2026-02-28T23:59", "2026-02-28 23:59:30+01:00", "1767225600", "2026-03", "2026"]
  rows += [{**rows[0], "time": time} for time in times]
  rows.append({**rows[0], "user": "ünïcode 8 bytes ok", "device": raw_rows.UNKNOWN_TEXT})
  found = in_page(payload, rows)
  features = data.to_features(predictor.schema, predictor.encoder(rows))
  np.testing.assert_array_equal([row["ids"] for row in found], features["ids"])
  numeric = [row["numeric"] for row in found]
  np.testing.assert_allclose(numeric, features["numeric"], atol=1e-6, rtol=1e-6)
  for name, values in predictor.scores(rows).items():
    np.testing.assert_allclose([row["scores"][name] for row in found], values, atol=1e-5)
  gates = np.array([row["gates"] for row in found])
  assert gates.shape == (len(rows), len(predictor.schema.tasks), 8)
  np.testing.assert_allclose(gates.sum(-1), 1, atol=1e-6)


@node.needs_node
def test_example_rows_have_the_scores_of_their_prepared_rows(payload, predictor, shop):
  rows = [row["values"] for row in payload["rows"]]
  found = in_page(payload, rows)
  numbers = [int(row["name"].split()[-1].replace(",", "")) - 1 for row in payload["rows"]]
  stored = data.Shards(
    shop.path("data"), "test", data.restore_schema(shop.path("data", "schema.json"))
  )
  full = data.restore_schema(shop.path("data", "schema.json"))
  ids = stored.read("ids", [(n, n + 1) for n in numbers])
  for feature in predictor.schema.id_features:
    if feature.kind not in ("cross", "hash"):  # Hashed values cannot be restored.
      here = predictor.schema.id_columns[feature.name]
      expected = ids[:, full.id_columns[feature.name]]
      np.testing.assert_array_equal([r["ids"][here] for r in found], expected, feature.name)


@node.needs_node
def test_a_value_that_cannot_be_encoded_is_named(payload):
  (row,) = [payload["rows"][0]["values"]]
  bad = [{"price": "-1"}, {"price": "many"}, {"price": None}, {"time": "yesterday"}]
  messages = [r["error"] for r in in_page(payload, [{**row, **change} for change in bad])]
  assert messages[0] == "price: '-1' is not a number of at least 0"
  assert messages[1] == "price: 'many' is not a number of at least 0"
  assert messages[2].startswith("price must not be missing")
  assert messages[3] == "time: 'yesterday' is not a time"


def test_rows_are_restored_from_prepared_data(predictor, shop):
  rows, lost = raw_rows.restore_rows(shop.path("data"), predictor.schema, range(40))
  assert lost == ["user"]
  full = data.restore_schema(shop.path("data", "schema.json"))
  stored = data.Shards(shop.path("data"), "test", full)
  encoded = data.encode(full, [{**row, "country": "DE"} for row in rows])
  ids = stored.read("ids", [(0, 40)])
  for feature in full.id_features:
    if feature.name not in ("user", "country") and feature.kind != "cross":
      here = full.id_columns[feature.name]
      np.testing.assert_array_equal(encoded.ids[:, here], ids[:, here], feature.name)
  np.testing.assert_array_equal(encoded.numbers, stored.read("numbers", [(0, 40)]))
