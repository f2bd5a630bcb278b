"""Times in raw rows: training and the encoder of exports read the same texts alike."""

import numpy as np
import pandas as pd
import pytest

from mmoe_jax.data.columns import to_table
from mmoe_jax.data.times import times_of
from mmoe_jax.errors import UserError
from mmoe_jax.export import encoder

TIMES = {
  "2026": "2026-01-01T00:00:00",
  "2026-03": "2026-03-01T00:00:00",
  "2026-01-31": "2026-01-31T00:00:00",
  "2026-01-31 18": "2026-01-31T18:00:00",
  "2026-01-31T18:30": "2026-01-31T18:30:00",
  "2026-01-31 18:30:59.999999999": "2026-01-31T18:30:59",
  "1969-12-31T23:59:59.5": "1969-12-31T23:59:59",
  "20260131T183000Z": "2026-01-31T18:30:00",
  "20260131 18:30": "2026-01-31T18:30:00",
  "2026-01-31T18:30:00+0230": "2026-01-31T16:00:00",
  "2026-01-31T18:30:00-02": "2026-01-31T20:30:00",
  "9999-12-31T23:59:59.999999999": "9999-12-31T23:59:59",
  "86399": "1970-01-01T23:59:59",
  "-86400": "1969-12-31T00:00:00",
  "-62135596800": "0001-01-01T00:00:00",
  "253402300799": "9999-12-31T23:59:59",
}
# pandas reads the first six as times.
OTHERS = ["now", "today", "-1", "-999", "2026/01/31", "2026-1-1", "1", "12345678901234567890"]
OTHERS += ["2026-13", "2026-02-30", "2026-01-31T24:00", "2026-01-31T18:30:60", "2026-W01", "0000"]
OTHERS += ["253402300800", "-62135596801", "2026-01-31T18:30+25:00", "NaT"]


def table_of(texts):
  return to_table(pd.DataFrame({"time": texts}, dtype=object), "rows")


def test_both_encoders_read_times_alike():
  expected = np.array(list(TIMES.values()), "datetime64[s]")
  np.testing.assert_array_equal(times_of(table_of(list(TIMES)), "time"), expected)
  found = [encoder._parse_time(text).replace(microsecond=0) for text in TIMES]
  np.testing.assert_array_equal(np.array(found, "datetime64[s]"), expected)
  assert np.isnat(times_of(table_of(["2026", None]), "time")).tolist() == [False, True]


@pytest.mark.parametrize("text", OTHERS)
def test_both_encoders_refuse_other_texts(text):
  with pytest.raises(UserError, match="is not a time; must be in ISO 8601"):
    times_of(table_of(["2026-01-31", text]), "time")
  with pytest.raises((ValueError, OverflowError)):
    encoder._parse_time(text)
