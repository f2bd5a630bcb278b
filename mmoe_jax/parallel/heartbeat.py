"""Heartbeats between the processes of a job: a lost one ends all others, by one line that names it.

The first process listens, the others connect to it, and all send a beat at regular intervals. A
process is lost if its connection closes without a farewell, or if it sends nothing for a time
limit. Whichever process notices this passes it on; all print the same line and exit.

JAX has heartbeats as well, which end processes by a stack of C++; its limits are longer here.
"""

import contextlib
import json
import os
import selectors
import socket
import threading
import time
from typing import Any

from mmoe_jax.errors import UserError

LOST = 69  # EX_UNAVAILABLE of sysexits.h: another process was lost; a restart resumes.
_GRACE_SECONDS = 1.0  # In which a process that fails for the same reason prints its own line.
_MAX_MESSAGE = 1 << 16
_JOIN_SECONDS = 60.0  # Until all processes have connected, at least.


class Peer:
  """Connection to another process.

  Attributes:
    name: process, host and process id, for messages.
    process: its number in the job; None until it has introduced itself.
    heard: time of its last message.
    has_left: whether it has finished, so that it may close the connection.
  """

  def __init__(self, connection: socket.socket, now: float):
    """Takes a connection."""
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self.connection, self.heard = connection, now
    self.process: int | None = None
    self.name = "an unknown process"
    self.has_left = False
    self._buffer = b""

  def send(self, message: dict[str, Any]) -> None:
    """Sends a message, unless the connection is closed or its buffer is full."""
    with contextlib.suppress(OSError):
      self.connection.sendall(json.dumps(message).encode() + b"\n")

  def receive(self) -> list[dict[str, Any]] | None:
    """Returns new messages; None if the connection is closed, or was not made by this module."""
    try:
      data = self.connection.recv(_MAX_MESSAGE)
    except BlockingIOError:
      return []
    except OSError:
      return None
    *lines, self._buffer = (self._buffer + data).split(b"\n")
    if not data or len(self._buffer) > _MAX_MESSAGE:
      return None
    try:
      messages = [json.loads(line) for line in lines]
    except ValueError:
      return None
    return messages if all(isinstance(each, dict) for each in messages) else None


