"""The settings of each backend: layout of keys and values, transposed kernels, compiler options."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from pid_jax import sharding
from pid_jax.backends.layouts import ATTENDED_FIRST, ATTENDED_LAST, HeadsMerged, Layout


@dataclasses.dataclass(frozen=True)
class BackendSettings:
    """The settings of one backend."""

    document_layout: Layout = ATTENDED_LAST
    """The layout of the keys and values of documents."""
    cache_layout: Layout = ATTENDED_LAST
    """The layout of those of the decoder's tokens, which decoding writes to the cache."""
    document_kernel: str | None = None
    """The attention of encoders, and that of decoders in training. "pallas": the kernels of
    `attention_kernels.py`. "cudnn": cuDNN's. "xla": blocks of queries. None: blocks of queries, and
    whole scores in training."""
    packs_prompts: bool = False
    """Whether attention without dropout is `packed_attention.packed_attention`."""
    writes_first: bool = False
    """Whether a decode step writes new keys and values to the cache before it attends to it."""
    transposes: bool = False
    """Whether decoding also reads transposed kernels, see `matmul.matmul`."""
    casts_params: bool = False
    """Whether decoding has kernels and embeddings in the model's dtype: XLA casts them once per
    call of a program otherwise."""
    int8_barrier: bool = True
    """Whether the products of `int8.py` need a barrier against the conversion of all kernels before
    the loop of decode steps."""
    contracts_heads: bool = False
    """Whether the product after attention reads its heads without joining them in memory."""
    joined_projections: bool = False
    """Whether decoding has the parameters of `projections.py`."""
    decode_kernels: bool = False
    """Whether decode steps run the Pallas kernels of `decode_attention.py`, `cache_update.py` and
    `token_selection.py`, which are for a single device."""
    recomputes_elementwise: bool = False
    """Whether the backward pass computes what is between the products of a feed-forward again,
    instead of storing it. XLA does this on its own for TPUs."""
    compiler_options: Mapping[str, bool | int | str] = dataclasses.field(default_factory=dict)
    """XLA options for every program."""
    options_of_program: Mapping[str, Mapping[str, bool | int | str]] = dataclasses.field(
        default_factory=dict
    )
    """Further XLA options for one program, by the name of its `programs.CompiledFunction`."""


BY_PLATFORM: dict[str, BackendSettings] = {
    "cpu": BackendSettings(
        transposes=True,
        compiler_options={
            # Without this option XLA copies the key/value cache in each decode step. With it,
            # decoding takes 0.91 of the time (T5-base, a document of 1,536 tokens, 4 prompts).
            # The option is off by default in jaxlib 0.10.
            "xla_cpu_copy_insertion_use_region_analysis": True,
        },
    ),
    "gpu": BackendSettings(
        # The kernels read whole keys, and XLA's products read either layout.
        document_layout=ATTENDED_FIRST,
        cache_layout=ATTENDED_FIRST,
        document_kernel="cudnn",
        casts_params=True,
        joined_projections=True,
        decode_kernels=True,
        recomputes_elementwise=True,
        options_of_program={
            # The first pass pads the rows of every product to a multiple of 8 and slices the
            # result: 9 kernels a layer with 4 prompts. The second joins products of one input, and
            # for that copies their kernels in every step.
            "decode": {"xla_disable_hlo_passes": "cublas-pad-for-gemms,dot-merger"},
        },
    ),
    "tpu": BackendSettings(
        cache_layout=HeadsMerged(),
        document_kernel="pallas",
        packs_prompts=True,
        writes_first=True,
        casts_params=True,
        # The compiler converts kernels within products. The barrier would cost 4 to 19 % of the
        # estimated cycles of a decode step (T5-base on a v5e).
        int8_barrier=False,
        contracts_heads=True,
        joined_projections=True,
    ),
}


_COMPILING_FOR: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "compiling_for", default=None
)
_DEVICES: contextvars.ContextVar[int] = contextvars.ContextVar("devices", default=1)


