"""All models in float64 NumPy, from the papers, with loops over tasks and experts.

Each takes its parameters, its settings and the number of tasks, and returns logits, gates_TxBxE
or None, and penalties by name, without dropout.
"""

import itertools

import numpy as np

from tests.reference import dense, relu, softmax


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def mlp(params, x, member=None, out=False):
  """Computes dense layers with ReLU, except for the last one if it is an output."""
  for i in range(len(params)):
    x = dense(params[f"Dense_{i}"], x, member)
    x = x if out and i == len(params) - 1 else relu(x)
  return x


def tower(params, task, h):
  if "head_0" in params:
    return dense(params[f"head_{task}"], mlp(params["towers"], h, task))
  return mlp(params["towers"], h, task, out=True)


def towers(params, inputs):
  return np.concatenate([tower(params, k, h) for k, h in enumerate(inputs)], 1)


def single_task(params, settings, tasks, embed):
  del settings
  bottoms = [mlp(params["bottoms"], embed(params["embedding"], k), k) for k in range(tasks)]
  return towers(params, bottoms), None, {}


def shared_bottom(params, settings, tasks, embed):
  del settings
  h = mlp(params["bottom"], embed(params["embedding"]))
  return towers(params, [h] * tasks), None, {}


def leaves(tree):
  return [x for t in tree.values() for x in leaves(t)] if isinstance(tree, dict) else [tree]


def l2_constrained(params, settings, tasks, embed):
  logits, _, _ = single_task(params, settings, tasks, embed)
  own = leaves({k: v for k, v in params.items() if "head" not in k})
  pairs = itertools.combinations(range(tasks), 2)
  penalty = sum(((p[j] - p[k]) ** 2).sum() for j, k in pairs for p in own)
  return logits, None, {"l2": settings["l2_strength"] * penalty}


def cross_stitch(params, settings, tasks, embed):
  h = [embed(params["embedding"])] * tasks
  for i in range(len(settings["bottom_hidden"])):
    own = [mlp(params[f"layer_{i}"], h[k], k) for k in range(tasks)]
    alpha = params[f"stitch_{i}"]
    h = [sum(alpha[k, j] * own[j] for j in range(tasks)) for k in range(tasks)]
  return towers(params, h), None, {}


def tensor_factorization(params, settings, tasks, embed):
  h = [embed(params["embedding"])] * tasks
  for i in range(len(settings["bottom_hidden"])):
    p = params[f"layer_{i}"]
    factors = (p["kernel_inputs"], p["kernel_units"], p["kernel_tasks"])
    kernels = np.einsum("abc,ma,nb,kc->kmn", p["kernel_core"], *factors)
    h = [relu(h[k] @ kernels[k] + p["bias"][k]) for k in range(tasks)]
  return towers(params, h), None, {}


def mix(gates, experts):
  return [sum(g[:, i : i + 1] * f for i, f in enumerate(experts)) for g in gates]


def omoe(params, settings, tasks, embed):
  x = embed(params["embedding"])
  experts = [mlp(params["experts"], x, i) for i in range(settings["experts"])]
  gates = [softmax(dense(params["gating"]["Dense_0"], x))] * tasks
  return towers(params, mix(gates, experts)), np.stack(gates), {}


def mmoe(params, settings, tasks, embed):
  x = embed(params["embedding"])
  count = settings["experts"]
  experts = [mlp(params["experts"], x, i) for i in range(count)]
  gates = []
  for k in range(tasks):
    logits = dense(params["gating"]["Dense_0"], x, k)
    exclusive = round(settings.get("exclusivity", 0.0) * count)
    for i in range(exclusive):
      if i % tasks != k:
        logits[:, i] = -np.inf
    gates.append(softmax(logits))
  return towers(params, mix(gates, experts)), np.stack(gates), {}


def ple(params, settings, tasks, embed):
  own, shared = settings["task_experts"], settings["shared_experts"]
  inputs = [embed(params["embedding"])] * (tasks + 1)
  levels = settings.get("levels", 1)
  for level in range(1, levels + 1):
    stack = params[f"experts_{level}"]
    of_task = [[mlp(stack, inputs[k], k * own + i) for i in range(own)] for k in range(tasks)]
    of_all = [mlp(stack, inputs[tasks], tasks * own + i) for i in range(shared)]
    outputs, gates = [], []
    for k in range(tasks):
      g = softmax(dense(params[f"gating_{level}"]["Dense_0"], inputs[k], k))
      outputs += mix([g], of_task[k] + of_all)
      whole = np.zeros((len(g), tasks * own + shared))
      whole[:, k * own : (k + 1) * own] = g[:, :own]
      whole[:, tasks * own :] = g[:, own:]
      gates.append(whole)
    if level < levels:
      g = softmax(dense(params[f"shared_gating_{level}"]["Dense_0"], inputs[tasks]))
      outputs += mix([g], list(itertools.chain(*of_task, of_all)))
    inputs = outputs
  return towers(params, inputs), np.stack(gates), {}


