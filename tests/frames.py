"""Raw files as DataFrames of texts, indexed by line."""

from collections.abc import Sequence

import pandas as pd

from mmoe_jax.data import tables


def read_frame(path: str, columns: Sequence[str] = ()) -> pd.DataFrame:
  """Reads a file; see tables.read_table."""
  table = tables.read_table(path, columns)
  texts = {name: table.factor(name) for name in table.columns}
  frame = {
    name: pd.Categorical.from_codes(factor.codes, factor.texts()) for name, factor in texts.items()
  }
  return pd.DataFrame(frame, index=pd.Index(table.lines))
