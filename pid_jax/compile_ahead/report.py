"""The table and the JSON of a compiled request."""

import copy
from collections.abc import Iterator
from typing import Any

import jax

import pid_jax
from pid_jax.chips import JAX_GPU_FRACTION, SECONDS_PER_KERNEL
from pid_jax.compile_ahead.compilation import Compiled
from pid_jax.compile_ahead.estimate import Work, copies_outside, total
from pid_jax.compile_ahead.programs import TRAINING
from pid_jax.compile_ahead.timing import timing
from pid_jax.data.packing import PackedShape
from pid_jax.device_memory import size_text
from pid_jax.training import memory

CAVEAT = "Estimates of the compiler. Nothing was measured on an accelerator."


def to_json(compiled: Compiled) -> dict[str, Any]:
    """Every figure of the table. Of a decode program, `estimated_cycles` and so on are those of one
    decode step; `estimated_cycles` is None for a GPU. Bytes are those of each device, `flops` those
    of all. Training programs also have settings of the training config."""
    request, estimate = compiled.request, compiled.estimate
    shape, chip = request.shape, request.target.chip
    trains = request.program in TRAINING
    packed = request.arranged if isinstance(request.arranged, PackedShape) else None
    # Parameters are always float32 in training.
    weights = "float32" if trains else request.weights or request.dtype
    result: dict[str, Any] = {
        "note": CAVEAT,
        "target": str(request.target),
        "devices": compiled.devices,
        "program": request.program,
        "method": request.method,
        "dtype": request.dtype,
        "weights": weights,
        "model_type": request.config.model_type,
        "mesh": dict(request.mesh),
        "documents": shape.documents,
        "document_tokens": shape.document_tokens,
        "prompts": shape.prompts,
        "prompt_tokens": shape.prompt_tokens,
        "target_tokens": shape.target_tokens,
        "rows": packed and packed.rows,
        "row_tokens": packed and packed.row_tokens,
        "pid_jax": pid_jax.__version__,
        "jax": jax.__version__,
        "parameter_bytes": compiled.parameter_bytes,
        "optimizer_bytes": compiled.optimizer_bytes,
        "memory_bytes": chip.memory_bytes,
        "flops": compiled.flops,
        "fits": fits(compiled),
    }
    if trains:
        result |= {
            "remat": request.training.train.remat,
            "scan_layers": request.training.model.scan_layers,
            "micro_batches": request.training.train.micro_batches,
        }
    if estimate is None:
        return result | {
            "estimated_cycles": None,
            "kernels": None,
            "temporary_bytes": None,
            "argument_bytes": None,
            "needed_bytes": compiled.needed_bytes,
            "available_bytes": compiled.available_bytes,
        }
    if estimate.unreadable:
        return result | {
            "unreadable": estimate.unreadable,
            "estimated_cycles": None,
            "kernels": None,
            "temporary_bytes": estimate.memory.temporaries,
            "argument_bytes": estimate.memory.arguments,
            "output_bytes": estimate.memory.outputs,
            "aliased_bytes": estimate.memory.aliased,
            "needed_bytes": estimate.memory.total,
        }
    work, seconds = estimate.work, timing(estimate, chip, compiled.devices)
    is_tpu = chip.platform == "tpu"
    result |= {
        "estimated_cycles": work.cycles if is_tpu else None,
        "kernels": work.kernels,
        "bytes": work.bytes,
        "temporary_bytes": estimate.memory.temporaries,
        "argument_bytes": estimate.memory.arguments,
        "output_bytes": estimate.memory.outputs,
        "aliased_bytes": estimate.memory.aliased,
        "needed_bytes": estimate.memory.total,
        "seconds": {
            "estimate": seconds.seconds,
            "products": seconds.products,
            "memory": seconds.memory,
            "collectives": seconds.collectives,
            "cycles": seconds.cycles,
            "kernels": seconds.kernels,
        },
        "share_of_peak": seconds.share_of_peak,
        "parts": {name: _work(one, is_tpu) for name, one in estimate.parts.items()},
        "collectives": {name: _work(one, is_tpu) for name, one in estimate.collectives.items()},
        "kernels_by_kind": dict(estimate.kinds),
    }
    if estimate.outside is not None:
        result["outside_loop"] = {
            **_work(total(estimate.outside.values()), is_tpu),
            "copies": _work(copies_outside(estimate), is_tpu),
        }
    return result


def fits(compiled: Compiled) -> bool:
    """Whether arguments, outputs and temporaries fit the memory of each device."""
    if compiled.estimate is None:
        return False
    return compiled.estimate.memory.total <= compiled.request.target.chip.memory_bytes


