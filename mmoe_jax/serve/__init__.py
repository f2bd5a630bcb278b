"""Scoring server: python -m mmoe_jax.serve --model DIR --port 8000."""
