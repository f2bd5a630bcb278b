"""Heartbeats between the processes of a job: who is lost, and who is not."""

import os
import socket
import time

import pytest

from mmoe_jax.errors import UserError
from mmoe_jax.parallel import heartbeat, relay

LIMIT = 1.5
TOKEN = "secret of the test"
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def ends(monkeypatch):
  """Replaces the exit of a process by the end of the heartbeat's thread; yields statuses."""
  found = []

  def end(status):
    found.append(status)
    raise SystemExit

  monkeypatch.setattr(heartbeat.os, "_exit", end)
  monkeypatch.setattr(heartbeat, "_GRACE_SECONDS", 0.0)
  return found


@pytest.fixture
def start(ends):
  """Returns a function that starts heartbeats of processes, here in one, which all connect."""
  beats = []

  def start_all(count):
    first = heartbeat.Heartbeat(0, count, LIMIT, TOKEN)
    port = first.listen()
    beats.extend([first, *(heartbeat.Heartbeat(i, count, LIMIT, TOKEN) for i in range(1, count))])
    for other in beats[1:]:
      other.connect("127.0.0.1", port)
    for beat in beats:
      beat.start()
    wait_for(lambda: first._joined == set(range(1, count)))
    wait_for(lambda: all(beat._peers[0].process == 0 for beat in beats[1:]))
    return port, beats

  yield start_all
  for beat in beats:  # Before any connection is closed.
    beat._is_closed.set()
    beat._thread.join()
  for beat in beats:
    beat.close()


def wait_for(condition, seconds=10.0):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def cut(beat):
  """Closes the connections of a process, as the system does when it ends."""
  for peer in beat._peers:
    peer.connection.shutdown(socket.SHUT_RDWR)


def test_a_process_that_ends_without_notice_ends_all_by_a_line_that_names_it(start, ends, capfd):
  _, (_, second, _) = start(3)
  cut(second)
  wait_for(lambda: len(ends) == 3)
  assert set(ends) == {heartbeat.LOST}
  name = f"process 1 ({socket.gethostname()}, pid {os.getpid()})"
  lines = capfd.readouterr().err.splitlines()
  line = f"error: {name} ended without notice; all processes end, and the same command resumes"
  assert lines.count(line) == 2  # The second names the first, whose end of the connection closed.


@pytest.mark.parametrize("silent", [0, 1])
def test_a_silent_process_ends_the_others_within_the_limit(silent, start, ends, capfd, monkeypatch):
  beats = start(3)[1]
  start_time = time.monotonic()
  monkeypatch.setattr(beats[silent], "_read", lambda *_: None)
  monkeypatch.setattr(beats[silent], "_check", lambda *_: None)
  monkeypatch.setattr(beats[silent], "_interval_s", 1e6)
  wait_for(lambda: len(ends) == 2)
  assert time.monotonic() - start_time < 2 * LIMIT
  lines = capfd.readouterr().err.splitlines()
  assert len(lines) == 2
  for line in lines:
    assert line.startswith(f"error: process {silent} (")
    assert "does not answer (MMOE_HEARTBEAT_SECONDS = 1.5)" in line


def test_a_process_that_has_left_is_not_lost(start, ends):
  _, beats = start(3)
  second = beats.pop(1)
  second.leave()
  second.close()
  time.sleep(1.2 * LIMIT)
  assert ends == []


def test_an_error_of_one_process_is_the_line_of_the_others(start, ends, capfd):
  second = start(3)[1][1]
  second.fail("/data: no such folder", 2)
  wait_for(lambda: len(ends) == 2)
  assert ends == [2, 2]
  lines = capfd.readouterr().err.splitlines()
  assert len(lines) == 2
  for line in lines:
    assert line.startswith("error: process 1 (")
    assert line.endswith("ended with an error: /data: no such folder")


def test_a_suspended_process_does_not_take_the_others_for_lost(start, ends, monkeypatch):
  beats = start(2)[1]
  real, offset = time.monotonic, [0.0]
  monkeypatch.setattr(heartbeat.time, "monotonic", lambda: real() + offset[0])
  offset[0] = 100.0
  time.sleep(LIMIT)
  assert ends == []
  cut(beats[1])
  wait_for(lambda: ends)


def test_connections_of_others_are_closed_and_end_nothing(start, ends):
  port, _ = start(2)
  for message in (
    b"GET / HTTP/1.1\n",
    b'{"kind": "hello", "token": "guess", "process": 1}\n',
    b"\0" * 9,
  ):
    with socket.create_connection(("127.0.0.1", port)) as stranger:
      stranger.sendall(message)
      stranger.settimeout(3 * LIMIT)
      assert stranger.recv(1) == b""
  assert ends == []


def test_a_first_process_that_cannot_be_reached_is_an_error():
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
  with pytest.raises(UserError, match="cannot reach process 0 at localhost"):
    heartbeat.Heartbeat(1, 2, LIMIT, TOKEN).connect("localhost", port)


def test_the_relay_keeps_a_connection_open_when_the_other_end_is_gone():
  with socket.create_server(("127.0.0.1", 0)) as server:
    address = relay.start(f"127.0.0.1:{server.getsockname()[1]}")
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as client:
      upstream = server.accept()[0]
      client.sendall(b"question")
      assert upstream.recv(100) == b"question"
      upstream.sendall(b"answer")
      assert client.recv(100) == b"answer"
      upstream.close()
      client.settimeout(0.3)
      with pytest.raises(TimeoutError):
        client.recv(1)
