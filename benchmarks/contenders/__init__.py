"""Who takes part in train_throughput.py: processes that train an epoch whenever they are told to.

All train an MMoE of 8 experts of 16, towers of 8, embeddings of 4 for 32 features, 7 numbers and
two tasks by Adam on the same arrays, and say what they predict for the same test rows.
torch-rechub's has batch norm after each hidden layer and cannot do without.
"""
