"""mmoe_jax, each batch shared by a device for every core."""

from benchmarks.contenders import protocol
from benchmarks.contenders.ours import Ours
from mmoe_jax import cache, parallel

if __name__ == "__main__":
  parallel.use_all_cores()
  cache.keep_programs()
  protocol.serve(Ours)
