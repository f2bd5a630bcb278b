"""Configs: arguments, suggestions for typing errors, and no unused key."""

import dataclasses
import glob
import importlib
import math
import os

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import census
from data_prep import synthetic
from mmoe_jax import config as config_lib
from mmoe_jax import data, errors, models
from mmoe_jax.errors import UserError
from mmoe_jax.models import layers
from mmoe_jax.training import checks, loop, search_space
from tests.models.test_models import schema_of

NAMES = sorted(
  os.path.basename(path)[:-3]
  for path in glob.glob(os.path.join(os.path.dirname(census.__file__), "*.py"))
  if not path.endswith(("__init__.py", "tabular.py"))  # See tests/data_prep/test_tabular.py.
)


def test_arguments_have_the_types_of_their_defaults():
  got = config_lib.parse_arg(
    "ple,tasks=a+b,n=3,x=1e-3,on=true", model="mmoe", tasks=("c",), n=1, x=0.5, on=False, s="t"
  )
  assert got == {"model": "ple", "tasks": ("a", "b"), "n": 3, "x": 1e-3, "on": True, "s": "t"}


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("mmoe,taks=a", "'taks' does not exist; did you mean 'tasks'"),
    ("mmoe,tasks", "must be key=value; did you mean 'tasks'"),
    ("n=three", "n='three': must be an integer"),
    ("on=maybe", "must be true or false"),
  ],
)
def test_wrong_arguments_are_named(arg, message):
  with pytest.raises(UserError, match=message):
    config_lib.parse_arg(arg, model="mmoe", tasks=("c",), n=1, on=False)


def test_the_argument_sets_model_tasks_and_protocol():
  config = census.get_config("mmoe,tasks=education+marital_stat,protocol=paper")
  assert (config.model.name, config.data.protocol) == ("mmoe", "paper")
  assert config.data.tasks == ("education", "marital_stat")


class _Recording(ConfigDict):
  """ConfigDict that records which of its keys are read."""

  def __init__(self, content, prefix="", read=None):
    object.__setattr__(self, "read", set() if read is None else read)
    object.__setattr__(self, "prefix", prefix)
    super().__init__()
    for key, value in content.items():
      nested = isinstance(value, ConfigDict)
      self[key] = _Recording(value, f"{prefix}{key}.", self.read) if nested else value
    self.read.clear()

  def __getitem__(self, key):
    self.read.add(f"{self.prefix}{key}")
    return super().__getitem__(key)

  def __getattr__(self, key):
    self.read.add(f"{self.prefix}{key}")
    return super().__getattr__(key)

  def items(self, *args, **kwargs):
    return [(key, self[key]) for key in self]

  def copy_and_resolve_references(self, *_):
    return self

  def to_json_best_effort(self, *args, **kwargs):
    return '{"train": {}}'  # Serialising a key does not count as reading it.


# These three differ from `census` by values only.
_SLOW = ("census_best", "census_demo", "smoke")


@pytest.mark.parametrize(
  "name", [pytest.param(n, marks=[pytest.mark.slow] if n in _SLOW else []) for n in NAMES]
)
def test_every_key_is_read(name, prepared, tmp_path):
  config = importlib.import_module(f"configs.{name}").get_config()
  config.data_dir = prepared
  if name == "synthetic":
    config.data_dir = str(tmp_path / "d")
    synthetic.prepare(config.data_dir, 0, 0.9, rows=500, held_out=100)
  config.train.epochs, config.train.devices = min(2, config.train.epochs), 1
  for group in ("dense", "embedding"):
    if config.optimizer[group].name != "ftrl":
      config.optimizer[group].warmup_epochs = 0.0
  recording = _Recording(config)
  loop.train_and_evaluate(recording, str(tmp_path / "w"))
  search_space.create_space(config, recording.search)

  def keys(tree, prefix=""):
    for key in tree:
      value = ConfigDict.__getitem__(tree, key)
      if isinstance(value, ConfigDict) and len(value):
        yield from keys(value, f"{prefix}{key}.")
      else:
        yield f"{prefix}{key}"

  unread = [key for key in keys(config) if key not in recording.read]
  assert not unread


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_a_recipe(name):
  module = importlib.import_module(f"configs.{name}")
  assert f"python -m mmoe_jax.main --config configs/{name}.py" in module.__doc__
  if name != "smoke":
    measure = "mean squared error" if name == "synthetic" else "test AUC"
    assert f"Expected {measure}" in module.__doc__


