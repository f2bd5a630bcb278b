"""Synthetic rows in the raw format, with its pitfalls."""

import numpy as np

from data_prep.census_income import SPEC
from data_prep.spec import read_spec
from mmoe_jax.data.conditions import parse_condition

_SPEC = read_spec(SPEC)
COLUMNS = tuple(_SPEC.columns)
COLLEGE = parse_condition(_SPEC.tasks["education"].condition).values
NUMBERS = (
  *("age", "wage_per_hour", "capital_gains", "capital_losses", "stock_dividends", "num_emp"),
  "weeks_worked",
)

LOW = ("High school graduate", "Children", "Some college but no degree")
_FIXED = {
  "education": (*LOW, *COLLEGE),
  "marital_stat": ("Never married", "Widowed", "Divorced"),
  "hisp_origin": ("All other", "NA", "Cuban"),
  "mig_chg_msa": ("?", "MSA to MSA", "Nonmover"),
  "sex": ("Female", "Male"),
  "year": ("94", "95"),
}


def make(rows: int, seed: int) -> list[list[str]]:
  """Returns the 42 values of each row; labels depend on age, education and capital gains."""
  rng = np.random.default_rng(seed)
  age = rng.integers(0, 91, rows)
  school = rng.integers(0, len(_FIXED["education"]), rows)
  gains = np.where(rng.random(rows) < 0.1, rng.integers(1, 100_000, rows), 0)
  single = rng.random(rows) < 1 / (1 + np.exp((age - 30) / 8))
  z = (age - 45) / 10 + (school - 5) / 2 + (gains > 0) * 2 - 1
  rich = (rng.random(rows) < 1 / (1 + np.exp(-z))) & (age >= 16)
  columns = {name: rng.choice(values, rows).astype(str) for name, values in _FIXED.items()}
  columns |= {
    "age": age.astype(str),
    "education": np.array(_FIXED["education"])[school],
    "capital_gains": gains.astype(str),
    "capital_losses": rng.integers(0, 4000, rows).astype(str),
    "stock_dividends": rng.integers(0, 90_000, rows).astype(str),
    "wage_per_hour": rng.integers(0, 2000, rows).astype(str),
    "num_emp": rng.integers(0, 7, rows).astype(str),
    "weeks_worked": rng.integers(0, 53, rows).astype(str),
    "instance_weight": np.char.mod("%.2f", rng.uniform(50, 5000, rows)),
    "marital_stat": np.where(single, "Never married", rng.choice(("Widowed", "Divorced"), rows)),
    "income_50k": np.where(rich, "50000+.", "- 50000."),
  }
  for i, name in enumerate(COLUMNS):
    if name not in columns:
      columns[name] = np.array([f"{name} {v}" for v in rng.integers(0, 3 + i % 5, rows)])
  return [list(row) for row in zip(*(columns[c] for c in COLUMNS), strict=True)]


def write(path: str, rows: list[list[str]]) -> str:
  """Writes rows like the raw files: separated by comma and space, without header."""
  with open(path, "w", encoding="utf-8") as file:
    file.writelines(", ".join(row) + "\n" for row in rows)
  return path
