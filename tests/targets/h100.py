"""An H100 that programs are compiled for. The machine needs the CUDA compiler, not the card."""

import contextlib
from typing import Any

import jax
import numpy as np
import pytest

DESCRIPTION = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def sharding() -> Any:
    """A single H100, for `jax.ShapeDtypeStruct`. Skips the test without the CUDA compiler."""
    pytest.importorskip("jax_plugins.xla_cuda12", reason="needs requirements-targets.txt")
    from jax._src import xla_bridge
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    if jax.config.jax_platforms != "cpu":
        pytest.skip("needs JAX_PLATFORMS=cpu: otherwise JAX looks for a card")
    # JAX_PLATFORMS=cpu leaves the plugin unregistered.
    with contextlib.suppress(RuntimeError):  # It may be registered already.
        xla_bridge.discover_pjrt_plugins()
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=DESCRIPTION, topology="1x1x1"
    )
    return NamedSharding(Mesh(np.array(topology.devices), ("device",)), PartitionSpec())
