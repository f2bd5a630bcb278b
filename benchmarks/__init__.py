"""Benchmarks: speed only."""
