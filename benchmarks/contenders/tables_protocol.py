"""Sizes that the contenders of benchmarks.vocabularies share."""

FEATURES = 8
DIM = 16
TASKS = 2
RATE = 0.01  # Learning rate of the tables.