# Numbers of ids of the real data's features under the demo protocol, in the schema's order.
REAL_SIZES = {
  "category": (
    10,
    53,
    48,
    18,
    4,
    25,
    16,
    6,
    11,
    3,
    4,
    7,
    9,
    7,
    7,
    52,
    39,
    9,
    11,
    10,
    11,
    4,
    5,
    6,
    44,
    44,
    44,
    6,
    4,
    4,
    4,
    3,
  ),
  "bins": (44, 83, 74, 114, 84, 8, 54),
  "log_int": (6, 9, 10, 6, 13, 3, 5),
}


def real_count(config, tasks=("income_50k", "marital_stat")):
  """Returns the number of parameters on the real data."""
  sizes = dict(enumerate(REAL_SIZES["category"]))
  if "education" in tasks:
    sizes[3], sizes[4] = 4, 8  # Without education, with marital_stat after hs_college.
    assert REAL_SIZES["category"][3:5] == (18, 4)
  kind = "log_int" if config.data.numeric == "log_int" else "bins"
  numbers = 7 if config.data.numeric in ("both", "standardize") else 0
  schema = schema_of((*sizes.values(), *REAL_SIZES[kind]), numbers, len(tasks))
  model = models.create_model(config.model, schema)
  features = {
    "ids": np.zeros((1, len(schema.id_features)), np.uint8),
    "numeric": np.zeros((1, numbers), np.float32),
  }
  shapes = jax.eval_shape(model.init, jax.random.key(0), features)
  return layers.parameter_count(shapes["params"])


@pytest.mark.parametrize(
  ("name", "parameters"), [("census", 27846), ("census_best", 354754), ("census_demo", 2122)]
)
def test_golden_parameter_counts_on_the_real_data(name, parameters):
  config = importlib.import_module(f"configs.{name}").get_config()
  assert real_count(config) == parameters


GOLDEN_COUNTS = {
  "single_task": 27898,
  "shared_bottom": 27750,
  "l2_constrained": 27898,
  "cross_stitch": 27730,
  "tensor_factorization": 27778,
  "omoe": 27870,
  "mmoe": 27846,
  "cgc": 27194,
  "ple": 27449,
  "aitm": 27750,
  "esmm": 27686,
  "snr_trans": 27721,
  "dselect_k": 27846,
}


def test_every_model_has_as_many_parameters_as_mmoe():
  assert set(census.MODELS) == set(census.TASKS) == set(models.MODELS) == set(GOLDEN_COUNTS)
  for name, golden in GOLDEN_COUNTS.items():
    config = census.get_config(name)
    assert real_count(config, config.data.tasks) == golden
    assert abs(golden / GOLDEN_COUNTS["mmoe"] - 1) < 0.03, name


def test_every_setting_of_every_model_is_in_the_config():
  wired = {"feature_sizes", "outputs", "embedding_dims", "axis_name", "parent", "name"}
  wired |= {"feature_lengths", "feature_poolings", "feature_tables", "feature_compressions"}
  for name, model in models.MODELS.items():
    fields = {f.name for f in dataclasses.fields(model)} - wired
    own = {"name", "embedding_dim", "embedding_dim_of", "embedding_shards"}
    own |= {"embedding_compression", "embedding_rows", "batch_ensemble"}
    assert set(census.get_config(name).model) == fields | own


@pytest.mark.parametrize("name", NAMES)
def test_every_config_takes_every_model(name):
  for model in models.MODELS:
    config = importlib.import_module(f"configs.{name}").get_config(model)
    created = models.create_model(config.model, schema_of((3, 4), 1, 2))
    assert type(created) is models.MODELS[model]
    tasks = ("task_1", "task_2") if name == "synthetic" else census.TASKS[model]
    assert config.data.tasks == tasks


def test_an_unknown_model_is_named_with_a_suggestion():
  with pytest.raises(UserError, match=r"config\.model\.name is 'plee', .*did you mean 'ple'"):
    census.get_config("plee")