def aitm(params, settings, tasks, embed):
  x = embed(params["embedding"])
  q = [mlp(params["bottoms"], x, k) for k in range(tasks)]
  z = [q[0]]
  for k in range(1, tasks):
    p = params[f"transfer_{k}"]
    passed = mlp(p["information"], z[-1])
    scores = [
      (dense(p["query"], u) * dense(p["key"], u)).sum(1) / np.sqrt(u.shape[1])
      for u in (passed, q[k])
    ]
    w = softmax(np.stack(scores, 1))
    z.append(w[:, :1] * dense(p["value"], passed) + w[:, 1:] * dense(p["value"], q[k]))
  logits = towers(params, z)
  p = sigmoid(logits)
  excess = sum(np.maximum(p[:, k] - p[:, k - 1], 0).mean() for k in range(1, tasks))
  return logits, None, {"calibrator": settings["calibrator_strength"] * excess}


def esmm(params, settings, tasks, embed):
  del settings
  x = embed(params["embedding"])
  z = towers(params, [mlp(params["bottoms"], x, k) for k in range(tasks)])
  p = np.cumprod(sigmoid(z), 1)
  return np.log(p / (1 - p)), None, {}


def snr_trans(params, settings, tasks, embed):
  x = embed(params["embedding"])
  count = settings["experts"]
  u = [mlp(params["experts_1"], x, i) for i in range(count)]
  is_open = 0
  for level, above in ((1, count), (2, tasks)):
    p = params[f"connections_{level}"]
    z = np.clip(sigmoid(p["log_alpha"]) * 1.2 - 0.1, 0, 1)
    v = [sum(z[i, j] * u[i] @ p["kernel"][i, j] for i in range(count)) for j in range(above)]
    u = [mlp(params["experts_2"], v[j], j) for j in range(count)] if level == 1 else v
    is_open += sigmoid(p["log_alpha"] - 2 / 3 * np.log(0.1 / 1.1)).sum()
  return towers(params, u), None, {"l0": settings["l0_strength"] * is_open}


def smooth_step(t, width):
  cubic = -2 / width**3 * t**3 + 3 / (2 * width) * t + 0.5
  return np.where(t <= -width / 2, 0, np.where(t >= width / 2, 1, cubic))


def dselect_k(params, settings, tasks, embed):
  x = embed(params["embedding"])
  count, selectors = settings["experts"], settings["selectors"]
  bits = int(np.ceil(np.log2(count)))
  experts = [mlp(params["experts"], x, i) for i in range(count)]
  gates, entropy, reachable = [], 0, 0
  for k in range(tasks):
    step = smooth_step(dense(params["gating"]["codes"], x, k), settings["smoothness"])
    share = softmax(dense(params["gating"]["mixture"], x, k))
    gate = 0
    for s in range(selectors):
      own = step[:, s * bits : (s + 1) * bits]
      r = np.ones((len(x), count))
      for e in range(count):
        for c in range(bits):
          r[:, e] *= own[:, c] if (e >> c) & 1 else 1 - own[:, c]
      gate = gate + share[:, s : s + 1] * r
      entropy -= (r * np.log(r + 1e-6)).sum(1).mean()
      reachable += (1 / (r.sum(1) + 1e-6)).mean()
    gates.append(gate)
  penalties = {"entropy": settings["entropy_strength"] * entropy}
  if count != 2**bits:
    penalties["reachable"] = reachable
  mixed, gates = mix(gates, experts), np.stack(gates)
  # Weight on codes without an expert is not reported.
  return towers(params, mixed), gates / gates.sum(-1, keepdims=True), penalties


MODELS = {
  "single_task": single_task,
  "shared_bottom": shared_bottom,
  "l2_constrained": l2_constrained,
  "cross_stitch": cross_stitch,
  "tensor_factorization": tensor_factorization,
  "omoe": omoe,
  "mmoe": mmoe,
  "cgc": ple,
  "ple": ple,
  "aitm": aitm,
  "esmm": esmm,
  "snr_trans": snr_trans,
  "dselect_k": dselect_k,
}
