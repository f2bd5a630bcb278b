"""Tests. Folders mirror the packages."""

import importlib.metadata
import os

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # Of the repository.
# Tests compile much and run few rows; these options halve the time of compiling.
FAST_COMPILE = "--xla_backend_optimization_level=0"
# Newer versions end with an error for an option that they do not have.
if importlib.metadata.version("jaxlib").split(".")[:2] == ["0", "10"]:
  FAST_COMPILE += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
