"""Scoring server: answers, refusals, swaps, stops; the long form is benchmarks/serving.py."""

import asyncio
import http.client
import json
import os
import shutil
import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import serving
from mmoe_jax.errors import UserError
from mmoe_jax.export import bundle
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.serve.batching import Batcher, BusyError
from mmoe_jax.serve.scorer import Scored, Scorer
from mmoe_jax.training import loop
from tests import shop_rows
from tests.commands import environment, run

TOKEN = "a token of the test"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """Returns the work directory of a run on the shop's rows."""
  from configs import tabular
  from data_prep import preparation, splitting
  from data_prep.spec import parse_spec

  folder = tmp_path_factory.mktemp("shop")
  path = shop_rows.write_csv(shop_rows.make(800, 5), str(folder / "shop.csv"))
  spec = parse_spec(shop_rows.SPEC, "shop.toml")
  groups = splitting.splitters_of(spec.split, {"input": [path]})
  preparation.prepare(spec, groups, str(folder / "data"))
  config = tabular.get_config(f"mmoe,data={folder}/data,tasks=click+buy")
  config.train.epochs, config.train.devices = 1, 1
  loop.train_and_evaluate(config, str(folder / "run"))
  return str(folder / "run")


@pytest.fixture(scope="module")
def service(workdir, tmp_path_factory):
  """Starts a server that requires a token, on a copy of the run that may change."""
  model = str(tmp_path_factory.mktemp("served") / "model")
  shutil.copytree(workdir, model)
  with pytest.MonkeyPatch.context() as patch:
    for name, value in environment(SERVE_TOKEN=TOKEN).items():
      patch.setenv(name, value)
    found = serving.Service(model, "--token_variable=SERVE_TOKEN", "--max_rows=64")
  found.model = model
  yield found
  assert found.stop() == 0


@pytest.fixture(scope="module")
def rows(workdir):
  return Scorer(workdir).example(40)


def ask(service, method, path, body=None, kind="application/json", token=TOKEN):
  """Returns status and body of an answer."""
  connection = service.connect()
  headers = {"content-type": kind} | ({"authorization": f"Bearer {token}"} if token else {})
  connection.request(method, path, body, headers)
  response = connection.getresponse()
  content = response.read()
  connection.close()
  return response.status, content


def score(service, rows):
  status, content = ask(service, "POST", "/score", serving.body_of(rows))
  return status, json.loads(content)


def test_scores_are_those_of_prediction(service, workdir, rows):
  status, answer = score(service, rows)
  assert (status, answer["errors"]) == (200, [])
  for name, values in Predictor(workdir).scores(rows).items():
    np.testing.assert_allclose(answer["scores"][name], values, atol=1e-7)


def test_arrow_is_answered_in_arrow(service, workdir):
  frame = shop_rows.make(30, 9)
  table = pa.Table.from_pandas(frame, preserve_index=False)
  status, content = ask(service, "POST", "/score", serving.arrow_of(table), serving._ARROW)
  assert status == 200
  answer = pa.ipc.open_stream(content).read_all()
  for name, values in Predictor(workdir).scores(table).items():
    np.testing.assert_allclose(answer[name].to_numpy(), values, atol=1e-7)
  assert answer["error"].null_count == 30
  bad = table.set_column(table.column_names.index("price"), "price", pa.array([-1.0] * 30))
  status, content = ask(service, "POST", "/score", serving.arrow_of(bad), serving._ARROW)
  assert status == 422
  answer = pa.ipc.open_stream(content).read_all()
  assert answer["click"].null_count == 30
  assert answer["error"][0].as_py() == "column 'price': '-1.0' is not a number >= 0"
  less = serving.arrow_of(table.drop_columns(["price"]))
  status, content = ask(service, "POST", "/score", less, serving._ARROW)
  assert (status, json.loads(content)["error"]) == (422, "column 'price' is missing")


def test_compressed_arrow_is_refused(service):
  table = pa.table({"x": ["a"] * 60}).append_column("y", pa.array(["b"] * 60).dictionary_encode())
  for compression in ("zstd", "lz4"):
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
      writer.write_table(table)
    body = sink.getvalue().to_pybytes()
    status, content = ask(service, "POST", "/score", body, serving._ARROW)
    assert (status, "compressed" in json.loads(content)["error"]) == (415, True)
  status, content = ask(service, "POST", "/score", serving.arrow_of(table), serving._ARROW)
  assert (status, "is missing" in json.loads(content)["error"]) == (422, True)


