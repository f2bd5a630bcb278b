"""Configs: settings of runs, one recipe per file."""
