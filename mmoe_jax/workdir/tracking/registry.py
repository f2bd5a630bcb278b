"""Names of trackers in config.train.trackers."""

import importlib
import importlib.util
import re
from collections.abc import Sequence

from mmoe_jax.errors import require, require_known
from mmoe_jax.workdir.tracking.fan_out import Trackers
from mmoe_jax.workdir.tracking.protocol import Tracker

_HERE = "mmoe_jax/workdir/tracking"
REQUIRED = "jsonl"
DEFAULT = "jsonl,tensorboard"
# Name -> module of this package and class. Modules are imported when they are used.
TRACKERS = {
  "jsonl": ("json_lines", "JsonLines"),
  "tensorboard": ("tensorboard", "TensorBoard"),
  "csv": ("csv_table", "CsvTable"),
  "mlflow": ("mlflow_run", "MlflowRun"),
  "wandb": ("wandb_run", "WandbRun"),
}
_OPTIONAL = ("mlflow", "wandb")  # Names of packages, too.


def parse(names: str) -> list[str]:
  """Returns the names in config.train.trackers, each once."""
  return list(dict.fromkeys(filter(None, re.split(r"[\s,]+", names))))


def check(names: str) -> None:
  """Validates config.train.trackers.

  Args:
    names: names of trackers, separated by commas.

  Raises:
    UserError: for an unknown name or a package that is not installed.
  """
  where = "config.train.trackers"
  for name in parse(names):
    require_known(name, TRACKERS, where)
    require(
      name not in _OPTIONAL or importlib.util.find_spec(name) is not None,
      f"{where}: '{name}' needs a package that is not installed; run: pip install -r "
      f"{_HERE}/requirements-{name}.txt",
    )
  require(
    REQUIRED in parse(names),
    f"{where} = '{names}': must include {REQUIRED}, from which runs resume; known: "
    f"{', '.join(TRACKERS)}",
  )


def create(names: str, own: Sequence[Tracker] = (), writes: bool = True) -> Trackers:
  """Returns the trackers of a run.

  Args:
    names: names that `check` has validated.
    own: the caller's trackers, in addition.
    writes: whether this host tracks; others have no trackers.
  """
  if not writes:
    return Trackers({})
  trackers: dict[str, Tracker] = {}
  for name in parse(names):
    module, kind = TRACKERS[name]
    trackers[name] = getattr(importlib.import_module(f"{__package__}.{module}"), kind)()
  for tracker in own:
    name = type(tracker).__name__
    trackers[name if name not in trackers else f"{name} {len(trackers) + 1}"] = tracker
  return Trackers(trackers, REQUIRED)