def test_bad_rows_are_named_and_others_scored(service, rows):
  partial = {name: value for name, value in rows[2].items() if name != "age"}
  bad = [{**rows[1], "price": "abc"}, partial, 5, {**rows[0], "country": ["DE"]}]
  status, answer = score(service, [rows[0], *bad, rows[3]])
  assert status == 422
  assert [(e["row"], e["column"]) for e in answer["errors"]] == [
    (1, "price"),
    (2, "age"),
    (3, ""),
    (4, "country"),
  ]
  assert answer["errors"][0]["reason"] == "'abc' is not a number"
  _, good = score(service, [rows[0], rows[3]])
  for name, values in answer["scores"].items():
    assert values[1:5] == [None] * 4
    np.testing.assert_allclose([values[0], values[5]], good["scores"][name], atol=1e-7)


@pytest.mark.parametrize(
  ("body", "kind", "status", "message"),
  [
    (b"", "application/json", 400, "the body is not JSON"),
    (b'{"rows": [', "application/json", 400, "the body is not JSON"),
    (b"[]", "application/json", 422, "the body must be an object"),
    (b'{"rows": []}', "application/json", 422, "no rows"),
    (b'{"rows": [' + b"{}," * 64 + b"{}]}", "application/json", 413, "65 rows: must be at most 64"),
    (b"x" * (17 << 20), "application/json", 413, "the body has more than 16,777,216 bytes"),
    (b"ARROW1", serving._ARROW, 400, "the body is not an Arrow stream"),
  ],
)
def test_wrong_bodies_are_refused(service, body, kind, status, message):
  try:
    found, content = ask(service, "POST", "/score", body, kind)
  except (BrokenPipeError, ConnectionResetError):  # Refused before the body was sent.
    assert len(body) > 1 << 20
    return
  assert found == status
  assert message in json.loads(content)["error"]


def test_requests_need_the_token_and_a_known_path(service, rows):
  for token in ("", "another"):
    status, content = ask(service, "POST", "/score", serving.body_of(rows[:1]), token=token)
    assert (status, "Bearer TOKEN" in json.loads(content)["error"]) == (401, True)
    assert ask(service, "GET", "/schema", token=token)[0] == 401
    assert ask(service, "GET", "/health", token=token) == (200, b'{"status":"ready"}')
  assert ask(service, "GET", "/score")[0] == 405
  assert ask(service, "GET", "/other")[0] == 404


def test_schema_gives_a_row_that_can_be_scored_and_metrics_count(service):
  schema = json.loads(ask(service, "GET", "/schema")[1])
  assert schema["scores"] == ["click", "buy"]
  assert set(schema["example"]) == set(schema["columns"])

  def count():
    text = ask(service, "GET", "/metrics")[1].decode()
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}

  before = count()
  assert score(service, [schema["example"]] * 3)[0] == 200
  after = count()
  for name, more in (('mmoe_rows_total{result="scored"}', 3), ("mmoe_score_seconds_count", 1)):
    assert after[name] == before[name] + more
  assert after["mmoe_waiting_rows"] == 0


def test_a_model_is_swapped_under_load_without_a_lost_request(service, workdir, rows):
  result, over = [], threading.Event()
  headers = {"authorization": f"Bearer {TOKEN}"}

  def client():
    connection = service.connect()
    while not over.is_set():
      connection.request("POST", "/score", serving.body_of(rows[:2]), headers)
      response = connection.getresponse()
      response.read()
      result.append(response.status)
    connection.close()

  threads = [threading.Thread(target=client) for _ in range(2)]
  for thread in threads:
    thread.start()
  assert [ask(service, "POST", "/reload")[0] for _ in range(2)] == [200, 200]
  os.rename(os.path.join(service.model, "checkpoints"), os.path.join(service.model, "gone"))
  status, content = ask(service, "POST", "/reload")
  assert status == 409
  assert "the model before stays: " in json.loads(content)["error"]
  os.rename(os.path.join(service.model, "gone"), os.path.join(service.model, "checkpoints"))
  over.set()
  for thread in threads:
    thread.join()
  assert len(result) > 4
  assert set(result) == {200}


