"""Contenders of train_throughput.py: processes that train an epoch on request.

All train an MMoE of 8 experts of 16, towers of 8, embeddings of 4 for 32 features, 7 numbers and
two tasks by Adam on the same arrays, and predict the same test rows. torch-rechub's always has
batch norm after each hidden layer.
"""
