"""Hostile bodies sent to the scoring server: scores as the reference's, or a refusal as JSON."""

import asyncio
import gc
import json
import math
import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmoe_jax.serve.app import ARROW, Limits, Server
from mmoe_jax.serve.scorer import Scorer
from tests import shop_rows
from tests.hostile_input.faults import (
  JSON_VALUES,
  fuzz,
  limited,
  mutate,
  mutate_tree,
)
from tests.hostile_input.test_tables import RAW, assert_scored_as

_BODY = 1 << 20
_ROWS = 64


class Asked:
  """The server in this process, asked as a web server would."""

  def __init__(self, path: str):
    self._loop = asyncio.new_event_loop()
    scorer = Scorer(path)
    scorer.warm_up = lambda most_rows: None
    self.server = Server(lambda: scorer, Limits(_BODY, _ROWS, 1000), "")
    self._app = self.server.app()

  def __call__(self, body: bytes, kind: str, path: str = "/score") -> tuple[int, bytes]:
    sent = []

    async def receive():
      return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
      sent.append(message)

    headers = [(b"content-type", kind.encode())]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": ""}
    with limited():
      self._loop.run_until_complete(self._app(scope, receive, send))
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])

  def close(self):
    self.server.close()
    self._loop.close()


@pytest.fixture(scope="module")
def ask(shop):
  asked = Asked(f"{shop}/run")
  yield asked
  asked.close()


@pytest.fixture(scope="module")
def ask_export(exported):
  asked = Asked(exported)
  yield asked
  asked.close()


@pytest.fixture(scope="module")
def rows():
  frame = shop_rows.make(3, 4)
  frame["time"] = frame["time"].astype(str)
  return json.loads(frame[list(RAW)].to_json(orient="records"))


def assert_answer(status, content, sent, reference, predictor) -> None:
  """Checks an answer: every row has the reference's score, or a reason."""
  answer = json.loads(content)
  if "error" in answer:
    assert status in (400, 413, 415, 422)
    assert "Traceback" not in answer["error"]
    return
  bad = {error["row"]: error["reason"] for error in answer["errors"]}
  assert status == (422 if bad else 200)
  good = [i for i in range(len(sent)) if i not in bad]
  for values in answer["scores"].values():
    assert len(values) == len(sent)
    assert all(values[i] is None for i in bad)
    assert all(math.isfinite(values[i]) for i in good)
  if good:
    scored = {task: [values[i] for i in good] for task, values in answer["scores"].items()}
    assert_scored_as(reference, predictor, scored, [sent[i] for i in good])


@pytest.mark.parametrize("of", ["run", "export"])
@fuzz(12)
@given(draw=st.data())
def test_hostile_json_is_scored_as_the_reference_does(
  request, rows, reference, predictor, of, draw
):
  ask = request.getfixturevalue("ask" if of == "run" else "ask_export")
  content = mutate_tree({"rows": rows}, draw.draw)
  body = json.dumps(content).encode()
  status, answer = ask(body, "application/json")
  # As the server reads it: JSON has one kind of number.
  sent = content.get("rows")
  assert_answer(status, answer, sent if isinstance(sent, list) else [], reference, predictor)


@pytest.mark.parametrize("of", ["run", "export"])
@fuzz(8)
@given(draw=st.data())
def test_hostile_values_spoil_their_row_only(request, rows, reference, predictor, of, draw):
  ask = request.getfixturevalue("ask" if of == "run" else "ask_export")
  sent = json.loads(json.dumps(rows))
  for column in draw.draw(st.lists(st.sampled_from(RAW), min_size=1, max_size=3)):
    sent[1][column] = draw.draw(JSON_VALUES)
  status, answer = ask(json.dumps({"rows": sent}).encode(), "application/json")
  assert_answer(status, answer, sent, reference, predictor)
  scores = json.loads(answer)["scores"]
  assert all(values[0] is not None and values[2] is not None for values in scores.values())


def arrow_of(table) -> bytes:
  sink = pa.BufferOutputStream()
  with pa.ipc.new_stream(sink, table.schema) as writer:
    writer.write_table(table)
  return sink.getvalue().to_pybytes()


@fuzz(20)
@given(rng=st.randoms(use_true_random=False), is_arrow=st.booleans())
def test_damaged_bodies_are_answered(ask, rows, rng, is_arrow):
  table = pa.Table.from_pandas(shop_rows.make(3, 4)[list(RAW)], preserve_index=False)
  body = arrow_of(table) if is_arrow else json.dumps({"rows": rows}).encode()
  kinds = [ARROW, "application/json"] if rng.random() < 0.1 else [ARROW if is_arrow else "json"]
  status, content = ask(mutate(body, rng), rng.choice(kinds))
  assert status in (200, 400, 413, 415, 422)
  assert content
  status, _ = ask(json.dumps({"rows": rows}).encode(), "application/json")
  assert status == 200  # It still works.


