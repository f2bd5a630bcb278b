"""Multi-gate Mixture-of-Experts in JAX, on the UCI Census-Income (KDD) data."""
