"""Text tables of the measurements."""

from collections.abc import Mapping
from typing import Any

from benchmarks.engines import ENGINES, REFERENCE


def table(entry: Mapping[str, Any]) -> str:
    """One workload: a line per engine, then limits, agreement and unavailable engines."""
    sizes = entry["workload"]
    lines = [
        f"{entry['name']}: {sizes['model']}, {sizes['documents']} × {sizes['document_tokens']} "
        f"tokens, {sizes['prompts']} prompts of {sizes['prompt_tokens']}, "
        f"{sizes['new_tokens']} new tokens",
        f"  {'engine':<39}{'seconds':>10}{'min – max':>18}{'ratio':>8}{'of limit':>10}  runs",
    ]
    for key, measured in entry["engines"].items():
        ratio, fraction = measured["ratio"], measured["fraction_of_limit"]
        lines.append(
            f"  {ENGINES[key].label:<39}{measured['median']:>10.3f}"
            f"{measured['min']:>9.3f} – {measured['max']:<6.3f}"
            f"{'–' if ratio is None else f'{ratio:.2f}':>8}"
            f"{'–' if fraction is None else f'{fraction:.0%}':>10}"
            f"  {len(measured['seconds'])}, {measured['variant']}"
        )
    for method, name in (("pid", "PiD"), ("pie", "PiE")):
        limit = entry["limits"][method]
        parts = ", ".join(f"{phase} {limit[phase]:.3f}" for phase in limit if phase != "total")
        lines.append(f"  limit of {name:<30}{limit['total']:>10.3f}  ({parts})")
    for agreement in entry["agreement"]:
        lines.append(f"  {_agreement(agreement)}")
    for key, reason in entry["left_out"].items():
        lines.append(f"  left out: {ENGINES[key].label}: {reason}")
    return "\n".join(lines)


def _agreement(agreement: Mapping[str, Any]) -> str:
    pair = " and ".join(ENGINES[key].label for key in agreement["engines"])
    line = f"{pair}: {agreement['equal_tokens']:.1%} of tokens equal"
    if not agreement["divergences"]:
        return line
    document, prompt, step = agreement["divergences"][0]
    answers = len(agreement["divergences"])
    line += (
        f"; {answers} answers diverge, the first (document {document}, prompt {prompt}) at {step}"
    )
    if agreement["gaps"]:
        nearest = ", ".join(f"{gap:.1e}" for gap in agreement["gaps"])
        verdict = "near ties" if agreement["agree"] else "NOT NEAR TIES"
        line += f"; log-probability gaps {nearest}: {verdict}"
    return line


def growth_table(growth: Mapping[str, Any]) -> str:
    """Seconds per document against the number of prompts."""
    lines = [
        f"growth: {growth['workload']} with P prompts, seconds per document",
        f"  {'P':>4}{'PiD':>10}{'limit':>10}{'PiE':>10}{'limit':>10}{'PiE / PiD':>12}",
    ]
    for point in growth["points"]:
        pid, pie = point["pid"]["median"], point["pie"]["median"]
        lines.append(
            f"  {point['prompts']:>4}{pid:>10.3f}{point['limits']['pid']:>10.3f}"
            f"{pie:>10.3f}{point['limits']['pie']:>10.3f}{pie / pid:>12.1f}"
        )
    return "\n".join(lines)


def machine_lines(machine: Mapping[str, Any], rates: Mapping[str, Any]) -> str:
    """The machine, the versions and the measured rates."""
    versions = ", ".join(
        f"{name} {version}" for name, version in machine["packages"].items() if version
    )
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
        + ("" if machine["backend"] == "cpu" else f"; {machine['device']}"),
        f"Python {machine['python']}, {versions}",
    ]
    for name, value in rates["flops_per_second"].items():
        lines.append(f"  {name:<40}{value / 1e9:>12,.0f} GFLOP/s")
    for name, value in rates["bytes_per_second"].items():
        lines.append(f"  {name:<40}{value / 1e9:>12,.1f} GB/s")
    return "\n".join(lines)


def ratios(engines: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Each median divided by the reference's, or None if the reference was not timed."""
    if REFERENCE not in engines:
        return dict.fromkeys(engines)
    base = engines[REFERENCE]["median"]
    return {key: measured["median"] / base for key, measured in engines.items()}
