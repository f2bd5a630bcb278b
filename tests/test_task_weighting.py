"""Task weighting: every method against float64 NumPy, on one device and several, mapped, scanned.

The toy problem has a shared vector, one of each task and a penalty; task k's loss is the mean of
(a_k x·u + z·v_k − y_k)².
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmoe_jax import task_weighting
from mmoe_jax.errors import UserError
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


def create(name, base=BASE, kinds=KINDS):
  return task_weighting.create_task_weighting(SETTINGS[name], base, kinds, STEPS_PER_EPOCH)


def problem(rng, tasks=3):
  """Data of STEPS steps, and initial parameters."""
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  batches = {
    "x": draw(STEPS, ROWS, 4),
    "z": draw(STEPS, ROWS, 2),
    # Each task at a scale of its own.
    "y": draw(STEPS, ROWS, tasks) * np.arange(1, tasks + 1, dtype=np.float32),
  }
  params = {"experts": {"u": draw(4)}, "towers": {"v": draw(tasks, 2)}}
  return batches, params, draw(tasks)


def losses_of(batch, scales_T):
  def losses_fn(params):
    shared_B = batch["x"] @ params["experts"]["u"]
    own_BxT = batch["z"] @ params["towers"]["v"].T
    errors = shared_B[:, None] * scales_T[None, :] + own_BxT - batch["y"]
    return (errors**2).mean(0), (0.1 * (params["experts"]["u"] ** 2).sum(), errors.shape[0])

  return losses_fn


def train(weighting, batches, params, scales_T, keys, axis_name=None):
  """Gradient descent for all steps: params, and per step losses and the weights before it."""

  def step(carry, given):
    params, state = carry
    batch, key = given
    weights_T = weighting.weights(state)
    grads, losses_T, aux, state = weighting.gradient(
      losses_of(batch, scales_T), params, state, key, axis_name
    )
    assert aux == batch["x"].shape[0]
    params = jax.tree.map(lambda p, g: p - RATE * g, params, grads)
    return (params, state), (losses_T, weights_T)

  (params, state), seen = jax.lax.scan(step, (params, weighting.init(params)), (batches, keys))
  return params, *seen, weighting.weights(state)


KEYS = jax.random.split(jax.random.key(3), STEPS)


class Adam:
  """Adam (Kingma and Ba 2015), algorithm 1."""

  def __init__(self, rate):
    self.rate, self.m, self.v, self.t = rate, 0.0, 0.0, 0

  def move(self, g):
    self.t += 1
    self.m = 0.9 * self.m + 0.1 * g
    self.v = 0.999 * self.v + 0.001 * g**2
    mean, square = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
    return -self.rate * mean / (np.sqrt(square) + 1e-8)


class Weights:
  """What each method does, a step at a time: `now` are its weights without the base ones."""

  def __init__(self, name, tasks):
    self.name, self.now = name, np.ones(tasks)
    self.s, self.history, self.epoch = np.zeros(tasks), [], []
    self.c = np.array([0.5 if kind == "regression" else 1.0 for kind in KINDS])
    if name == "uncertainty":
      self.now = self.c
    self.adam = Adam(SETTINGS[name].get("learning_rate"))

  def after(self, losses, shared):
    """Given the weighted losses and their gradients (T, P) of the shared parameters."""
    tasks = len(losses)
    if self.name == "uncertainty":
      self.s = self.s + self.adam.move(0.5 - self.c * np.exp(-self.s) * losses)
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
      self.now = self.now + self.adam.move(slope)
      self.now = self.now * tasks / self.now.sum()


def task_gradients(batch, u, v, scales):
  """Losses (T,) and gradients (T, P) of all parameters, flat; the first four are shared."""
  tasks = len(v)
  errors = (batch["x"] @ u)[:, None] * scales + batch["z"] @ v.T - batch["y"]
  flat = np.zeros((tasks, 4 + v.size))
  for k in range(tasks):
    flat[k, :4] = (2 * errors[:, k : k + 1] * scales[k] * batch["x"]).mean(0)
    flat[k, 4 + 2 * k : 6 + 2 * k] = (2 * errors[:, k : k + 1] * batch["z"]).mean(0)
  return (errors**2).mean(0), flat


def to_float64(*trees):
  return jax.tree.map(lambda a: np.asarray(a, np.float64), trees)


@pytest.mark.parametrize("name", ["static", "uncertainty", "dwa", "gradnorm"])
def test_steps_equal_numpy_in_float64(name):
  given = problem(reference.fresh_rng())
  run = jax.jit(lambda *given: train(create(name), *given, KEYS))
  params, losses_SxT, weights_SxT, last_T = run(*given)
  batches, start, scales = to_float64(*given)
  u, v = start["experts"]["u"], start["towers"]["v"]
  weights = Weights(name, 3)
  for step in range(STEPS):
    losses, flat = task_gradients({k: a[step] for k, a in batches.items()}, u, v, scales)
    np.testing.assert_allclose(losses_SxT[step], losses, rtol=1e-3)
    np.testing.assert_allclose(weights_SxT[step], weights.now * BASE, rtol=1e-3)
    total = (weights.now * BASE) @ flat
    base = np.array(BASE)
    weights.after(losses * base, flat[:, :4] * base[:, None])
    u = u - RATE * (total[:4] + 0.2 * u)
    v = v - RATE * total[4:].reshape(v.shape)
  np.testing.assert_allclose(last_T, weights.now * BASE, rtol=1e-3)
  np.testing.assert_allclose(params["experts"]["u"], u, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(params["towers"]["v"], v, rtol=1e-3, atol=1e-4)
  moved = name != "static"
  assert (np.abs(np.asarray(last_T) - weights_SxT[0]).max() > 1e-3) == moved


def one_gradient(weighting, losses_fn, params, key=KEYS[0]):
  run = lambda params, key: weighting.gradient(losses_fn, params, weighting.init(params), key)[0]
  return jax.jit(run)(params, key)


def surgery(flat, orders):
  """Algorithm 1 of PCGrad with a given order of the other tasks for each."""
  total = 0.0
  for i, order in enumerate(orders):
    g = flat[i].copy()
    for j in order:
      if g @ flat[j] < 0:
        g -= g @ flat[j] / (flat[j] @ flat[j]) * flat[j]
    total = total + g
  return total


def test_pcgrad_equals_numpy_and_draws_its_orders():
  # Gradients of linear losses are their coefficients, which conflict in every pair.
  rng = reference.fresh_rng()
  flat = rng.normal(size=(3, 7))
  flat -= 1.5 * flat.mean(0)
  matrix = jnp.float32(flat)
  losses_fn = lambda params: (matrix[:, :4] @ params["a"] + matrix[:, 4:] @ params["b"], (0.0, ()))
  params = {"a": jnp.zeros(4), "b": jnp.zeros(3)}
  weighting = create("pcgrad")
  scaled = flat * np.array(BASE)[:, None]
  others = [itertools.permutations([j for j in range(3) if j != i]) for i in range(3)]
  possible = [surgery(scaled, orders) for orders in itertools.product(*others)]
  keys = jax.random.split(jax.random.key(0), 200)
  found = jax.jit(jax.vmap(lambda key: one_gradient(weighting, losses_fn, params, key)))(keys)
  found = np.concatenate([found["a"], found["b"]], 1)
  distances = np.abs(found[:, None] - np.stack(possible)[None]).max(-1)
  assert distances.min(1).max() < 1e-4
  # All orders come about: every different outcome is met by some key.
  assert distances.min(0).max() < 1e-4


def test_pcgrad_of_two_conflicting_tasks_adds_the_penalty():
  given = problem(reference.fresh_rng(), tasks=2)
  batches, params, scales = given
  # One shared direction pulled both ways.
  scales = np.float32([1.0, -1.0])
  batch = {k: a[0] for k, a in batches.items()}
  batch["y"] = np.stack([batch["x"].sum(1), batch["x"].sum(1)], 1) * 9
  grads = one_gradient(create("pcgrad", (1.0, 3.0), KINDS[:2]), losses_of(batch, scales), params)
  batch, params, scales = to_float64(batch, params, scales)
  u, v = params["experts"]["u"], params["towers"]["v"]
  _, flat = task_gradients(batch, u, v, scales)
  flat *= np.array([[1.0], [3.0]])
  assert flat[0] @ flat[1] < 0
  expected = surgery(flat, [[1], [0]])
  np.testing.assert_allclose(grads["experts"]["u"], expected[:4] + 0.2 * u, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(grads["towers"]["v"].ravel(), expected[4:], rtol=1e-3, atol=1e-3)


def test_gradients_that_agree_are_left_alone():
  matrix = jnp.float32(np.abs(reference.fresh_rng().normal(size=(3, 5))))
  losses_fn = lambda params: (matrix @ params["a"], (0.0, ()))
  params = {"a": jnp.zeros(5)}
  plain = one_gradient(create("static"), losses_fn, params)
  np.testing.assert_allclose(
    one_gradient(create("pcgrad"), losses_fn, params)["a"], plain["a"], rtol=1e-5
  )


@pytest.mark.parametrize("name", SETTINGS)
def test_several_devices_equal_one(name):
  batches, params, scales = problem(reference.fresh_rng())
  alone = jax.jit(lambda *given: train(create(name), *given, KEYS))(batches, params, scales)
  halves = jax.tree.map(lambda a: a.reshape(STEPS, 2, ROWS // 2, -1).swapaxes(0, 1), batches)
  run = jax.pmap(
    lambda batches: train(create(name), batches, params, scales, KEYS, "devices"),
    axis_name="devices",
    devices=jax.devices()[:2],
  )
  for device in range(2):
    together = jax.tree.map(lambda a, device=device: a[device], run(halves))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), together, alone
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_members_with_settings_of_their_own_equal_runs_alone(name):
  given = problem(reference.fresh_rng())
  values = {k: np.float32([v, 2 * v]) for k, v in SETTINGS[name].items() if k != "name"}
  bases = np.float32([BASE, BASE[::-1]])

  def run(settings, base):
    settings = {"name": name, **settings}
    weighting = task_weighting.create_task_weighting(settings, base, KINDS, STEPS_PER_EPOCH)
    return train(weighting, *given, KEYS)

  members = jax.jit(jax.vmap(run))(values, bases)
  for m in range(2):
    own, base = {k: float(v[m]) for k, v in values.items()}, tuple(map(float, bases[m]))
    alone = jax.jit(lambda own=own, base=base: run(own, base))()
    jax.tree.map(
      lambda a, b, m=m: np.testing.assert_allclose(a[m], b, rtol=1e-3, atol=1e-4), members, alone
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_one_task_is_trained_as_it_is(name):
  batches, params, scales = problem(reference.fresh_rng(), tasks=1)
  run = lambda name: jax.jit(lambda *given: train(create(name, (1.0,), ("binary",)), *given, KEYS))
  ends = [run(n)(batches, params, scales) for n in (name, "static")]
  if name != "uncertainty":  # It weighs one task too.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *ends)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ends[0]))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_task_without_loss_leaves_everything_finite(name):
  # No row of a batch may have its label, and its loss is 0 then.
  batches, params, scales = problem(reference.fresh_rng())

  def losses_fn(params):
    losses_T, rest = losses_of({k: a[0] for k, a in batches.items()}, scales)(params)
    return losses_T * jnp.float32([1, 0, 1]), rest

  weighting = create(name)
  state = weighting.init(params)
  step = jax.jit(lambda state, key: weighting.gradient(losses_fn, params, state, key))
  for key in KEYS:
    grads, _, _, state = step(state, key)
  for leaf in jax.tree.leaves((grads, state, weighting.weights(state))):
    assert np.isfinite(leaf).all()


def test_gradnorm_evens_out_what_tasks_do_to_shared_parameters():
  # Two tasks whose gradients differ a thousandfold and never change: norms meet, at alpha 0.
  matrix = jnp.float32([[10.0, 0.0], [0.0, 0.01]])
  losses_fn = lambda params: (matrix @ params["experts"] + 1.0, (0.0, ()))
  settings = {"name": "gradnorm", "alpha": 0.0, "learning_rate": 0.01}
  weighting = task_weighting.create_task_weighting(settings, (1.0, 1.0), KINDS[:2], 1)
  params = {"experts": jnp.zeros(2), "towers": jnp.zeros(3)}

  def step(state, key):
    return weighting.gradient(losses_fn, params, state, key)[3], None

  state, _ = jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(KEYS[0], 1000)))(
    weighting.init(params)
  )
  weights = weighting.weights(state)
  np.testing.assert_allclose(weights.sum(), 2.0, rtol=1e-5)
  assert weights[0] < 0.05 < 1.9 < weights[1]


@pytest.mark.parametrize(
  ("settings", "base", "message"),
  [
    ({}, BASE, r"config\.loss\.weighting has no name; known: static"),
    ({"name": "gradnrom"}, BASE, r"weighting\.name is 'gradnrom', .*did you mean 'gradnorm'"),
    ({"name": "dwa", "temprature": 1.0}, BASE, "no setting of 'dwa'; did you mean 'temperature'"),
    ({"name": "static", "alpha": 1.0}, BASE, "alpha is no setting of 'static'; known: none"),
    ({"name": "dwa"}, BASE, r"weighting\.temperature is missing; 'dwa' needs temperature"),
    ({"name": "dwa", "temperature": 0.0}, BASE, "temperature is 0.0; must be a number above 0"),
    ({"name": "uncertainty", "learning_rate": "x"}, BASE, "learning_rate is x; must be a number"),
    ({"name": "uncertainty", "learning_rate": float("nan")}, BASE, "is nan; must be a number"),
    ({**SETTINGS["gradnorm"], "alpha": -1.0}, BASE, "alpha is -1.0; must be a number of at least"),
    (SETTINGS["gradnorm"], (1.0, 0.0, 1.0), "'gradnorm' balances tasks, each of which needs"),
    (SETTINGS["uncertainty"], jnp.float32([0, 1, 1]), "'uncertainty' balances tasks"),
  ],
)
def test_wrong_settings_say_what_was_meant(settings, base, message):
  with pytest.raises(UserError, match=message):
    task_weighting.create_task_weighting(settings, base, KINDS, 3)


def test_every_method_documents_its_paper_and_settings():
  for name, (method, keys) in task_weighting.METHODS.items():
    assert name == "static" or "https://" in method.__doc__
    for key in keys:
      assert f"{key}:" in method.__doc__