def repeated(column: pa.DataType, value: str, count: int) -> pa.Array:
  """Returns an array of one long value that is stored once and counts many times."""
  if pa.types.is_dictionary(column):
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))
  if pa.types.is_run_end_encoded(column):
    return pa.RunEndEncodedArray.from_arrays(pa.array([count], pa.int32()), pa.array([value]))
  if pa.types.is_list_view(column):
    items = pa.array(value.split("|"))
    return pa.ListViewArray.from_arrays(
      pa.array([0] * count, pa.int32()), pa.array([len(items)] * count, pa.int32()), items
    )
  view = pa.array([value], pa.string_view())
  buffers = view.buffers()
  return pa.Array.from_buffers(
    pa.string_view(), count, [None, pa.py_buffer(buffers[1].to_pybytes() * count), *buffers[2:]]
  )


SHARED = [pa.dictionary(pa.int32(), pa.string()), pa.run_end_encoded(pa.int32(), pa.string())]
SHARED = [*SHARED, pa.list_view(pa.string()), pa.string_view()]


def resident() -> int:
  with open("/proc/self/statm", encoding="ascii") as file:
    return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
@pytest.mark.parametrize("kind", SHARED, ids=str)
@pytest.mark.parametrize("column", ["country", "tags", "user", "age", "time"])
def test_values_that_are_stored_once_take_no_memory_for_each_row(ask, ask_export, kind, column):
  frame = shop_rows.make(_ROWS, 4)[list(RAW)]
  table = pa.Table.from_pandas(frame, preserve_index=False)
  values = repeated(kind, "|".join(["red"] * 100_000), _ROWS)
  body = arrow_of(table.set_column(table.column_names.index(column), column, values))
  assert len(body) < _BODY
  for each in (ask, ask_export):
    gc.collect()
    before = resident()
    status, content = each(body, ARROW)
    assert status in (200, 400, 413, 415, 422)
    assert resident() - before < 300 << 20
    assert len(content) < 1 << 16


def null_lists(size: int) -> pa.Array:
  kind = pa.list_(pa.null(), size)
  return pa.Array.from_buffers(kind, 3, [None], children=[pa.nulls(3 * size)])


@pytest.mark.parametrize(
  "values",
  [
    pa.nulls(3),
    null_lists(2**24),
    pa.array([[[["a"]]]] * 3),
    pa.array([{"a": 1}] * 3),
    pa.array([b"\xff"] * 3),
    pa.array([2**63] * 3, pa.uint64()),
    pa.array([float("nan"), float("inf"), -0.0]),
    pa.array([10**37] * 3, pa.decimal128(38, 0)),
    pa.array([2**62] * 3, pa.timestamp("s")),
    pa.array([-(2**62)] * 3, pa.timestamp("us")),
    pa.array([2**30] * 3, pa.date32()),
    pa.array([1] * 3, pa.duration("ns")),
    pa.array([True, None, False]),
    pa.nulls(3, pa.int8()),
  ],
  ids=str,
)
def test_columns_of_absurd_types_are_answered(ask, ask_export, values):
  frame = shop_rows.make(3, 4)[list(RAW)]
  table = pa.Table.from_pandas(frame, preserve_index=False)
  for column in RAW:
    body = arrow_of(table.set_column(table.column_names.index(column), column, values))
    for each in (ask, ask_export):
      status, content = each(body, ARROW)
      assert status in (200, 400, 413, 415, 422)
      if status == 200:
        answer = pa.ipc.open_stream(content).read_all()
        assert np.isfinite(answer["click"].to_numpy()).all()


@pytest.mark.parametrize(
  "body",
  [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"rows": {}}',
    b'{"rows": []}',
    b'{"rows": [[]]}',
    b'{"rows": [null]}',
    b'{"rows": [1e999]}',
    b'{"rows": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"rows": ' + b'[{"a": ' * 5000 + b"1" + b"}]" * 5000 + b"}",
    b'{"rows": [{"\\ud800": "\\ud800"}]}',
    b'{"rows": [' + b"{}," * 100_000 + b"{}]}",
    b"\xff\xfe",
    b'{"rows": [' + b"9" * 100_000 + b"]}",
    b" " * (_BODY + 1),
  ],
  ids=lambda body: repr(body[:12]),
)
def test_bodies_that_nobody_means_are_refused(ask, ask_export, body):
  for each in (ask, ask_export):
    for kind in ("application/json", ARROW, ""):
      status, content = each(body, kind)
      assert status in (400, 413, 422)
      answer = json.loads(content)
      assert answer.get("error") or answer["errors"]