class Heartbeat:
  """Heartbeat of one process of a job, in a thread that ends the process if another one is lost."""

  def __init__(self, process: int, processes: int, limit_s: float, token: str):
    """Takes what all processes agree on.

    Args:
      process: number of this process; 0 listens.
      processes: number of processes.
      limit_s: seconds without a beat after which a process is lost.
      token: secret of the job, which refuses other connections.
    """
    self._process, self._processes, self._token = process, processes, token
    self._interval_s = min(2.0, limit_s / 5)
    self._limit_s = limit_s
    self._peers: list[Peer] = []
    self._joined: set[int] = set()
    self._listener: socket.socket | None = None
    self._selector = selectors.DefaultSelector()
    self._is_closed = threading.Event()
    self._last_word = threading.Lock()  # Taken by the thread that prints the last line.
    self._stderr = os.dup(2)  # Standard error may be redirected for a while.

  def listen(self) -> int:
    """Listens for the other processes; returns the port."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    self._listener = socket.create_server(
      ("", 0), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=self._processes
    )
    self._listener.setblocking(False)
    self._selector.register(self._listener, selectors.EVENT_READ)
    return self._listener.getsockname()[1]

  def connect(self, host: str, port: int) -> None:
    """Connects to the first process.

    Raises:
      UserError: if it cannot be reached.
    """
    try:
      connection = socket.create_connection((host, port), timeout=self._limit_s)
    except OSError as error:
      raise UserError(
        f"cannot reach process 0 at {host}:{port} ({error}); open all ports between the hosts"
      ) from error
    self._add(connection)

  def start(self) -> None:
    """Starts the thread."""
    self._started = self._tick = self._beaten = time.monotonic()
    for peer in self._peers:
      peer.send(self._hello())
    self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
    self._thread.start()

  def leave(self) -> None:
    """Announces that this process has finished; it still watches the others until it ends."""
    for peer in list(self._peers):
      peer.send({"kind": "bye"})

  def close(self) -> None:
    """Ends the thread and closes the connections."""
    self._is_closed.set()
    self._thread.join()
    for peer in list(self._peers):
      self._remove(peer)
    if self._listener is not None:
      self._listener.close()
    self._selector.close()
    os.close(self._stderr)

  def fail(self, line: str, status: int) -> None:
    """Announces that this process ends with an error, which ends the others, too.

    Does not return if another process is lost, of which the error may be a consequence.

    Args:
      line: the error.
      status: exit status of the other processes.
    """
    time.sleep(min(0.5, self._interval_s))
    self._last_word.acquire()
    text = f"{self._name()} ended with an error: {line}"
    for peer in list(self._peers):
      peer.send({"kind": "end", "line": text, "status": status})

  def await_loss(self) -> None:
    """Waits until a process that is lost must have been noticed, which ends this one."""
    time.sleep(self._limit_s + 2 * self._interval_s + _GRACE_SECONDS)

  def _name(self) -> str:
    return f"process {self._process} ({socket.gethostname()}, pid {os.getpid()})"

  def _hello(self) -> dict[str, Any]:
    return {
      "kind": "hello",
      "token": self._token,
      "process": self._process,
      "name": self._name(),
    }

  def _add(self, connection: socket.socket) -> None:
    peer = Peer(connection, time.monotonic())
    self._peers.append(peer)
    self._selector.register(connection, selectors.EVENT_READ, peer)

  def _run(self) -> None:
    while not self._is_closed.is_set():
      events = self._selector.select(self._interval_s / 2)
      now = time.monotonic()
      # A process that was suspended has heard nothing; that is not the others' silence.
      late_s = now - self._tick - 2 * self._interval_s
      if late_s > 0:
        self._started += late_s
        for peer in self._peers:
          peer.heard += late_s
      self._tick = now
      for key, _ in events:
        if key.data is None:
          with contextlib.suppress(OSError):
            self._add(self._listener.accept()[0])
        else:
          self._read(key.data, now)
      if now - self._beaten >= self._interval_s:
        self._beaten = now
        for peer in self._peers:
          if peer.process is not None:
            peer.send({"kind": "beat"})
      self._check(now)

  def _read(self, peer: Peer, now: float) -> None:
    messages = peer.receive()
    if messages is None:
      self._remove(peer)
      if peer.process is not None and not peer.has_left:
        self._end(f"{peer.name} ended without notice", LOST)
      return
    for message in messages:
      kind = message.get("kind")
      if peer.process is None and (kind != "hello" or message.get("token") != self._token):
        self._remove(peer)
        return
      peer.heard = now
      if kind == "hello":
        peer.process, peer.name = int(message["process"]), str(message["name"])
        self._joined.add(peer.process)
        if self._process == 0:
          peer.send(self._hello())
      elif kind == "bye":
        peer.has_left = True
      elif kind == "end":
        self._end(str(message["line"]), int(message["status"]), except_for=peer)

  def _remove(self, peer: Peer) -> None:
    self._selector.unregister(peer.connection)
    self._peers.remove(peer)
    peer.connection.close()

  def _check(self, now: float) -> None:
    """Ends the process if another one is silent, or has never connected."""
    for peer in list(self._peers):
      if now - peer.heard < self._limit_s - self._interval_s or peer.has_left:
        continue
      if peer.process is None and self._process == 0:
        self._remove(peer)
      else:
        limit = f"MMOE_HEARTBEAT_SECONDS = {self._limit_s:g}"
        self._end(f"{peer.name} does not answer ({limit})", LOST)
    is_late = now - self._started > max(self._limit_s, _JOIN_SECONDS)
    missing = set(range(1, self._processes)) - self._joined if self._process == 0 else set()
    if is_late and missing:
      self._end(f"process {min(missing)} has not connected", LOST)

  def _end(self, text: str, status: int, except_for: Peer | None = None) -> None:
    """Prints the last line of this process, passes it on, and exits."""
    for peer in self._peers:
      if peer is not except_for:
        peer.send({"kind": "end", "line": text, "status": status})
    if status != LOST:
      time.sleep(_GRACE_SECONDS)
    if not self._last_word.acquire(blocking=False):
      return  # The main thread is ending the process.
    advice = "; all processes end, and the same command resumes" if status == LOST else ""
    with contextlib.suppress(OSError):
      start = "\n" if os.isatty(self._stderr) else ""  # A progress bar may be in the line.
      os.write(self._stderr, f"{start}error: {text}{advice}\n".encode())
    os._exit(status)
