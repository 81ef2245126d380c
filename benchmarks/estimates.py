"""Figures of compiled programs, extrapolated to deeper models, and the time that they amount to.

Figures are those of `pid_jax.compile_ahead`: estimates of compilers. All layers of a model have
the same shapes, so that every figure is linear in the number of layers. Two shallow programs
compile in a fraction of the time of a whole one and determine the line.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pid_jax.chips import SECONDS_PER_KERNEL, Chip
from pid_jax.compile_ahead.timing import Timing

Figures = Mapping[str, float | None]
"""Of one program or one decode step, by the names in `FIGURES`. None where the compiler refused the
program, which has FLOPs and needed bytes only."""

FIGURES = (
    "flops",
    "cycles",
    "kernels",
    "bytes",
    "collective_bytes",
    "outside_cycles",
    "outside_kernels",
    "outside_bytes",
    "temporary_bytes",
    "needed_bytes",
)
"""FLOPs are those of all devices, all others those of one. "outside" is what runs once around the
loop of decode steps. The cycles of a GPU are 0."""


def figures(entry: Mapping[str, Any]) -> Figures:
    """The figures in the JSON of `compile_ahead.report.to_json`."""
    outside = entry.get("outside_loop") or {}
    readable = entry.get("seconds") is not None
    collectives = entry.get("collectives", {}).values()
    read: dict[str, float | None] = {
        "cycles": entry.get("estimated_cycles") or 0,
        "kernels": entry.get("kernels"),
        "bytes": entry.get("bytes"),
        "collective_bytes": sum(one["bytes"] for one in collectives),
        "outside_cycles": outside.get("estimated_cycles", 0),
        "outside_kernels": outside.get("kernels", 0),
        "outside_bytes": outside.get("bytes", 0),
    }
    if not readable:
        read = dict.fromkeys(read)
    return {
        "flops": entry["flops"],
        **read,
        "temporary_bytes": entry.get("temporary_bytes"),
        "needed_bytes": entry["needed_bytes"] or None,
    }


def at_depth(points: Mapping[int, Figures], layers: int) -> dict[str, float | None]:
    """The figures of a model with a number of layers in each stack.

    points: figures by the number of layers, at least two. The line passes through the smallest and
    the largest. A figure that either lacks is None.
    """
    low, high = min(points), max(points)
    if low == high:
        raise ValueError(f"a line needs two depths, not only {low}")

    def on_line(name: str) -> float | None:
        first, last = points[low][name], points[high][name]
        if first is None or last is None:
            return None
        return first + (last - first) * (layers - low) / (high - low)

    return {name: on_line(name) for name in FIGURES}


def seconds(one: Figures, chip: Chip, devices: int) -> float | None:
    """The estimate of one run of a program or of one decode step, by `compile_ahead.timing`."""
    return _seconds(one, chip, devices, "", one["flops"])


def seconds_outside(one: Figures, chip: Chip, devices: int) -> float | None:
    """The estimate of what runs once around the loop of decode steps."""
    return _seconds(one, chip, devices, "outside_", 0.0)


def _seconds(
    one: Figures, chip: Chip, devices: int, prefix: str, flops: float | None
) -> float | None:
    cycles, kernels, moved = (one[f"{prefix}{name}"] for name in ("cycles", "kernels", "bytes"))
    collectives = one["collective_bytes"] if not prefix else 0.0
    if flops is None or cycles is None or kernels is None or moved is None:
        return None
    return Timing(
        products=flops / devices / chip.flops_per_second,
        memory=moved / chip.bytes_per_second,
        collectives=(collectives or 0.0) / chip.link_bytes_per_second,
        cycles=cycles / chip.clock_hertz if chip.clock_hertz is not None else None,
        kernels=kernels * SECONDS_PER_KERNEL if chip.clock_hertz is None else None,
    ).seconds


def whole_call(
    prefill: Figures, step: Figures, new_tokens: int, chip: Chip, devices: int = 1
) -> dict[str, float | None]:
    """Seconds, FLOPs and bytes of a call that generates `new_tokens` tokens for each prompt.

    The prefill selects the first token, and `new_tokens - 1` decode steps the others. Bytes are
    those of the program that needs most.
    """
    steps = new_tokens - 1
    first, each = seconds(prefill, chip, devices), seconds(step, chip, devices)
    outside = seconds_outside(step, chip, devices)
    return {
        "seconds": _sum(first, None if each is None else steps * each, outside),
        "flops": _sum(prefill["flops"], *[step["flops"]] * steps),
        "temporary_bytes": _most(prefill, step, "temporary_bytes"),
        "needed_bytes": _most(prefill, step, "needed_bytes"),
    }


def whole_step(step: Figures, chip: Chip, devices: int = 1) -> dict[str, float | None]:
    """Seconds, FLOPs and bytes of a training step."""
    return {
        "seconds": seconds(step, chip, devices),
        **{name: step[name] for name in ("flops", "temporary_bytes", "needed_bytes")},
    }


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _most(one: Figures, other: Figures, name: str) -> float | None:
    known = [value for value in (one[name], other[name]) if value is not None]
    return max(known) if len(known) == 2 else None


def deviation(extrapolated: Figures, compiled: Figures) -> dict[str, float]:
    """Relative differences of extrapolated figures from those of a whole compiled model."""
    names = ("seconds", "flops", "temporary_bytes", "needed_bytes")
    pairs = ((name, extrapolated[name], compiled[name]) for name in names)
    return {
        name: round(mine / whole - 1, 4)
        for name, mine, whole in pairs
        if mine is not None and whole
    }


HEADING = (
    "| model | target | prompts | PiD | PiE | PiE / PiD | TFLOP, PiD | PiE "
    "| temporaries, PiD | PiE |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table. rows: see `pid_against_pie.rows`."""
    return "\n".join([HEADING, *_lines(rows)])


def _lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        pid, pie, memory = row["pid"], row["pie"], row["memory_bytes"]
        cells = [
            row["model"],
            row["target"],
            str(row["prompts"]),
            _time(pid),
            _time(pie),
            "–" if row["ratio"] is None else f"{row['ratio']:.1f}×",
            _tera(pid),
            _tera(pie),
            _memory(pid, memory),
            _memory(pie, memory),
        ]
        yield "| " + " | ".join(cells) + " |"


def _time(one: Figures | None) -> str:
    value = None if one is None else one["seconds"]
    return "–" if value is None else f"{value * 1e3:,.1f} ms"


def _tera(one: Figures | None) -> str:
    value = None if one is None else one["flops"]
    return "–" if value is None else f"{value / 1e12:,.2f}"


def _memory(one: Figures | None, available: int) -> str:
    """Temporary bytes, or what a program needs that does not fit."""
    if one is None:
        return "–"
    needed, temporary = one["needed_bytes"], one["temporary_bytes"]
    if needed is not None and needed > available:
        return f"does not fit, needs {needed / 2**30:,.0f} GiB"
    if temporary is None:
        return "does not fit" if needed is None else "–"
    return f"{temporary / 2**30:,.2f} GiB"
