"""Exports a trained model: python -m mmoe_jax.export --workdir DIR --out FOLDER."""

from absl import flags

from mmoe_jax import commands


def main(argv: list[str]) -> None:
  """Writes the export, and verifies it."""
  del argv
  from mmoe_jax.export import bundle, model
  from mmoe_jax.prediction.predictor import Predictor, parse_member

  predictor = Predictor(_WORKDIR.value, parse_member(_MEMBER.value))
  bundle.export(predictor, _OUT.value, _FORMATS.value)
  status = model.report(_OUT.value)
  if status:
    raise SystemExit(status)
  print(f"exported to {_OUT.value}; see its README.md")


if __name__ == "__main__":
  _WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a run.", required=True)
  _OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
  _FORMATS = flags.DEFINE_list("formats", ["stablehlo"], "Some of stablehlo, onnx and savedmodel.")
  _MEMBER = flags.DEFINE_string(
    "member", "", "Of a population: a member's number, or `mean` for the mean of all."
  )
  commands.run(main)
