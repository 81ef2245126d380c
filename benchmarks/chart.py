"""Charts of the measurements. Needs matplotlib, imported on the first use."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engines import ENGINES

PID, PIE, INK = "#1b6ca8", "#9aa3ab", "#30363c"


def draw_engines(entries: Sequence[Mapping[str, Any]], caption: str, path: Path) -> None:
    """Draws a panel per workload, with a bar per engine and a tick at the limit of its method."""
    from matplotlib.figure import Figure

    columns = min(3, len(entries))
    rows = -(-len(entries) // columns)
    figure = Figure(figsize=(5.2 * columns, 0.6 + 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(entries) :]:
        panel.set_axis_off()
    for panel, entry in zip(panels, entries, strict=False):
        keys = sorted(entry["engines"], key=lambda key: -entry["engines"][key]["median"])
        medians = [entry["engines"][key]["median"] for key in keys]
        methods = [ENGINES[key].method for key in keys]
        colours = [PID if method == "pid" else PIE for method in methods]
        panel.barh(range(len(keys)), medians, color=colours, height=0.7)
        for row, (key, median) in enumerate(zip(keys, medians, strict=True)):
            ratio = entry["engines"][key]["ratio"]
            text = f" {median:.3g} s" + ("" if ratio is None else f"  ({ratio:.3g}×)")
            panel.text(median, row, text, va="center", fontsize=8, color=INK)
            if entry["engines"][key]["fraction_of_limit"] is None:
                continue
            limit = entry["limits"][ENGINES[key].method]["total"]
            panel.plot([limit, limit], [row - 0.35, row + 0.35], color=INK, linewidth=1.2)
        panel.set_yticks(range(len(keys)), [ENGINES[key].label for key in keys], fontsize=8)
        panel.set_xlim(0, max(medians) * 1.3)
        sizes = entry["workload"]
        panel.set_title(
            f"{entry['name']}: {sizes['documents']} × {sizes['document_tokens']} tokens, "
            f"{sizes['prompts']} prompts, {sizes['new_tokens']} new ({sizes['model']})",
            fontsize=9,
            loc="left",
        )
        _plain(panel)
        panel.set_xlabel("seconds", fontsize=8)
    figure.suptitle(f"{caption}. Black ticks: the limit of the method here", fontsize=9)
    figure.savefig(path, dpi=150)


def draw_growth(growth: Mapping[str, Any], caption: str, path: Path) -> None:
    """Draws seconds per document against the number of prompts, for both methods and limits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    panel = figure.subplots()
    prompts = [point["prompts"] for point in growth["points"]]
    for method, label, colour in (
        ("pie", "prompt in encoder", INK),
        ("pid", "prompt in decoder", PID),
    ):
        medians = [point[method]["median"] for point in growth["points"]]
        limits = [point["limits"][method] for point in growth["points"]]
        panel.plot(prompts, medians, marker="o", markersize=4, color=colour)
        panel.plot(prompts, limits, linestyle=":", color=colour)
        panel.annotate(
            f"{label}\n{medians[-1]:.3g} s",
            (prompts[-1], medians[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour,
        )
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(prompts, [str(count) for count in prompts])
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("{x:g}")
    panel.set_xlim(prompts[0] * 0.9, prompts[-1] * 3)
    panel.set_xlabel("prompts per document", fontsize=9)
    panel.set_ylabel("seconds per document", fontsize=9)
    panel.set_title(
        f"{growth['workload']} with more prompts; dotted: the limit\n{caption}",
        fontsize=9,
        loc="left",
    )
    _plain(panel)
    panel.grid(axis="y", linewidth=0.4, color="#d8dde1")
    figure.savefig(path, dpi=150)


def _plain(panel: Any) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(which="both", labelsize=8)
