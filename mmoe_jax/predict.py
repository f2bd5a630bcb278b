"""Scores raw rows: python -m mmoe_jax.predict --workdir DIR --input FILE --output FILE.csv."""

from absl import flags

from mmoe_jax import commands


def main(argv: list[str]) -> None:
  """Scores a file and writes a CSV file, atomically."""
  del argv
  from mmoe_jax import cache
  from mmoe_jax.prediction.predictor import Predictor

  cache.keep_programs()
  predictor = Predictor(_WORKDIR.value, _MEMBER.value)
  rows = predictor.score_file(_INPUT.value, _OUTPUT.value)
  tasks = ", ".join(task.name for task in predictor.schema.tasks)
  print(f"{rows:,} rows scored for {tasks} in {_OUTPUT.value}")


if __name__ == "__main__":
  _WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a run.", required=True)
  _MEMBER = flags.DEFINE_integer("member", None, "Member, if WORKDIR is a population's.")
  _INPUT = flags.DEFINE_string("input", None, "Raw rows, with or without header.", required=True)
  _OUTPUT = flags.DEFINE_string("output", None, "CSV file to write.", required=True)
  commands.run(main)
