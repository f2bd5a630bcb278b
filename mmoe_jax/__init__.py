"""Multi-gate Mixture-of-Experts in JAX: its family of models, on any table.

The names that a notebook needs; each is imported when it is first used, so that commands start
quickly and `mmoe_jax.data` needs no JAX:

  schema, splits = mmoe_jax.load_data("data/census", ["income_50k"], "demo")
  results = mmoe_jax.train(config, "runs/census")
  predictor = mmoe_jax.Predictor("runs/census")
  scores = predictor(table)
  metrics = mmoe_jax.evaluate(predictor, labelled_table)
  gates = mmoe_jax.measure_gates("runs/census", by=["age"])
  mmoe_jax.export_model(predictor, "exported", ["stablehlo"])
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from mmoe_jax.data import load as load_data
  from mmoe_jax.errors import UserError
  from mmoe_jax.export.bundle import export as export_model
  from mmoe_jax.models import Model, create_model
  from mmoe_jax.prediction.gate_measurements import measure_gates
  from mmoe_jax.prediction.predictor import Predictor
  from mmoe_jax.prediction.row_metrics import evaluate
  from mmoe_jax.training.loop import train_and_evaluate as train
  from mmoe_jax.training.population import train_population
  from mmoe_jax.training.search import run_search

__all__ = [
  "Model",
  "Predictor",
  "UserError",
  "create_model",
  "evaluate",
  "export_model",
  "load_data",
  "measure_gates",
  "run_search",
  "train",
  "train_population",
]

# Name -> module, and name in it. The imports above say the same to type checkers.
_PLACES = {
  "Model": ("models", "Model"),
  "Predictor": ("prediction.predictor", "Predictor"),
  "UserError": ("errors", "UserError"),
  "create_model": ("models", "create_model"),
  "evaluate": ("prediction.row_metrics", "evaluate"),
  "export_model": ("export.bundle", "export"),
  "load_data": ("data", "load"),
  "measure_gates": ("prediction.gate_measurements", "measure_gates"),
  "run_search": ("training.search", "run_search"),
  "train": ("training.loop", "train_and_evaluate"),
  "train_population": ("training.population", "train_population"),
}


def __getattr__(name: str) -> Any:
  """Imports one of the names in __all__."""
  if name not in _PLACES:
    raise AttributeError(f"module 'mmoe_jax' has no attribute '{name}'")
  module, attribute = _PLACES[name]
  return getattr(importlib.import_module(f"mmoe_jax.{module}"), attribute)


def __dir__() -> list[str]:
  """Returns the names in __all__, for completion."""
  return sorted([*globals(), *__all__])
