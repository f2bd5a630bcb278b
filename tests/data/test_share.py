"""Shares of the prepared files that several hosts read, which are threads here."""

import concurrent.futures
import threading

import numpy as np
import pytest

from mmoe_jax import data
from mmoe_jax.data import manifest, shards

ARGUMENTS = (("income_50k",), "demo", "both", (), ("sex#education", "race#age_bins"))


def on_hosts(count, function):
  """Returns function(share) of every host; each calls it at the same time."""
  barrier, arrays = threading.Barrier(count, timeout=30), [None] * count

  def host(index):
    def gather(array):
      arrays[index] = array
      barrier.wait()
      rows = np.concatenate(arrays)
      barrier.wait()
      return rows

    return function(data.Share(index, count, gather))

  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    return list(pool.map(host, range(count)))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("budget", [float("inf"), 1.0])
def test_hosts_that_read_their_shares_have_the_data_of_one(count, budget, prepared, monkeypatch):
  monkeypatch.setattr(shards, "CHUNK", 100)
  schema, splits = data.load(prepared, *ARGUMENTS, budget=budget)
  read = set()
  real = shards._StoredArray.read

  def record(self, parts, out):
    if "train" in self._path and self._path.endswith("ids.npy"):
      rows = range(*parts[0][:2])
      assert not read & set(rows)  # No other host has read them.
      read.update(rows)
    real(self, parts, out)

  monkeypatch.setattr(shards._StoredArray, "read", record)
  found = on_hosts(count, lambda share: data.load(prepared, *ARGUMENTS, budget=budget, share=share))
  assert len(read) == len(splits["train"])
  monkeypatch.undo()
  for host_schema, host_splits in found:
    assert host_schema == schema
    for name, split in host_splits.items():
      ranges = [(0, len(split))]
      rows, expected = (
        s.read(ranges) if isinstance(s, data.StoredSplit) else s for s in (split, splits[name])
      )
      for field in ("ids", "numeric"):
        np.testing.assert_array_equal(rows.features[field], expected.features[field])
        assert rows.features[field].dtype == expected.features[field].dtype
      np.testing.assert_array_equal(rows.labels, expected.labels)
      np.testing.assert_array_equal(rows.weights, expected.weights)
      for condition, of_rows in expected.slices.items():
        np.testing.assert_array_equal(rows.slices[condition], of_rows)


def test_each_file_is_verified_by_one_host_and_all_have_the_digest(prepared, monkeypatch):
  expected = data.verify(prepared)
  hashed = []
  real = manifest.digests.of_file
  monkeypatch.setattr(manifest.digests, "of_file", lambda path: hashed.append(path) or real(path))
  assert on_hosts(2, lambda share: data.verify(prepared, share)) == [expected, expected]
  assert len(hashed) == len(set(hashed)) == 16  # Three splits of five arrays, and the schema.


def test_the_shares_of_hosts_are_all_rows():
  shares = [data.Share(index, 2, lambda array: array) for index in range(2)]
  ranges = [[own for _, own in share.rows(5, 2)] for share in shares]
  assert ranges == [[(0, 2), (4, 5)], [(2, 4), (5, 5)]]
  assert [own for _, own in data.WHOLE.rows(5, 2)] == [(0, 2), (2, 4), (4, 5)]