def test_a_stopping_server_answers_what_it_has_accepted(workdir, rows, monkeypatch):
  for name, value in environment().items():
    monkeypatch.setenv(name, value)
  service = serving.Service(workdir)
  statuses, started = [], threading.Barrier(5)

  def client():
    connection = service.connect()
    connection.connect()
    body = serving.body_of(rows * 40)
    connection.putrequest("POST", "/score")
    connection.putheader("content-length", str(len(body)))
    connection.endheaders(body[:1000])
    started.wait()
    time.sleep(0.5)  # The signal comes between two halves of the body.
    connection.send(body[1000:])
    response = connection.getresponse()
    response.read()
    statuses.append(response.status)
    connection.close()

  threads = [threading.Thread(target=client) for _ in range(4)]
  for thread in threads:
    thread.start()
  started.wait()
  time.sleep(0.2)
  assert service.stop() == 0
  for thread in threads:
    thread.join()
  assert statuses == [200] * 4
  with pytest.raises((OSError, http.client.HTTPException)):
    service.connect().connect()


def test_an_export_is_served_with_the_same_answers(workdir, rows, tmp_path):
  bundle.export(Predictor(workdir), str(tmp_path / "out"), ["stablehlo"])
  run_scorer, exported = Scorer(workdir), Scorer(str(tmp_path / "out"))
  bad = {**rows[1], "price": -5}
  a, b = run_scorer([rows[0], bad, rows[2]]), exported([rows[0], bad, rows[2]])
  assert a.errors.keys() == b.errors.keys() == {1}
  assert a.errors[1] == b.errors[1] == ("price", "'-5' is not a number >= 0")
  for name in a.scores:
    np.testing.assert_allclose(a.scores[name], b.scores[name], atol=1e-6)
  assert exported.example(2) != exported.example(1)
  with pytest.raises(UserError, match="it has no members"):
    Scorer(str(tmp_path / "out"), "0")


def test_requests_that_wait_are_scored_together_and_too_many_refused():
  batches, gate = [], threading.Event()

  def slow(rows):
    gate.wait(10)
    batches.append(list(rows))
    values = np.array(rows, float)
    return Scored({"x": values}, {i: ("", "odd") for i, v in enumerate(rows) if v % 2})

  async def ask_all():
    batcher = Batcher(slow, most_rows=5, queue_rows=8)
    tasks = [asyncio.create_task(batcher.score([0, 1]))]
    await asyncio.sleep(0.1)  # It is being scored, four others wait.
    tasks += [asyncio.create_task(batcher.score([i, i + 1])) for i in range(2, 10, 2)]
    await asyncio.sleep(0.1)
    with pytest.raises(BusyError):
      await batcher.score([100])
    gate.set()
    results = await asyncio.gather(*tasks)
    batcher.close()
    return results

  results = asyncio.run(ask_all())
  assert batches == [[0, 1], [2, 3, 4, 5], [6, 7, 8, 9]]
  for i, result in enumerate(results):
    assert result.scores["x"].tolist() == [2 * i, 2 * i + 1]
    assert result.errors == {1: ("", "odd")}


def test_a_failing_batch_does_not_end_the_queue():
  def score_or_fail(rows):
    if rows[0] < 0:
      raise RuntimeError("a fault")
    return Scored({"x": np.array(rows, float)}, {})

  async def ask_all():
    batcher = Batcher(score_or_fail, 1, 10)
    with pytest.raises(RuntimeError, match="a fault"):
      await batcher.score([-1])
    result = await batcher.score([3])
    batcher.close()
    return result

  assert asyncio.run(ask_all()).scores["x"].tolist() == [3]


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("--port=99999",), "--port=99999: must be from 0 to 65535"),
    (("--max_rows=0",), "--max_rows=0: must be at least 1"),
    (("--token_variable=NOT_SET",), "--token_variable=NOT_SET: is not set, or empty"),
    (("--member=0",), "is not a population"),
  ],
)
def test_wrong_flags_are_one_line(workdir, flags, message):
  done = run("mmoe_jax.serve", "--model", workdir, *flags)
  assert done.returncode == 2
  assert len(done.stderr.splitlines()) == 1
  assert message in done.stderr
