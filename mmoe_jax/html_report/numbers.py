"""Numbers and names in the page's sentences and tables."""

from collections.abc import Sequence
from typing import Any

from mmoe_jax.evaluation.tables import DASH, MINUS

_NAMES = {
  "auc": "AUC",
  "log_loss": "log loss",
  "pcoc": "predicted / observed",
  "accuracy": "accuracy",
  "mse": "mean squared error",
  "mae": "mean absolute error",
  "r2": "R² (explained share)",
}


def metric_name(metric: str) -> str:
  """Returns a metric's name for people; its suffix names the rows, such as `auc_16_and_over`."""
  base = next((m for m in sorted(_NAMES, key=len, reverse=True) if metric.startswith(m)), metric)
  rest = metric.removeprefix(base).strip("_")
  weighted = rest.startswith("weighted")
  rest = rest.removeprefix("weighted").strip("_")
  name = _NAMES.get(base, base)
  name += ", weighted" if weighted else ""
  return f"{name}, rows {rest.replace('_', ' ')}" if rest else name


def text(value: float | None, digits: int = 4) -> str:
  """Formats a number; None and NaN become a dash."""
  if value is None or value != value:
    return DASH
  return f"{value:,.{digits}f}".replace("-", MINUS)


def change(value: float, digits: int = 4) -> str:
  """Formats a difference with its sign; 0 has none."""
  rounded = f"{value:+.{digits}f}"
  return f"{0:.{digits}f}" if float(rounded) == 0 else rounded.replace("-", MINUS)


def short(value: float) -> str:
  """Formats a number with four significant digits."""
  return f"{value:,.4g}".replace("-", MINUS)


def percent(share: float, digits: int = 1) -> str:
  """Formats a share in percent."""
  return f"{100 * share:.{digits}f} %"


def interval(low: float, high: float, digits: int = 4) -> str:
  """Formats the ends of an interval."""
  return f"{text(low, digits)} to {text(high, digits)}"


def setting(value: Any) -> str:
  """Formats a value of the config."""
  if isinstance(value, list | tuple):
    return f"({', '.join(map(setting, value))})" if value else "()"
  if isinstance(value, float):
    return f"{value:.6g}"
  return str(value) if value != "" else '""'


def sentence(names: Sequence[str]) -> str:
  """Returns names as a list in a sentence."""
  names = [str(name) for name in names]
  return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
