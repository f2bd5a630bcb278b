"""Members of a run that an export contains."""

from mmoe_jax.errors import require
from mmoe_jax.prediction.predictor import Predictor
from mmoe_jax.workdir import contract


def restore(workdir: str, member: str) -> list[Predictor]:
  """Restores a run, a member of a population, or all whose training converged.

  Args:
    workdir: work directory of the run.
    member: number of a member, `mean` for all; empty for a run that is no population.

  Raises:
    UserError: if there is no such run or member.
  """
  if member != "mean":
    require(member == "" or member.isdecimal(), f"--member={member}: must be a number, or mean")
    return [Predictor(workdir, int(member) if member else None)]
  count = len(contract.read_config(workdir).get(contract.MEMBERS, ()))
  require(count > 0, f"--member=mean: the run in {workdir} is not a population")
  return [Predictor(workdir, number) for number in range(count)]