def test_a_config_derived_from_census_has_the_same_keys():
  groups = ("optimizer",)  # Optimizers have different settings.
  base = {k for k in census.get_config().to_dict() if k not in groups}
  for name in NAMES:
    config = importlib.import_module(f"configs.{name}").get_config()
    assert {k for k in config.to_dict() if k not in groups} == base
    assert set(config.model) == set(census.get_config().model)


# Values that some key may accept; those of another type, out of range or not finite are errors.
BAD = (None, True, -1, 0, 10**12, 1.5, -0.5, 1e308, math.nan, math.inf, "", "x", (), ("x",), (-1,))
BAD += ((1.5, math.nan), {"x": 1}, ["income_50k", "income_50k"], object(), b"x")


def leaves(tree, prefix=""):
  """Yields (group, key, dotted key) of every key of a config, groups included."""
  for key in list(tree):
    yield tree, key, f"{prefix}{key}"
    if isinstance(tree[key], ConfigDict):
      yield from leaves(tree[key], f"{prefix}{key}.")


@pytest.mark.parametrize(
  "arg",
  [
    *("mmoe", "ple", "mmoe,weighting=gradnorm"),
    *(pytest.param(m, marks=pytest.mark.slow) for m in models.MODELS if m not in ("mmoe", "ple")),
  ],
)
def test_every_value_of_every_key_is_accepted_or_refused_in_one_line(arg, prepared):
  schema = data.restore_schema(os.path.join(prepared, "schema.json"))
  schema = data.select(schema, census.get_config(arg).data.tasks, "demo")
  config = census.get_config(arg)
  checks.check_config(config, schema)
  # Other models and weightings differ in their own settings only.
  own = ("model", "loss.weighting") if arg != "mmoe" else ("",)
  keys = [leaf for leaf in leaves(config) if leaf[2].startswith(own)]
  refused = {}
  for group, key, dotted in keys:
    sound = group[key]
    for i, value in enumerate(BAD):
      with group.unlocked(), group.ignore_type():
        group[key] = value
      try:
        checks.check_config(config, schema)
      except UserError as error:
        refused[dotted, i] = errors.describe(error)
    with group.unlocked(), group.ignore_type():
      group[key] = sound
  assert len(refused) > 10 * len(keys)
  for (dotted, i), message in refused.items():
    assert f"config.{dotted.split('.')[0]}" in message, (dotted, BAD[i])
    assert len(message) < 600, (dotted, BAD[i])


@pytest.mark.parametrize("value", BAD)
def test_search_spaces_of_any_form_are_refused_in_one_line(value):
  config = census.get_config()
  for space in (value, (value,), (("model.expert_dropout", value),), (("seed", ("int", value)),)):
    if isinstance(space, tuple | list | dict):
      with pytest.raises(UserError, match="search space"):
        search_space.create_space(config, space)


def test_unknown_and_missing_keys_are_named():
  for group, key, message in (
    ("train", "epoch", r"config\.train\.epoch: does not exist; did you mean 'epochs'"),
    ("optimizer", "dens", r"config\.optimizer\.dens: does not exist; did you mean 'dense'"),
    ("select", "metrics", r"config\.select\.metrics: .*did you mean 'metric'"),
  ):
    config = census.get_config()
    config[group][key] = config[group][next(iter(config[group]))]
    with pytest.raises(UserError, match=message):
      config_lib.check_structure(config)
  for dotted in ("model", "train", "seed", "data.tasks", "checkpoint.every_epochs"):
    config = census.get_config()
    *groups, key = dotted.split(".")
    group = config[groups[0]] if groups else config
    del group[key]
    with pytest.raises(UserError, match=rf"config\.{dotted} is missing"):
      config_lib.check_structure(config)
  for wrong in (None, {"seed": 1}, 3):
    with pytest.raises(UserError, match="must be a ConfigDict"):
      config_lib.check_structure(wrong)


def test_vary_is_every_combination():
  assert config_lib.parse_vary([]) == [{}]
  got = config_lib.parse_vary(["a.b=1,2e-3", "c=4"])
  assert got == [{"a.b": 1.0, "c": 4.0}, {"a.b": 2e-3, "c": 4.0}]
  for text in ("a.b", "a.b=", "a.b=x"):
    with pytest.raises(UserError, match=r"--vary=a\.b"):
      config_lib.parse_vary([text])
