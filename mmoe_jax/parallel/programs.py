"""Compilation of programs, with the CPU's faster options."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

# Small matrices: threads cost more than they gain, Eigen's products are faster than YNNPACK's, and
# AVX-512 is off by default. Measured in benchmarks/README.md.
_CPU_OPTIONS = {
  "xla_cpu_multi_thread_eigen": False,
  "xla_cpu_experimental_ynn_fusion_type": "",
  "xla_cpu_prefer_vector_width": 512,
}


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
  """Compiles a function for one device like `jax.jit`, with the CPU's faster options."""
  return jax.jit(function, compiler_options={**options, **cpu_options()} or None)


def jit_once(function: Callable[..., Any]) -> Callable[..., Any]:
  """Compiles a function that runs once: like `jit`, without optimisation, which costs seconds."""
  return jit(function, xla_backend_optimization_level=0)


@functools.cache
def cpu_options() -> dict[str, Any]:
  """Returns XLA's options for our programs on a CPU, as far as this version supports them."""
  if jax.devices()[0].platform != "cpu":
    return {}
  lowered = jax.jit(lambda x: x).lower(np.float32(0))
  supported = {}
  for name, value in _CPU_OPTIONS.items():
    # They are not part of JAX's interface; other versions may not have them.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      lowered.compile(compiler_options={name: value})
      supported[name] = value
  return supported


def compile_for(mapped: Any, *arguments: Any) -> Any:
  """Compiles a jitted or mapped function for arguments, or their shapes."""
  return mapped.lower(*arguments).compile(compiler_options=cpu_options() or None)
