"""Independent float64 NumPy implementations, from the papers."""

import numpy as np


def fresh_rng():
  """Returns a generator with a new seed, which pytest prints if the test fails."""
  seed = int(np.random.SeedSequence().entropy % 2**32)
  print(f"np.random.default_rng({seed})")
  return np.random.default_rng(seed)


def relu(x):
  return np.maximum(x, 0)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def dense(params, x, member=None):
  kernel, bias = params["kernel"], params.get("bias", 0.0)
  if member is not None:
    kernel = kernel[member]
    bias = bias[member] if np.ndim(bias) else bias
  return x @ kernel + bias


def embed(params, sizes, dims, ids, numeric):
  """Returns embeddings of all features by width, then the numbers."""
  parts = []
  for dim in sorted(set(dims)):
    offset = 0
    for f, (size, own) in enumerate(zip(sizes, dims, strict=True)):
      if own == dim:
        parts.append(params[f"table_{dim}"][offset + ids[:, f].astype(int)])
        offset += size
  return np.concatenate([*parts, numeric], 1)


def mmoe(params, sizes, dims, experts, tasks, ids, numeric):
  """Returns logits (B, T) of an MMoE with one hidden layer in experts and towers, and gates."""
  x = embed(params["embedding"], sizes, dims, ids, numeric)
  f = [relu(dense(params["experts"]["Dense_0"], x, i)) for i in range(experts)]
  logits, gates = [], []
  for k in range(tasks):
    g = softmax(dense(params["gating"]["Dense_0"], x, k))
    mixed = sum(g[:, i : i + 1] * f[i] for i in range(experts))
    h = relu(dense(params["towers"]["Dense_0"], mixed, k))
    logits.append(dense(params["towers"]["Dense_1"], h, k)[:, 0])
    gates.append(g)
  return np.stack(logits, 1), np.stack(gates)


def auc(scores, labels, weights):
  """Computes P(positive above negative) + P(equal) / 2 over all pairs."""
  scores, weights = scores.astype(np.float64), weights.astype(np.float64)
  p, n = labels == 1, labels == 0
  higher = (scores[p][:, None] > scores[n][None]) + 0.5 * (scores[p][:, None] == scores[n][None])
  pairs = weights[p][:, None] * weights[n][None]
  return (higher * pairs).sum() / pairs.sum()


def ftrl(w, gradients, alpha, beta, l1, l2):
  """Computes FTRL-proximal by coordinate, as in algorithm 1, with z that returns w."""
  w = np.array(w, np.float64)
  z = -w * (beta / alpha + l2) - np.sign(w) * l1
  n = np.zeros_like(w)
  for g in gradients:
    for i in range(len(w)):
      sigma = (np.sqrt(n[i] + g[i] ** 2) - np.sqrt(n[i])) / alpha
      z[i] += g[i] - sigma * w[i]
      n[i] += g[i] ** 2
      if abs(z[i]) <= l1:
        w[i] = 0
      else:
        w[i] = -(z[i] - np.sign(z[i]) * l1) / ((beta + np.sqrt(n[i])) / alpha + l2)
  return w
