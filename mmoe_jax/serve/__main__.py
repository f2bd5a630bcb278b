"""Serves scores over HTTP: python -m mmoe_jax.serve --model DIR --port 8000."""

import os
import sys

from absl import flags

from mmoe_jax import commands
from mmoe_jax.errors import UserError, require


def main(argv: list[str]) -> None:
  """Loads the model, warms it up, and serves until a signal."""
  del argv
  try:
    from mmoe_jax.serve import web
    from mmoe_jax.serve.app import Limits, Server
  except ImportError as error:
    raise UserError(
      f"the server needs {error.name}; run: pip install -r mmoe_jax/serve/requirements.txt"
    ) from error
  from mmoe_jax import cache
  from mmoe_jax.serve.scorer import Scorer

  for name, value in (
    ("max_rows", _MAX_ROWS.value),
    ("max_bytes", _MAX_BYTES.value),
    ("queue_rows", _QUEUE_ROWS.value),
  ):
    require(value >= 1, f"--{name}={value}: must be at least 1")
  require(0 <= _PORT.value < 1 << 16, f"--port={_PORT.value}: must be from 0 to 65535")
  token = ""
  if _TOKEN_VARIABLE.value:
    token = os.environ.get(_TOKEN_VARIABLE.value, "")
    require(bool(token), f"--token_variable={_TOKEN_VARIABLE.value}: is not set, or empty")
  cache.keep_programs()
  limits = Limits(_MAX_BYTES.value, _MAX_ROWS.value, _QUEUE_ROWS.value)
  server = Server(lambda: Scorer(_MODEL.value, _MEMBER.value), limits, token)
  if _HOST.value not in ("127.0.0.1", "localhost", "::1") and not token:
    print(
      "warning: other machines can reach the server, and no token is required; "
      "see --token_variable",
      file=sys.stderr,
    )
  web.run(server.app(), _HOST.value, _PORT.value)
  server.close()


if __name__ == "__main__":
  _MODEL = flags.DEFINE_string(
    "model", None, "Work directory of a run, or folder of an export.", required=True
  )
  _MEMBER = flags.DEFINE_string("member", "", "Of a population: a member's number, or `mean`.")
  _HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
  _PORT = flags.DEFINE_integer("port", 8000, "Port; 0 for a free one.")
  _MAX_ROWS = flags.DEFINE_integer("max_rows", 4096, "Most rows of a request, and of a batch.")
  _MAX_BYTES = flags.DEFINE_integer("max_bytes", 16 << 20, "Largest body.")
  _QUEUE_ROWS = flags.DEFINE_integer("queue_rows", 65_536, "Most rows that wait.")
  _TOKEN_VARIABLE = flags.DEFINE_string(
    "token_variable", "", "Environment variable with a token that requests must have."
  )
  commands.run(main)
