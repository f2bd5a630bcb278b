"""Replays the golden rows of an export: python -m mmoe_jax.verify FOLDER."""

import sys

from mmoe_jax.export import model

if __name__ == "__main__":
  if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
    print("usage: python -m mmoe_jax.verify FOLDER", file=sys.stderr)
    sys.exit(2)
  sys.exit(model.report(sys.argv[1]))