def table(compiled: Compiled) -> str:
    """The figures for people."""
    return "\n".join(_lines(compiled))


def _lines(compiled: Compiled) -> Iterator[str]:
    request, estimate = compiled.request, compiled.estimate
    chip = request.target.chip
    weights = "" if request.weights is None else f"weights in {request.weights}, "
    yield (
        f"{request.program} on {compiled.devices} x {chip.name}, {request.config.model_type}, "
        + (f"{request.method}, {request.dtype}, {weights}jax {jax.__version__}")
    )
    if request.has_mixed_products:
        yield "Products are Triton's, with the compiler's default tiles."
    if chip.gathers_on_sparse_core:
        yield "Gathers are on the TensorCore: jaxlib cannot print those of a SparseCore."
    yield f"{request.shape}"
    if request.arranged != request.shape:
        yield f"as {request.arranged}"
    if compiled.devices > 1:
        yield "mesh: " + ", ".join(f"{name} {size}" for name, size in request.mesh.items())
    yield CAVEAT
    yield ""
    yield "memory per device"
    yield _row("parameters", size_text(compiled.parameter_bytes))
    if compiled.optimizer_bytes:
        yield _row("optimizer", size_text(compiled.optimizer_bytes))
    if estimate is None:
        yield _row("needed in all", size_text(compiled.needed_bytes))
        yield _row("available", size_text(compiled.available_bytes))
        yield ""
        yield from _verdict(compiled)
        return
    memory = estimate.memory
    yield _row("arguments in all", size_text(memory.arguments))
    yield _row("new outputs", size_text(memory.outputs - memory.aliased))
    yield _row("temporaries", size_text(memory.temporaries))
    yield _row("needed in all", f"{size_text(memory.total)} of {size_text(chip.memory_bytes)}")
    yield ""
    if estimate.unreadable:
        yield "parts, collectives and time: jaxlib cannot print this program of libtpu's compiler"
        yield f"  {estimate.unreadable}"
        flops = estimate.flops / compiled.devices
        seconds = flops / chip.flops_per_second
        yield _row("products", f"{_seconds(seconds)}  {_flops(flops)} per device at the peak rate")
    else:
        yield from _parts(compiled)
        yield from _time(compiled)
    yield ""
    yield from _verdict(compiled)


def _parts(compiled: Compiled) -> Iterator[str]:
    estimate = compiled.estimate
    assert estimate is not None
    is_tpu = compiled.request.target.chip.platform == "tpu"
    work = estimate.work
    heading = "one decode step, by part" if estimate.outside is not None else "by part"
    columns = f"{'kernels':>10}" + (f"{'cycles':>14}{'':>7}" if is_tpu else "") + f"{'bytes':>12}"
    yield f"{heading:<28}{columns}"
    for name, one in [*estimate.parts.items(), ("in all", work)]:
        yield f"  {name:<26}{_columns(one, work, is_tpu)}"
    if estimate.outside is not None:
        yield "once, around the loop"
        copies = copies_outside(estimate)
        for name, one in (("in all", total(estimate.outside.values())), ("copies", copies)):
            yield f"  {name:<26}{_columns(one, work, is_tpu)}"
    if estimate.collectives:
        yield "collectives per device"
        for name, one in estimate.collectives.items():
            yield f"  {name:<26}{_columns(one, work, is_tpu)}"
    elif compiled.devices > 1:
        yield "collectives per device: none"
    shown = list(estimate.kinds.items())[:6]
    yield "kernels: " + ", ".join(f"{count:,} {kind}" for kind, count in shown)
    yield ""


def _columns(one: Work, of: Work, is_tpu: bool) -> str:
    cycles = ""
    if is_tpu:
        cycles = f"{one.cycles:>14,}{one.cycles / max(of.cycles, 1):>7.1%}"
    return f"{one.kernels:>10,}{cycles}{size_text(one.bytes):>12}"


