"""Memory and rates of each chip, from the manufacturers' data sheets and from libtpu."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One device as JAX sees it: a TPU chip or a GPU."""

    name: str
    platform: str
    """"tpu" or "gpu"."""
    memory_bytes: int
    """High-bandwidth memory that a program may use: of a TPU, what libtpu names when it refuses a
    program, which is less than the data sheet's."""
    flops_per_second: float
    """Peak rate of bfloat16 products, without sparsity."""
    bytes_per_second: float
    """Peak bandwidth of the memory."""
    link_bytes_per_second: float
    """Peak bandwidth to another device in one direction: one ICI link, or NVLink in all."""
    clock_hertz: float | None
    """Of a TPU's compute units: peak rate / (matrix units x rows x columns x 2). It turns the
    compiler's cycles into seconds. None for a GPU, whose compiler reports no cycles."""
    gathers_on_sparse_core: bool = False
    """Whether libtpu moves gathers, such as those of embeddings, to a TPU's SparseCores."""


_GIB = 1 << 30

CHIPS = {
    # cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 32 GiB at 1,200 GB/s, two cores of 4 matrix units
    # of 128 x 128 each.
    "v4": Chip("TPU v4", "tpu", int(30.75 * _GIB), 275e12, 1.2e12, 45e9, 1.05e9),
    # cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB at 819 GB/s, one core of 4 matrix units.
    "v5e": Chip("TPU v5e", "tpu", int(15.75 * _GIB), 197e12, 0.819e12, 45e9, 1.5e9),
    # cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GB at 2,765 GB/s, two cores of 4 matrix units.
    "v5p": Chip("TPU v5p", "tpu", int(95.73 * _GIB), 459e12, 2.765e12, 90e9, 1.75e9, True),
    # cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB at 1,640 GB/s, units of 256 x 256.
    "v6e": Chip("TPU v6e", "tpu", int(31.24 * _GIB), 918e12, 1.64e12, 90e9, 1.75e9, True),
    # NVIDIA H100 data sheet, SXM5: 989 TFLOP/s without sparsity, 80 GB at 3.35 TB/s, NVLink with
    # 900 GB/s for both directions. The memory is that of `H100_TARGET_CONFIG`.
    "h100": Chip("H100 SXM", "gpu", 84_942_979_072, 989e12, 3.35e12, 450e9, None),
}

_PEAK_FLOPS_PER_SECOND = {
    "TPU v4": CHIPS["v4"].flops_per_second,
    "TPU v5 lite": CHIPS["v5e"].flops_per_second,
    "TPU v5e": CHIPS["v5e"].flops_per_second,
    "TPU v5": CHIPS["v5p"].flops_per_second,
    "TPU v5p": CHIPS["v5p"].flops_per_second,
    "TPU v6 lite": CHIPS["v6e"].flops_per_second,
    "TPU v6e": CHIPS["v6e"].flops_per_second,
    # NVIDIA data sheets, bfloat16 on tensor cores without sparsity.
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": CHIPS["h100"].flops_per_second,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}
"""By `device_kind` of JAX, of which a GPU's name is the first words."""


def peak_flops_per_second(device_kind: str) -> float | None:
    """The peak rate of bfloat16 products of a device, by JAX's name. None if it is not known."""
    names = [name for name in _PEAK_FLOPS_PER_SECOND if _names(name, device_kind)]
    return _PEAK_FLOPS_PER_SECOND[max(names, key=len)] if names else None


def _names(name: str, device_kind: str) -> bool:
    """Whether the kind is this name, or for a GPU this name with the size of its memory."""
    if device_kind.startswith("TPU"):
        return name == device_kind
    return re.match(rf"{re.escape(name)}(?![A-Za-z0-9])", device_kind) is not None


KERNEL_SHARE_OF_PEAK = 0.5
"""Assumed rate of the products in a Pallas kernel of a TPU, of the peak: heads of 64 numbers fill
half of a matrix unit."""

CYCLES_PER_EXPONENTIAL = 2.5 / 1024
"""Assumed cycles of a TPU's vector unit for each exponential in a Pallas kernel, with the other
operations on a score. The sum with the products is within a quarter of the instruction bundles that
the compiler schedules for the attention kernels of a T5-base training step."""

SECONDS_PER_KERNEL = 2.5e-6
"""Assumed least time of a GPU kernel, from one launch to the next within a stream."""

JAX_GPU_FRACTION = 0.75
"""Share of a GPU's memory that JAX allocates unless XLA_PYTHON_CLIENT_MEM_FRACTION says more."""

H100_TARGET_CONFIG = """\
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 patch: 0 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  device_memory_size: 84942979072
  memory_bandwidth: 3352320000000
  clock_rate_ghz: 1.98
  l2_cache_size: 52428800
  core_count: 132
  fpus_per_core: 128
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""
"""An H100 SXM as XLA's `GpuTargetConfigProto`: the properties that the CUDA driver reports for this
card, see "Technical specifications per compute capability" (9.0) in the CUDA C++ programming guide
and the NVIDIA H100 architecture white paper. `dnn_version_info` is that of cuDNN 9.10."""
