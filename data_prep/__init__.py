"""Data preparation: from raw files to encoded arrays and a schema. No JAX."""
