"""Evaluation: metrics of a split and statistics of gates."""
