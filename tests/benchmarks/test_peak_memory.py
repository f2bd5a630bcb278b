"""Peak memory of a command and its processes."""

import sys

from benchmarks import peak_memory


def test_memory_of_children_is_counted():
  hold = "import time; a = bytearray(100 << 20); time.sleep(1)"
  both = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}]); {hold}"
  status, seconds, peak = peak_memory.measure([sys.executable, "-c", both])
  assert status == 0
  assert seconds > 2
  assert 100 << 20 < peak < 400 << 20
  assert peak_memory.measure([sys.executable, "-c", "raise SystemExit(3)"])[0] == 3
