"""Task weighting: every method, through the training step, against float64 NumPy.

The toy problem has a shared vector, one vector per task and a penalty; the loss of task k is the
mean over rows of (a_k x·u + z·v_k − y_k)².
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import census
from mmoe_jax import models
from mmoe_jax.errors import UserError
from mmoe_jax.training import checks, task_weighting
from mmoe_jax.training.step import Batch, Best, State, make_train_step
from tests import reference

ROWS, STEPS, RATE = 16, 7, 0.05
SETTINGS = {
  "static": {"name": "static"},
  "uncertainty": {"name": "uncertainty", "learning_rate": 0.1},
  "dwa": {"name": "dwa", "temperature": 0.7},
  "gradnorm": {"name": "gradnorm", "alpha": 1.5, "learning_rate": 0.03},
  "pcgrad": {"name": "pcgrad"},
}
BASE = (0.5, 2.0, 1.5)
KINDS = ("binary", "regression", "multiclass")
STEPS_PER_EPOCH = 2
KEY = jax.random.key(3)
every_method = pytest.mark.parametrize("name", SETTINGS)


def create(name, base=BASE, kinds=KINDS):
  return task_weighting.create_task_weighting(SETTINGS[name], base, kinds, STEPS_PER_EPOCH)


class ToyModel:
  """Has the interface of a model; its outputs are the errors of each row and task."""

  def __init__(self, scales_T):
    self.scales_T = scales_T

  def apply(self, variables, features, **_):
    params = variables["params"]
    shared_B = features["x"] @ params["experts"]["u"]
    own_BxT = features["z"] @ params["towers"]["v"].T
    penalty = 0.1 * (params["experts"]["u"] ** 2).sum()
    return shared_B[:, None] * self.scales_T[None, :] + own_BxT, {"losses": {"penalty": penalty}}


class LinearModel:
  """Has the interface of a model; the loss of task k is a linear function of the parameters."""

  def __init__(self, matrix_TxP):
    self.matrix_TxP = matrix_TxP

  def apply(self, variables, features, **_):
    flat_P = jnp.concatenate(jax.tree.leaves(variables["params"]))
    return (self.matrix_TxP @ flat_P + 1.0)[None] * features["one"][:, None], {}


def squared_error(outputs_BxT, labels_BxT):
  return jnp.where(jnp.isnan(labels_BxT), 0.0, (outputs_BxT - jnp.nan_to_num(labels_BxT)) ** 2)


def problem(rng, tasks=3):
  """Returns the batches of STEPS steps, initial parameters and the scales a_k."""
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  # Each task has another scale.
  labels = draw(STEPS, ROWS, tasks) * np.arange(1, tasks + 1, dtype=np.float32)
  features = {"x": draw(STEPS, ROWS, 4), "z": draw(STEPS, ROWS, 2)}
  batches = Batch(features, labels, np.ones((STEPS, ROWS), np.float32))
  params = {"experts": {"u": draw(4)}, "towers": {"v": draw(tasks, 2)}}
  return batches, params, draw(tasks)


def start(params, tx, weighting):
  best = Best((), (), ())
  return State(jnp.int32(0), params, {}, (), tx.init(params), weighting.init(params), best)


def train(weighting, batches, params, scales_T, axis_name=None):
  """Returns parameters after gradient descent, losses and weights per step, the last weights."""
  tx = optax.sgd(RATE)
  step = make_train_step(ToyModel(scales_T), tx, weighting, squared_error, axis_name=axis_name)

  def body(state, batch):
    weights_T = weighting.weights(state.weighting)
    state, task_losses = step(state, batch, KEY)
    return state, (task_losses.losses, weights_T)

  state, outputs = jax.lax.scan(body, start(params, tx, weighting), batches)
  return state.params, *outputs, weighting.weights(state.weighting)


class Adam:
  """Adam (Kingma and Ba 2015), algorithm 1."""

  def __init__(self, rate):
    self.rate, self.m, self.v, self.t = rate, 0.0, 0.0, 0

  def update(self, g):
    self.t += 1
    self.m = 0.9 * self.m + 0.1 * g
    self.v = 0.999 * self.v + 0.001 * g**2
    mean, square = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
    return -self.rate * mean / (np.sqrt(square) + 1e-8)


class ReferenceWeights:
  """Weights of each method step by step; `now` are the weights without the base weights."""

  def __init__(self, name, tasks):
    self.name, self.now = name, np.ones(tasks)
    self.s, self.history, self.epoch = np.zeros(tasks), [], []
    self.c = np.array([0.5 if kind == "regression" else 1.0 for kind in KINDS])
    if name == "uncertainty":
      self.now = self.c
    self.adam = Adam(SETTINGS[name].get("learning_rate"))

  def update(self, losses, shared):
    """Updates by the weighted losses and their gradients (T, P) of the shared parameters."""
    tasks = len(losses)
    if self.name == "uncertainty":
      self.s = self.s + self.adam.update(0.5 - self.c * np.exp(-self.s) * losses)
      self.now = self.c / np.exp(self.s)
    if self.name == "dwa":
      self.epoch.append(losses)
      if len(self.epoch) == STEPS_PER_EPOCH:
        self.history.append(np.mean(self.epoch, 0))
        self.epoch = []
      if len(self.history) >= 2:
        powers = np.exp(self.history[-1] / self.history[-2] / SETTINGS["dwa"]["temperature"])
        self.now = tasks * powers / powers.sum()
    if self.name == "gradnorm":
      if not self.history:
        self.history.append(losses)
      norms = np.linalg.norm(self.now[:, None] * shared, axis=1)
      progress = losses / self.history[0]
      target = norms.mean() * (progress / progress.mean()) ** SETTINGS["gradnorm"]["alpha"]
      slope = np.sign(norms - target) * np.linalg.norm(shared, axis=1)
      self.now = self.now + self.adam.update(slope)
      self.now = self.now * tasks / self.now.sum()


def task_gradients(features, labels, u, v, scales):
  """Returns losses (T,) and gradients (T, P) of all parameters; the first four are shared."""
  tasks = len(v)
  errors = (features["x"] @ u)[:, None] * scales + features["z"] @ v.T - labels
  flat = np.zeros((tasks, 4 + v.size))
  for k in range(tasks):
    flat[k, :4] = (2 * errors[:, k : k + 1] * scales[k] * features["x"]).mean(0)
    flat[k, 4 + 2 * k : 6 + 2 * k] = (2 * errors[:, k : k + 1] * features["z"]).mean(0)
  return (errors**2).mean(0), flat


def to_float64(*trees):
  return jax.tree.map(lambda a: np.asarray(a, np.float64), trees)


@pytest.mark.parametrize("name", ["static", "uncertainty", "dwa", "gradnorm"])
def test_steps_equal_numpy_in_float64(name):
  given = problem(reference.fresh_rng())
  run = jax.jit(lambda *given: train(create(name), *given))
  params, losses_SxT, weights_SxT, last_T = run(*given)
  batches, initial, scales = to_float64(*given)
  u, v = initial["experts"]["u"], initial["towers"]["v"]
  weights = ReferenceWeights(name, 3)
  for step in range(STEPS):
    features = {k: a[step] for k, a in batches.features.items()}
    losses, flat = task_gradients(features, batches.labels[step], u, v, scales)
    np.testing.assert_allclose(losses_SxT[step], losses, rtol=1e-3)
    np.testing.assert_allclose(weights_SxT[step], weights.now * BASE, rtol=1e-3)
    total = (weights.now * BASE) @ flat
    base = np.array(BASE)
    weights.update(losses * base, flat[:, :4] * base[:, None])
    u = u - RATE * (total[:4] + 0.2 * u)
    v = v - RATE * total[4:].reshape(v.shape)
  np.testing.assert_allclose(last_T, weights.now * BASE, rtol=1e-3)
  np.testing.assert_allclose(params["experts"]["u"], u, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(params["towers"]["v"], v, rtol=1e-3, atol=1e-4)
  is_adaptive = name != "static"
  assert (np.abs(np.asarray(last_T) - weights_SxT[0]).max() > 1e-3) == is_adaptive


def one_gradient(weighting, model, batch, params, key=KEY):
  """Returns the gradient that one step follows."""
  tx = optax.sgd(1.0)
  loss = squared_error if isinstance(model, ToyModel) else lambda outputs, labels: outputs
  step = make_train_step(model, tx, weighting, loss)
  state, _ = jax.jit(step)(start(params, tx, weighting), batch, key)
  return jax.tree.map(lambda before, after: before - after, params, state.params)


def one_row(tasks):
  return Batch({"one": np.ones(1, np.float32)}, np.zeros((1, tasks)), np.ones(1, np.float32))


def surgery(flat, orders):
  """Applies algorithm 1 of PCGrad with a given order of the other tasks for each task."""
  total = 0.0
  for i, order in enumerate(orders):
    g = flat[i].copy()
    for j in order:
      if g @ flat[j] < 0:
        g -= g @ flat[j] / (flat[j] @ flat[j]) * flat[j]
    total = total + g
  return total


def test_pcgrad_equals_numpy_and_draws_all_orders():
  # Gradients of linear losses are their coefficients, which conflict in every pair.
  flat = reference.fresh_rng().normal(size=(3, 7))
  flat -= 1.5 * flat.mean(0)
  model, params = LinearModel(jnp.float32(flat)), {"a": jnp.zeros(4), "b": jnp.zeros(3)}
  scaled = flat * np.array(BASE)[:, None]
  others = [itertools.permutations([j for j in range(3) if j != i]) for i in range(3)]
  possible = [surgery(scaled, orders) for orders in itertools.product(*others)]
  keys = jax.random.split(jax.random.key(0), 200)
  gradient = lambda key: one_gradient(create("pcgrad"), model, one_row(3), params, key)
  grads = jax.jit(jax.vmap(gradient))(keys)
  grads = np.concatenate([grads["a"], grads["b"]], 1)
  distances = np.abs(grads[:, None] - np.stack(possible)[None]).max(-1)
  assert distances.min(1).max() < 1e-4
  assert distances.min(0).max() < 1e-4  # Every possible outcome occurs for some key.


def test_pcgrad_of_two_conflicting_tasks_adds_the_penalty():
  batches, params, _ = problem(reference.fresh_rng(), tasks=2)
  # One shared direction, pulled both ways.
  scales = np.float32([1.0, -1.0])
  features = {k: a[0] for k, a in batches.features.items()}
  labels = np.stack([features["x"].sum(1), features["x"].sum(1)], 1) * 9
  batch = Batch(features, labels, batches.weights[0])
  weighting = create("pcgrad", (1.0, 3.0), KINDS[:2])
  grads = one_gradient(weighting, ToyModel(scales), batch, params)
  batch, params, scales = to_float64(batch, params, scales)
  u, v = params["experts"]["u"], params["towers"]["v"]
  _, flat = task_gradients(batch.features, batch.labels, u, v, scales)
  flat *= np.array([[1.0], [3.0]])
  assert flat[0] @ flat[1] < 0
  expected = surgery(flat, [[1], [0]])
  np.testing.assert_allclose(grads["experts"]["u"], expected[:4] + 0.2 * u, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(grads["towers"]["v"].ravel(), expected[4:], rtol=1e-3, atol=1e-3)


def test_pcgrad_keeps_gradients_that_agree():
  model = LinearModel(jnp.float32(np.abs(reference.fresh_rng().normal(size=(3, 5)))))
  params = {"a": jnp.zeros(5)}
  grads = [one_gradient(create(n), model, one_row(3), params)["a"] for n in ("pcgrad", "static")]
  np.testing.assert_allclose(*grads, rtol=1e-5)


@pytest.mark.parametrize("name", ["gradnorm", "pcgrad"])
def test_gradients_are_combined_at_highest_precision(name):
  # Accelerators would round them to bfloat16 or TensorFloat-32 otherwise.
  model, params = LinearModel(jnp.ones((3, 5))), {"experts": jnp.zeros(5)}
  gradient = lambda params: one_gradient(create(name), model, one_row(3), params)
  jaxpr = str(jax.make_jaxpr(gradient)(params))
  # The products of the gradients with each other, and their weighted sum.
  assert jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 2


@every_method
def test_two_devices_equal_one(name):
  batches, params, scales = problem(reference.fresh_rng())
  alone = jax.jit(lambda *given: train(create(name), *given))(batches, params, scales)
  halves = jax.tree.map(
    lambda a: a.reshape(STEPS, 2, ROWS // 2, *a.shape[2:]).swapaxes(0, 1), batches
  )
  run = jax.pmap(
    lambda batches: train(create(name), batches, params, scales, "devices"),
    axis_name="devices",
    devices=jax.devices()[:2],
  )
  for device in range(2):
    together = jax.tree.map(lambda a, device=device: a[device], run(halves))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), together, alone
    )


@every_method
def test_members_with_different_settings_equal_separate_runs(name):
  given = problem(reference.fresh_rng())
  values = {k: np.float32([v, 2 * v]) for k, v in SETTINGS[name].items() if k != "name"}
  bases = np.float32([BASE, BASE[::-1]])

  def run(settings, base):
    settings = {"name": name, **settings}
    weighting = task_weighting.create_task_weighting(settings, base, KINDS, STEPS_PER_EPOCH)
    return train(weighting, *given)

  members = jax.jit(jax.vmap(run))(values, bases)
  alone = jax.jit(run)
  for m in range(2):
    expected = alone({k: v[m] for k, v in values.items()}, bases[m])
    jax.tree.map(
      lambda a, b, m=m: np.testing.assert_allclose(a[m], b, rtol=1e-3, atol=1e-4), members, expected
    )


@pytest.mark.parametrize("name", ["uncertainty", "dwa", "gradnorm", "pcgrad"])
def test_a_single_task_trains_as_without_weighting(name):
  given = problem(reference.fresh_rng(), tasks=1)
  run = lambda name: jax.jit(lambda *given: train(create(name, (1.0,), ("binary",)), *given))
  ends = [run(n)(*given) for n in (name, "static")]
  if name != "uncertainty":  # It scales the loss of a single task, too.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *ends)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ends[0]))


def test_gradnorm_equalises_gradient_norms_of_shared_parameters():
  # Two tasks whose gradients differ a thousandfold and never change: norms meet, at alpha 0.
  model = LinearModel(jnp.float32([[10.0, 10.0, 0, 0, 0], [0.01, -0.01, 0, 0, 0]]))
  settings = {"name": "gradnorm", "alpha": 0.0, "learning_rate": 0.01}
  weighting = task_weighting.create_task_weighting(settings, (1.0, 1.0), KINDS[:2], 1)
  params = {"experts": jnp.zeros(2), "towers": jnp.zeros(3)}
  tx = optax.sgd(0.0)
  step = make_train_step(model, tx, weighting, lambda outputs, labels: outputs)
  body = lambda state, _: (step(state, one_row(2), KEY)[0], None)
  run = jax.jit(lambda state: jax.lax.scan(body, state, None, 1000)[0])
  weights = weighting.weights(run(start(params, tx, weighting)).weighting)
  np.testing.assert_allclose(weights.sum(), 2.0, rtol=1e-5)
  assert weights[0] < 0.05 < 1.9 < weights[1]


# Parameters of each model by the tasks that have a gradient of them: of both, or of one only.
@pytest.mark.parametrize(
  ("name", "shared", "private"),
  [
    ("single_task", (), ("embedding", "bottoms", "towers")),
    ("omoe", ("embedding", "experts", "gating"), ("towers",)),
    ("mmoe", ("embedding", "experts"), ("gating", "towers")),
    ("ple", ("embedding", "experts_1", "shared_gating_1"), ("gating_1", "gating_2", "towers")),
    ("aitm", ("embedding",), ("towers", "transfer_1")),
  ],
)
def test_gradnorm_compares_gradients_of_shared_parameters_only(name, shared, private):
  rng = reference.fresh_rng()
  sizes = {"feature_sizes": (5, 4), "outputs": (1, 1), "embedding_dims": (4, 4)}
  model = models.MODELS[name](**sizes, **census.MODELS[name])
  features = {
    "ids": rng.integers(1, 4, (64, 2)).astype(np.uint8),
    "numeric": rng.normal(size=(64, 3)).astype(np.float32),
  }
  params = jax.jit(model.init)(jax.random.key(0), features)["params"]
  loss = lambda params: (model.apply({"params": params}, features, train=False) ** 2).sum(0)
  grads = jax.jit(jax.jacrev(loss))(params)
  kept = dict(zip(sorted(params), shared_by_part(grads), strict=True))
  for part in shared:
    assert kept[part] > 0.5, part
  for part in private:
    assert kept[part] == 0, part


def shared_by_part(grads):
  """Returns how much of each part's gradient, by its absolute sum, counts as shared."""
  total = lambda leaves: float(sum(jnp.abs(leaf).sum() for leaf in leaves))
  return [
    total(task_weighting._shared(grads[part])) / total(jax.tree.leaves(grads[part]))
    for part in sorted(grads)
  ]