@contextlib.contextmanager
def compiling_for(
    platform: str | None, devices: int | None = None, mesh: sharding.AnyMesh | None = None
) -> Iterator[None]:
    """What is traced in this context has the settings of a platform: "cpu", "gpu" or "tpu".

    devices: the number of devices that the arrays are split over. mesh: that of these devices,
    see `sharding.constrain`. None changes nothing.
    `programs.CompiledFunction` traces in the context of the devices that its arguments are on, so
    that a program can be compiled for devices that this machine lacks.
    """
    token = _COMPILING_FOR.set(platform or _COMPILING_FOR.get())
    count = _DEVICES.set(devices or _DEVICES.get())
    try:
        with sharding.tracing_for(mesh or sharding.current_mesh()):
            yield
    finally:
        _DEVICES.reset(count)
        _COMPILING_FOR.reset(token)


def current_platform() -> str:
    """The platform of `compiling_for`, otherwise `jax.default_backend()`."""
    return _COMPILING_FOR.get() or jax.default_backend()


class Placement(NamedTuple):
    """The devices that arrays are on."""

    platform: str | None
    """"cpu", "gpu" or "tpu". None if the arrays are on no device, such as those of NumPy."""
    devices: int
    """The number of devices, at least 1."""
    mesh: sharding.AnyMesh | None = None
    """The mesh of the devices. None for one device, and for arrays without a mesh."""


def placement_of(*trees: Any) -> Placement:
    """The placement of trees of arrays or shapes, by the first array of each tree.

    Only the first that is on a device, because every call of a program asks, and a model has
    hundreds of arrays. If trees are on different numbers of devices, the largest number counts.
    """
    platform, devices, mesh = None, 1, None
    for tree in trees:
        of_tree = _first_sharding(tree)
        if of_tree is not None:
            device_set = of_tree.device_set
            platform = platform or next(iter(device_set)).platform
            if len(device_set) > devices:
                devices = len(device_set)
                mesh = of_tree.mesh if isinstance(of_tree, NamedSharding) else None
    return Placement("gpu" if platform in ("cuda", "rocm") else platform, devices, mesh)


def _first_sharding(tree: Any) -> Any:
    """The sharding of the first array of a tree that has one. None if no array has one."""
    children: Iterable[Any]
    if isinstance(tree, Mapping):
        # Not by `jax.tree.leaves`: flattening all parameters takes 50 µs.
        children = tree.values()
    elif isinstance(tree, tuple | list):
        children = tree
    elif hasattr(tree, "sharding") or isinstance(tree, np.ndarray):
        return getattr(tree, "sharding", None)
    else:
        return next((x.sharding for x in jax.tree.leaves(tree) if hasattr(x, "sharding")), None)
    return next(filter(None, map(_first_sharding, children)), None)


def backend_settings() -> BackendSettings:
    """The settings of `current_platform()`. Tracing reads them.

    On several devices without what is for one: the Pallas kernels of decode steps, and joined
    kernels, whose parts would be on other devices than the heads they project to. The kernels of
    `attention_kernels.py` need the mesh, by which they divide documents and heads.
    """
    settings = BY_PLATFORM.get(current_platform(), BackendSettings())
    if _DEVICES.get() > 1:
        kernel = settings.document_kernel
        if kernel == "pallas" and sharding.current_mesh() is None:
            kernel = "xla"
        return dataclasses.replace(
            settings, document_kernel=kernel, joined_projections=False, decode_kernels=False
        )
    return settings


def compiler_options(platform: str) -> dict[str, bool | int | str]:
    """XLA options for programs of this platform. A jaxlib may not know all of them."""
    return dict(BY_PLATFORM.get(platform, BackendSettings()).compiler_options)


def options_of_program(platform: str, name: str) -> dict[str, bool | int | str]:
    """XLA options for the program of this name, besides `compiler_options`."""
    return dict(BY_PLATFORM.get(platform, BackendSettings()).options_of_program.get(name, {}))
