"""A run on a table with every kind of column and task, and its page."""

import dataclasses
import os

import pytest

from configs import tabular
from data_prep import preparation, splitting
from data_prep.spec import parse_spec
from mmoe_jax.html_report.facts import RunFacts, collect
from mmoe_jax.html_report.page import run_page
from mmoe_jax.prediction.predictor import MEAN
from mmoe_jax.training import loop, population
from tests import shop_rows


@dataclasses.dataclass(frozen=True)
class Shop:
  """Prepared data of an invented shop, and work directories by name."""

  folder: str

  def path(self, *names):
    return os.path.join(self.folder, *names)

  def config(self, model="mmoe", tasks="click+buy+rating+country"):
    config = tabular.get_config(f"{model},data={self.path('data')},tasks={tasks}")
    # As in tests/test_scoring.py, with which the run shares its compiled programs.
    config.train.epochs, config.train.devices, config.data.numeric = 1, 1, "piecewise"
    return config


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> Shop:
  found = Shop(str(tmp_path_factory.mktemp("html")))
  # A value that would end the page's scripts, if it was not escaped.
  frame = shop_rows.make(1500, 5)
  frame["device"] = frame["device"].replace("desktop", "</script><b>&desk")
  path = shop_rows.write_csv(frame, found.path("shop.csv"))
  spec = parse_spec(shop_rows.SPEC, "shop.toml")
  groups = splitting.splitters_of(spec.split, {"input": [path]})
  preparation.prepare(spec, groups, found.path("data"))
  return found


@pytest.fixture(scope="session")
def run(shop) -> str:
  """Returns the work directory of a run."""
  loop.train_and_evaluate(shop.config(), shop.path("run"))
  return shop.path("run")


@pytest.fixture(scope="session")
def members(shop) -> str:
  """Returns the work directory of a population of two."""
  config = shop.config("shared_bottom", "click")
  config.train.epochs = 3
  settings = [{"seed": 0}, {"seed": 1}]
  population.train_population(config, settings, shop.path("members"), verbose=False)
  return shop.path("members")


@pytest.fixture(scope="session")
def members_with_gates(shop) -> str:
  """Returns the work directory of a population of two with tasks of all kinds."""
  config = shop.config("mmoe", "click+rating+country")
  settings = [{"seed": 0}, {"seed": 1}]
  population.train_population(config, settings, shop.path("with_gates"), verbose=False)
  return shop.path("with_gates")


@pytest.fixture(scope="session")
def mean_facts(members_with_gates) -> RunFacts:
  """Returns the facts about the mean of these members."""
  return collect(members_with_gates, member=MEAN)


@pytest.fixture(scope="session")
def mean_page(shop, mean_facts) -> str:
  """Returns the path of their page."""
  return write(shop.path("mean.html"), run_page(mean_facts))


@pytest.fixture(scope="session")
def facts(run) -> RunFacts:
  """Returns the facts about the run."""
  return collect(run)


@pytest.fixture(scope="session")
def page(shop, facts) -> str:
  """Returns the path of the run's page."""
  return write(shop.path("run.html"), run_page(facts))


def write(path, text) -> str:
  """Writes a page; returns its path."""
  with open(path, "w", encoding="utf-8") as file:
    file.write(text)
  return str(path)
