"""Web server: listens, announces its address, and stops without losing accepted requests."""

import contextlib
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from mmoe_jax.errors import UserError

_STOP_SECONDS = 30  # For requests in hand, after a signal.


def run(app: Any, host: str, port: int) -> None:
  """Serves an ASGI application until SIGTERM or SIGINT; then answers what it has accepted.

  Raises:
    UserError: if it cannot listen there.
  """
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    listening = socket.create_server((host, port), family=family, backlog=2048)
  except (OSError, OverflowError) as error:
    raise UserError(f"cannot listen on {host}:{port}: {error}; use another --port") from error
  with listening:
    port = listening.getsockname()[1]
    config = uvicorn.Config(
      app, log_level="warning", access_log=False, timeout_graceful_shutdown=_STOP_SECONDS
    )
    _Server(config, f"http://{f'[{host}]' if ':' in host else host}:{port}").run([listening])


class _Server(uvicorn.Server):
  """Server that prints its address when ready, and ends with status 0 after a signal."""

  def __init__(self, config: uvicorn.Config, address: str):
    super().__init__(config)
    self._address = address

  async def startup(self, sockets: list[socket.socket] | None = None) -> None:
    """See uvicorn.Server."""
    await super().startup(sockets)
    print(f"ready: {self._address}", flush=True)

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    """Stops on signals; uvicorn would raise them again at the end."""
    before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)
