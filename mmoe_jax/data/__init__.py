"""Data: schema, encoding, reading of tables, loading of prepared arrays. No JAX."""

from mmoe_jax.data.encoding import Encoder, encode, needed_columns
from mmoe_jax.data.features import quantiles, to_features
from mmoe_jax.data.loading import SCHEMA_FILE, SPLITS, StoredSplit, load, memory_budget, verify
from mmoe_jax.data.manifest import MANIFEST, write_manifest
from mmoe_jax.data.schema import (
  KINDS,
  TIME_PARTS,
  TRANSFORMS,
  UNKNOWN,
  EncodedRows,
  IdFeature,
  NumericFeature,
  Schema,
  Slice,
  Split,
  Task,
)
from mmoe_jax.data.selection import NUMERIC_FORMS, add_crosses, select
from mmoe_jax.data.shards import Shards, shard_names
from mmoe_jax.data.share import WHOLE, Share
from mmoe_jax.data.storage import (
  FORMAT_VERSION,
  restore_schema,
  save_schema,
  vocabulary_files,
)

__all__ = [
  "FORMAT_VERSION",
  "KINDS",
  "MANIFEST",
  "NUMERIC_FORMS",
  "SCHEMA_FILE",
  "SPLITS",
  "TIME_PARTS",
  "TRANSFORMS",
  "UNKNOWN",
  "WHOLE",
  "EncodedRows",
  "Encoder",
  "IdFeature",
  "NumericFeature",
  "Schema",
  "Shards",
  "Share",
  "Slice",
  "Split",
  "StoredSplit",
  "Task",
  "add_crosses",
  "encode",
  "load",
  "memory_budget",
  "needed_columns",
  "quantiles",
  "restore_schema",
  "save_schema",
  "select",
  "shard_names",
  "to_features",
  "verify",
  "vocabulary_files",
  "write_manifest",
]
