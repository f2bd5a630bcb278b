"""Training: a step, an epoch, a run, a population, a search."""