def test_gradnorm_keeps_its_weights_where_nothing_is_shared():
  model = LinearModel(jnp.float32([[3.0, 0.0], [0.0, 1.0]]))
  weighting = create("gradnorm", (1.0, 1.0), KINDS[:2])
  params, tx = {"towers": jnp.zeros(2)}, optax.sgd(0.1)
  step = jax.jit(make_train_step(model, tx, weighting, lambda outputs, labels: outputs))
  state = step(start(params, tx, weighting), one_row(2), KEY)[0]
  np.testing.assert_array_equal(weighting.weights(state.weighting), [1.0, 1.0])


@pytest.mark.parametrize(
  ("settings", "base", "message"),
  [
    ({}, BASE, r"config\.loss\.weighting\.name is missing; known: static"),
    ({"name": "gradnrom"}, BASE, r"weighting\.name is 'gradnrom', .*did you mean 'gradnorm'"),
    (
      {"name": "dwa", "temprature": 1.0},
      BASE,
      "not a setting of 'dwa'; did you mean 'temperature'",
    ),
    ({"name": "static", "alpha": 1.0}, BASE, "alpha: not a setting of 'static'; known: none"),
    ({"name": "dwa"}, BASE, r"weighting\.temperature is missing; 'dwa' needs temperature"),
    ({"name": "dwa", "temperature": 0.0}, BASE, "temperature = 0.0: must be a number above 0"),
    ({"name": "uncertainty", "learning_rate": "x"}, BASE, "learning_rate = x: must be a number"),
    ({"name": "uncertainty", "learning_rate": float("nan")}, BASE, "= nan: must be a number"),
    ({**SETTINGS["gradnorm"], "alpha": -1.0}, BASE, "alpha = -1.0: must be a number >= 0"),
    (SETTINGS["gradnorm"], (1.0, 0.0, 1.0), "'gradnorm' needs weights above 0"),
    (SETTINGS["uncertainty"], (0.0, 1.0, 1.0), "'uncertainty' needs weights above 0"),
  ],
)
def test_wrong_settings_are_named(settings, base, message):
  with pytest.raises(UserError, match=message):
    checks.check_task_weighting(settings, base)


def test_every_method_documents_its_paper_and_settings():
  for name, (method, keys) in task_weighting.METHODS.items():
    assert name == "static" or "https://" in method.__doc__
    for key in keys:
      assert f"{key}:" in method.__doc__