def _time(compiled: Compiled) -> Iterator[str]:
    estimate, chip = compiled.estimate, compiled.request.target.chip
    assert estimate is not None
    times = timing(estimate, chip, compiled.devices)
    yield "time per device, estimated"
    rate = f"{chip.flops_per_second / 1e12:,.0f} TFLOP/s"
    flops = estimate.flops / compiled.devices
    yield _row("products", f"{_seconds(times.products)}  {_flops(flops)} at {rate}")
    bandwidth = f"{chip.bytes_per_second / 1e9:,.0f} GB/s"
    moved = f"{size_text(estimate.work.bytes)} at {bandwidth}, each kernel's arrays once"
    yield _row("memory", f"{_seconds(times.memory)}  {moved}")
    if times.kernels is not None:
        count = f"{estimate.work.kernels:,} at {SECONDS_PER_KERNEL * 1e6:.1f} us each, assumed"
        yield _row("kernels", f"{_seconds(times.kernels)}  {count}")
    if times.cycles is not None and chip.clock_hertz is not None:
        clock = f"{estimate.work.cycles:,} at {chip.clock_hertz / 1e9:.2f} GHz"
        yield _row("cycles", f"{_seconds(times.cycles)}  {clock}; pessimistic for memory")
    if times.collectives:
        link = f"at {chip.link_bytes_per_second / 1e9:,.0f} GB/s of one link, not overlapped"
        yield _row("collectives", f"{_seconds(times.collectives)}  {link}")
    share = f"{times.share_of_peak:.1%} of the peak rate of products"
    yield _row("estimate", f"{_seconds(times.seconds)}  {share}")


def _verdict(compiled: Compiled) -> Iterator[str]:
    chip, request = compiled.request.target.chip, compiled.request
    if not fits(compiled):
        yield "does not fit:"
        for remedy in remedies(compiled):
            yield f"  - {remedy}"
        return
    yield "fits"
    assert compiled.estimate is not None
    share = compiled.estimate.memory.total / chip.memory_bytes
    if chip.platform == "gpu" and share > JAX_GPU_FRACTION:
        fraction = f"XLA_PYTHON_CLIENT_MEM_FRACTION={min(share + 0.03, 0.99):.2f}"
        yield (
            f"JAX allocates {JAX_GPU_FRACTION:.0%} of a GPU's memory by default, and "
            f"{request.program} needs {share:.0%}: set {fraction}"
        )


def remedies(compiled: Compiled) -> list[str]:
    """What to change so that a program fits, the most useful first."""
    request, chip = compiled.request, compiled.request.target.chip
    result = _of_training(compiled) if request.program == "train" else _of_one_pass(compiled)
    if compiled.devices == 1:
        more = "h100:8" if chip.platform == "gpu" else f"{request.target.kind}:{_larger(request)}"
        axis = "--tensor=-1" if request.program not in TRAINING else "--fsdp=-1 --data=1"
        result.append(f"a mesh that splits parameters: --target={more} {axis}")
    return result


def _of_training(compiled: Compiled) -> list[str]:
    request = compiled.request
    tensor = max(request.mesh.get("tensor", 1), 1)
    fsdp = request.mesh.get("fsdp", 1)
    data = request.mesh.get("data", -1)
    # One of data and fsdp may take the remaining devices.
    shares = compiled.devices // tensor
    config = copy.deepcopy(request.training)
    with config.unlocked():
        config.method, config.model.dtype = request.method, request.dtype
        config.data.batch_size = request.shape.documents
    return memory.remedies(
        config,
        devices=compiled.devices,
        mesh={
            "data": shares // fsdp if data == -1 else data,
            "fsdp": shares if fsdp == -1 else fsdp,
        },
        parameter_bytes=compiled.parameter_bytes,
        optimizer_bytes=compiled.optimizer_bytes,
        memory_bytes=request.target.chip.memory_bytes,
    )


def _of_one_pass(compiled: Compiled) -> list[str]:
    """Of inference and evaluation."""
    request = compiled.request
    result = []
    documents = request.shape.documents
    most = memory.STATE_SHARE * request.target.chip.memory_bytes
    if documents > 1 and compiled.parameter_bytes < most:
        result.append(f"half the documents: --documents={documents // 2}")
    if request.method == "pie":
        result.append("--method=pid, which encodes each document once for all of its prompts")
    if request.dtype == "float32":
        result.append("--dtype=bfloat16")
    if request.program not in TRAINING and request.weights is None:
        result.append(
            "--weights=int8: kernels and token embeddings in 8 bits, which changes answers slightly"
        )
    if compiled.devices > 1 and request.mesh.get("data", -1) != 1:
        result.append("parameters split over all devices: --data=1 --fsdp=-1")
    return result


def _larger(request: Any) -> str:
    return "2x2x2" if request.target.kind in ("v4", "v5p") else "2x4"


def _work(one: Work, is_tpu: bool) -> dict[str, Any]:
    cycles = {"estimated_cycles": one.cycles} if is_tpu else {}
    return {"kernels": one.kernels, **cycles, "bytes": one.bytes}


def _row(name: str, value: str) -> str:
    return f"  {name:<20}{value}"


def _flops(count: float) -> str:
    return f"{count / 1e12:,.2f} TFLOP" if count >= 1e11 else f"{count / 1e9:,.2f} GFLOP"


def _seconds(value: float) -> str:
    return f"{value * 1e3:9,.3f} ms"
