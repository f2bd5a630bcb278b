"""Relay of a process's connection to JAX's coordination service, which the first process runs.

JAX aborts by a stack of C++ as soon as its connection closes, which is when the first process ends.
The relay keeps the connection open, so that the heartbeat can end this process by one line.
"""

import contextlib
import socket
import threading
import time

_RETRY_SECONDS = 0.2
_CONNECT_SECONDS = 10.0


def start(address: str) -> str:
  """Starts a relay to an address, HOST:PORT, in threads; returns its own on this machine."""
  host, _, port = address.rpartition(":")
  upstream = (host.strip("[]"), int(port))
  listener = socket.create_server(("127.0.0.1", 0), backlog=16)
  threading.Thread(target=_accept, args=(listener, upstream), daemon=True).start()
  return f"127.0.0.1:{listener.getsockname()[1]}"


def _accept(listener: socket.socket, upstream: tuple[str, int]) -> None:
  while True:
    connection, _ = listener.accept()
    threading.Thread(target=_relay, args=(connection, upstream), daemon=True).start()


def _relay(connection: socket.socket, upstream: tuple[str, int]) -> None:
  """Connects to upstream, which may start later, and passes bytes on in both directions."""
  while True:
    try:
      server = socket.create_connection(upstream, timeout=_CONNECT_SECONDS)
      break
    except OSError:
      time.sleep(_RETRY_SECONDS)
  server.settimeout(None)
  for each in (connection, server):
    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
  threading.Thread(target=_copy, args=(server, connection), daemon=True).start()
  _copy(connection, server)
  for each in (connection, server):
    each.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
  """Copies bytes until the source closes; the target stays open."""
  with contextlib.suppress(OSError):
    while data := source.recv(1 << 16):
      target.sendall(data)
