"""HTTP interface of the scoring server; see docs/serving.md.

POST /score    JSON {"rows": [{column: value}]}, or an Arrow stream; answers in the same form
POST /reload   loads the model again, from the same path, and swaps it in
GET  /schema   columns of a row, names of the scores, an example
GET  /health   200 when ready
GET  /metrics  Prometheus text
"""

import asyncio
import hmac
import math
import struct
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import prometheus_client as prometheus
import pyarrow as pa
from flatbuffers import encode, packer
from flatbuffers.table import Table
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from mmoe_jax.errors import UserError
from mmoe_jax.serve.batching import Batcher, BusyError
from mmoe_jax.serve.scorer import Scored, Scorer

prometheus.disable_created_metrics()
ARROW = "application/vnd.apache.arrow.stream"


class Limits(NamedTuple):
  """Limits of a server.

  Attributes:
    body_bytes: largest body.
    rows: most rows of a request, and of a batch.
    queue_rows: most rows that wait.
  """

  body_bytes: int
  rows: int
  queue_rows: int


class _Refused(Exception):
  """A request that cannot be answered: HTTP status and reason."""

  def __init__(self, status: int, reason: str):
    super().__init__(reason)
    self.status = status


class Server:
  """State of the server: the model, its queue and its counters."""

  def __init__(self, load: Callable[[], Scorer], limits: Limits, token: str):
    """Loads the model and warms it up.

    Args:
      load: loads the model.
      limits: limits of requests.
      token: token that requests must have; empty for none.
    """
    self._load, self._limits, self._token = load, limits, token
    self._scorer = self._ready()
    self._batcher = Batcher(lambda rows: self._scorer(rows), limits.rows, limits.queue_rows)
    self._reloading = asyncio.Lock()
    self._registry = prometheus.CollectorRegistry()
    counter = lambda name, text, *labels: prometheus.Counter(
      name, text, labels, registry=self._registry
    )
    self._requests = counter("mmoe_requests", "Requests by path and status.", "path", "status")
    self._rows = counter("mmoe_rows", "Rows by result.", "result")
    for result in ("scored", "bad"):  # From the start, as 0.
      self._rows.labels(result)
    self._swaps = counter("mmoe_model_swaps", "Models swapped in.")
    self._seconds = prometheus.Histogram(
      "mmoe_score_seconds",
      "Seconds from the whole body to the answer of /score.",
      registry=self._registry,
      buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
    )
    gauge = prometheus.Gauge("mmoe_waiting_rows", "Rows that wait.", registry=self._registry)
    gauge.set_function(lambda: self._batcher.waiting_rows)

  def app(self) -> Starlette:
    """Returns the ASGI application."""
    routes = [
      ("/score", self._score, "POST"),
      ("/reload", self._reload, "POST"),
      ("/schema", self._schema, "GET"),
      ("/health", self._health, "GET"),
      ("/metrics", self._metrics, "GET"),
    ]
    return Starlette(
      routes=[Route(path, self._guarded(path, f), methods=[m]) for path, f, m in routes]
    )

  def close(self) -> None:
    """Waits for the batch in hand."""
    self._batcher.close()

  def _ready(self) -> Scorer:
    scorer = self._load()
    scorer.warm_up(self._limits.rows)
    return scorer

  def _guarded(self, path: str, handle: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """Returns a handler that checks the token, counts, and answers refusals as JSON."""

    async def handler(request: Request) -> Response:
      try:
        if path != "/health":
          self._check_token(request)
        response = await handle(request)
      except _Refused as error:
        response = _json({"error": str(error)}, error.status)
      except BusyError:
        response = _json({"error": "too many rows wait; try again later"}, 503)
        response.headers["retry-after"] = "1"
      except ClientDisconnect:
        response = _json({"error": "the client has gone"}, 400)
      self._requests.labels(path, str(response.status_code)).inc()
      return response

    return handler

  def _check_token(self, request: Request) -> None:
    given = request.headers.get("authorization", "")
    expected = f"Bearer {self._token}"
    if self._token and not hmac.compare_digest(given.encode(), expected.encode()):
      raise _Refused(401, "needs the header 'Authorization: Bearer TOKEN'")

  async def _body(self, request: Request) -> bytes:
    """Reads the body, which ends at the limit."""
    most = self._limits.body_bytes
    parts, size = [], 0
    async for part in request.stream():
      size += len(part)
      if size > most:
        raise _Refused(413, f"the body has more than {most:,} bytes")
      parts.append(part)
    return b"".join(parts)

  async def _score(self, request: Request) -> Response:
    body = await self._body(request)
    start = time.perf_counter()
    is_arrow = request.headers.get("content-type", "").split(";")[0].strip() == ARROW
    if is_arrow:
      table = _parse_arrow(body)
      self._check_rows(table.num_rows)
      try:
        call = lambda: self._scorer.score_arrow(table)
        scored = await self._batcher.run(call, table.num_rows)
      except UserError as error:
        raise _Refused(422, str(error)) from error
    else:
      rows = _parse_json(body)
      self._check_rows(len(rows))
      scored = await self._batcher.score(rows)
    self._seconds.observe(time.perf_counter() - start)
    bad = len(scored.errors)
    self._rows.labels("scored").inc(len(next(iter(scored.scores.values()))) - bad)
    self._rows.labels("bad").inc(bad)
    return _arrow_response(scored) if is_arrow else _json_response(scored)

  def _check_rows(self, count: int) -> None:
    if count == 0:
      raise _Refused(422, "no rows")
    if count > self._limits.rows:
      raise _Refused(413, f"{count:,} rows: must be at most {self._limits.rows:,}")

  async def _reload(self, request: Request) -> Response:
    """Swaps a new model in; requests are answered by the one before until it is warm."""
    del request
    async with self._reloading:
      loop = asyncio.get_running_loop()
      try:
        self._scorer = await loop.run_in_executor(None, self._ready)
      except (UserError, OSError) as error:
        raise _Refused(409, f"the model before stays: {error}") from error
    self._swaps.inc()
    return _json({"model": self._scorer.path, "scores": self._scorer.names}, 200)

  async def _schema(self, request: Request) -> Response:
    del request
    scorer = self._scorer
    example = scorer.example(1)[0]
    return _json({"columns": scorer.columns, "scores": scorer.names, "example": example}, 200)

  async def _health(self, request: Request) -> Response:
    del request
    return _json({"status": "ready"}, 200)

  async def _metrics(self, request: Request) -> Response:
    del request
    text = prometheus.generate_latest(self._registry)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _parse_json(body: bytes) -> list[Any]:
  try:
    content = msgspec.json.decode(body)
  except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
    raise _Refused(400, f"the body is not JSON: {error}") from error
  if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
    raise _Refused(422, 'the body must be an object {"rows": [{"column": value}]}')
  return content["rows"]


def _parse_arrow(body: bytes) -> pa.Table:
  try:
    if _is_compressed(body):
      raise _Refused(415, "the Arrow stream is compressed, which has no bound on memory")
    with pa.ipc.open_stream(body) as reader:
      table = reader.read_all()
    table.validate(full=True)
  except (pa.ArrowException, OSError, ValueError, IndexError, struct.error) as error:
    raise _Refused(400, f"the body is not an Arrow stream: {error}") from error
  return table


def _is_compressed(body: bytes) -> bool:
  """Returns whether a batch of an Arrow stream is compressed, without reading its arrays.

  Columnar Format, https://arrow.apache.org/docs/format/Columnar.html: the header of a Message is
  field 2, `compression` of a RecordBatch field 3, the batch of a DictionaryBatch field 1.
  """
  for message in pa.ipc.MessageReader.open_stream(body):
    if message.type not in ("record batch", "dictionary"):
      continue
    content = message.metadata.to_pybytes()
    header = _field(Table(content, encode.Get(packer.uoffset, content, 0)), 2)
    if header is not None and message.type == "dictionary":
      header = _field(header, 1)
    if header is not None and _field(header, 3) is not None:
      return True
  return False


def _field(table: Table, number: int) -> Table | None:
  """Returns a field of a FlatBuffers table that is a table; None if it is absent."""
  offset = table.Offset(4 + 2 * number)
  if not offset:
    return None
  return Table(table.Bytes, table.Indirect(table.Pos + offset))


def _json(content: Any, status: int) -> Response:
  return Response(msgspec.json.encode(content), status, media_type="application/json")


def _json_response(scored: Scored) -> Response:
  """Answers with scores, null for bad rows, and what is wrong with these."""
  scores = {
    name: [None if math.isnan(value) else value for value in values.tolist()]
    for name, values in scored.scores.items()
  }
  errors = [
    {"row": row, "column": column, "reason": reason}
    for row, (column, reason) in sorted(scored.errors.items())
  ]
  return _json({"scores": scores, "errors": errors}, 422 if errors else 200)


def _arrow_response(scored: Scored) -> Response:
  """Answers with the columns of scores, null for bad rows, and `error`."""
  columns = {name: pa.array(v, from_pandas=True) for name, v in scored.scores.items()}
  rows = len(next(iter(scored.scores.values())))
  texts: list[str | None] = [None] * rows
  for row, (column, reason) in scored.errors.items():
    texts[row] = f"column '{column}': {reason}" if column else reason
  table = pa.table({**columns, "error": pa.array(texts, pa.string())})
  sink = pa.BufferOutputStream()
  with pa.ipc.new_stream(sink, table.schema) as writer:
    writer.write_table(table)
  status = 422 if scored.errors else 200
  return Response(sink.getvalue().to_pybytes(), status, media_type=ARROW)
