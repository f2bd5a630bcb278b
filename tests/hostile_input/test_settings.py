"""Hostile configs: files in Python, dotted flags and values; what is accepted, is what was set."""

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import config_flags

from configs import tabular
from mmoe_jax import config as config_lib
from mmoe_jax import data
from mmoe_jax.errors import describe
from mmoe_jax.training import checks
from tests import ROOT
from tests.hostile_input.faults import VALUES, fuzz, limited, mutate, refusal


def leaves(keys, path=()):
  for key, kind in keys.items():
    yield from leaves(kind, (*path, key)) if isinstance(kind, dict) else [(*path, key)]


@pytest.fixture(scope="module")
def schema(shop):
  return data.load(f"{shop}/data", ("click", "buy"), "all")[0]


def create(shop):
  return tabular.get_config(f"mmoe,data={shop}/data,tasks=click+buy")


def check(config, schema) -> str | None:
  """Returns why a run would refuse a config; None if it is valid."""

  def call():
    config_lib.check_structure(config)
    checks.check_config(config, schema)

  return refusal(call)


@fuzz(60)
@given(draw=st.data())
def test_hostile_settings_are_accepted_or_refused(shop, schema, draw):
  config = create(shop)
  paths = [path for path in leaves(config.to_dict()) if path[0] not in ("data_dir", "search")]
  for path in draw.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=3, unique=True)):
    group = config
    for key in path[:-1]:
      group = group[key]
    value = draw.draw(VALUES)
    # The config library itself turns numbers into floats, of which commands report the overflow.
    if not (isinstance(value, int) and abs(value) > 1e300):
      try:
        with group.unlocked(), group.ignore_type():
          group[path[-1]] = value
      except ValueError:  # Of names with dots; no command gets to see them.
        return
  check(config, schema)


def parse(words):
  """Parses --config and its flags as commands do; returns the config, or the line of an error."""
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
  with limited():
    try:
      values(["main", *words])
      return holder.value
    except Exception as error:  # Commands print this line for every error here.
      line = describe(error)
      assert line
      assert "\n" not in line
      assert "Traceback" not in line
      return line


TEXTS = (
  "",
  "nan",
  "inf",
  "-1",
  "0",
  "1e999",
  "1e-400",
  "9" * 400,
  "True",
  "None",
  "()",
  "(1,",
  "[",
)
TEXTS = (*TEXTS, "('a',)", "'x'", "{}", "{'a': 1}", "__import__('os')", "1_0", "0x10", "é", "a,b")
TEXTS = (*TEXTS, "\0", "(" * 200, "-" * 500 + "1", "lambda: 1", "0.5", "2", "1j", "b'x'", "1.0")


@fuzz(40)
@given(draw=st.data())
def test_hostile_flags_set_what_they_say_or_are_refused(shop, schema, draw):
  path = f"{ROOT}/configs/tabular.py:mmoe,data={shop}/data,tasks=click+buy"
  keys = [".".join(path) for path in leaves(create(shop).to_dict()) if path[0] != "data_dir"]
  keys += ["", "model", "model.nothing", "train.epochs.x", "search.0", "train..epochs", "seed."]
  key, text = draw.draw(st.sampled_from(keys)), draw.draw(st.sampled_from(TEXTS))
  found = parse([f"--config={path}", f"--config.{key}={text}"])
  if isinstance(found, str) or check(found, schema):
    return
  value = found
  for name in key.split("."):
    value = value[name]
  before = create(shop)
  for name in key.split("."):
    before = before[name]
  if isinstance(value, bool):
    assert text.lower() == str(value).lower() or text in ("0", "1")
  elif isinstance(value, int | float):
    assert float(text) == value
  elif isinstance(value, str):
    assert text.strip("'") == value


@fuzz(20)
@given(rng=st.randoms(use_true_random=False))
def test_damaged_config_files_are_read_or_refused(shop, schema, tmp_path_factory, rng):
  text = (
    "from configs import tabular\n\n\ndef get_config(arg=None):\n"
    f'  config = tabular.get_config("mmoe,data={shop}/data,tasks=click+buy")\n'
    "  config.train.epochs = 3\n  config.optimizer.dense.learning_rate = 0.125\n"
    '  config.model.gate_dropout = 0.25\n  config.select.tasks = ("click",)\n  return config\n'
  )
  path = tmp_path_factory.mktemp("config") / "own.py"
  path.write_bytes(mutate(text.encode(), rng))
  found = parse([f"--config={path}"])
  if not isinstance(found, str):
    check(found, schema)


@pytest.mark.parametrize(
  "text",
  [
    "",
    "get_config = 3",
    "def get_config(): return 1 / 0",
    "def get_config(): raise KeyError",
    "def get_config(): return get_config()",
    "import nothing_of_this_name",
    "def get_config(arg): return {}",
    "raise SyntaxError('\\n' * 50)",
    "\0",
    "def get_config(): return None",
    "class get_config: pass",
  ],
)
def test_config_files_that_nobody_means_are_one_line(text, schema, tmp_path):
  path = tmp_path / "own.py"
  path.write_text(text)
  found = parse([f"--config={path}"])
  assert isinstance(found, str) or check(found, schema)
