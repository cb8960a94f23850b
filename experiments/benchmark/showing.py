"""The benchmark's table and figure, from its measurements."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from jcredit.files import write_bytes
from jcredit.report.tables import MISSING

# What is aimed at with six seeds: torch ratios, and costs against BP.
TORCH_AIMS = {"bp": 2.5, "dfa": 3.5, "scalar_bridge": 4.0, "vector_field M=4 central": 6.0}
COST_AIMS = {
    "dfa": 1.0, "broadcast": 1.0, "scalar_bridge": 2.4, "vector_field M=4 central": 1.8, "vector_field M=4 jvp": 1.8,
    "tangent_chain": 1.2, "tangent_chain, following, 8 samples": 1.2, "tangent_sweeps K=2": 1.4,
    "kolen_pollack": 1.2, "kolen_pollack K=2": 1.4,
}  # fmt: skip


def table(measured: dict[str, dict[str, Any]], preset: str) -> str:
    """The table of a run, from its measurements."""
    peak = statistics.median(measured["matmul peak"]["rates"])
    kind = measured["matmul peak"].get("device", "")
    where = "" if kind.startswith("cpu") or not kind else f", on {kind}"
    parts = [
        f"# Benchmark ({preset}){where}",
        f"float32 matmul peak in this run: {peak / 1e9:.0f} GFLOP/s, all devices",
    ]
    if later := [name for name, m in measured.items() if m.get("run")]:
        parts.append(f"Measured in a later run: {', '.join(later)}. Rates of two runs are not compared.")
    for seeds in sorted({int(n.split(" | ")[1]) for n in measured if n.split(" | ")[-1].isdigit() and ", L" not in n}):
        bp = statistics.median(measured[f"bp | {seeds}"]["rates"])
        head = ["method", "compile s", "seed-steps/s", "spread", "MFLOP/step", "of peak", "cost / BP", "peak MiB"]
        head += ["torch", "ratio"] if f"torch bp | {seeds}" in measured else []
        lines = []
        for name, m in measured.items():
            if not name.endswith(f" | {seeds}") or name.startswith("torch ") or ", L" in name:
                continue
            rate, peer = statistics.median(m["rates"]), measured.get(f"torch {name}")
            share = f"{rate * m['flops'] / peak:.0%}" if alike(measured, name, "matmul peak") else MISSING
            cost = f"{bp / rate:.2f}" if alike(measured, name, f"bp | {seeds}") else MISSING
            line = [
                name.split(" | ")[0], f"{m['compile_s']:.1f}", f"{rate:.1f}",
                f"{min(m['rates']):.1f}..{max(m['rates']):.1f}", f"{m['flops'] / 1e6:.0f}",
                share, cost, f"{m['peak_bytes'] / 2**20:.0f}",
            ]  # fmt: skip
            if peer:
                other = statistics.median(peer["rates"])
                line += [f"{other:.1f}", f"{rate / other:.2f}" if alike(measured, name, f"torch {name}") else MISSING]
            lines.append(line + [MISSING] * (len(head) - len(line)))
        parts += [f"## {seeds} seed{'s' * (seeds > 1)}", _markdown(head, lines)]
    if "bp | 1 on one core" in measured and "bp | 6" in measured:
        parts += ["## Six seeds: what is aimed at", bars(measured, peak)]
    if profiles := {name.removeprefix("profile of "): m for name, m in measured.items() if name.startswith("profile")}:
        parts += ["## Milliseconds of a step, one seed on one core", profile_table(profiles)]
    return "\n\n".join(parts) + "\n"


def alike(measured: dict[str, dict[str, Any]], *names: str) -> bool:
    """Whether these measurements are of one run, so that their rates may be compared."""
    return len({measured[name].get("run", 0) for name in names}) == 1


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def bars(measured: dict[str, dict[str, Any]], peak: float) -> str:
    """The bars this project set itself, against this run."""
    rate = {name: statistics.median(m["rates"]) for name, m in measured.items() if "rates" in m}
    bp, mine = rate["bp | 6"], measured["bp | 6"]
    at_most, at_least = (lambda x, aim: x <= aim), (lambda x, aim: x >= aim)
    shallow, deep = (measured[f"bp, L = {depth}, D = 64 | 1"]["compile_s"] for depth in (2, 48))
    memory = max(m["peak_bytes"] for name, m in measured.items() if name.endswith(" | 6") and "torch" not in name)
    needs = lambda line, aim: aim * rate[f"torch {line} | 6"] * measured[f"{line} | 6"]["flops"] / peak  # noqa: E731
    found = [
        (
            f"{line} against eager PyTorch (the aim takes {needs(line, aim):.0%} of the matmul peak)",
            rate[f"{line} | 6"] / rate[f"torch {line} | 6"], at_least, aim,
        )
        for line, aim in TORCH_AIMS.items()
        if f"torch {line} | 6" in rate and alike(measured, f"{line} | 6", f"torch {line} | 6", "matmul peak")
    ]  # fmt: skip
    if alike(measured, "bp | 6", "matmul peak"):
        found.append(("BP, fraction of the matmul peak", bp * mine["flops"] / peak, at_least, 0.6))
    found += [
        (f"cost of {line} against BP", cost, at_most, aim)
        for line, aim in COST_AIMS.items()
        if (cost := _cost(line, measured, rate)) is not None
    ]
    if alike(measured, "bp | 6", "bp | 1 on one core"):
        found.append(("six seeds on all cores against one on one core", bp / rate["bp | 1 on one core"], at_least, 1.7))
    if alike(measured, *(f"bp, L = {depth}, D = 64 | 1" for depth in (2, 48))):
        found.append(("compile time at L = 48 against L = 2 (D = 64)", deep / shallow, at_most, 1.3))
    found += [
        ("peak memory of six seeds, the largest line, GiB", memory / 2**30, at_most, 2.5),
    ]
    lines = [
        [what, f"{'>=' if test is at_least else '<='} {aim:g}", f"{value:.2f}", "yes" if test(value, aim) else "no"]
        for what, value, test, aim in found
    ]
    return _markdown(["six seeds", "aim", "measured", "met"], lines)


def _cost(line: str, measured: dict[str, dict[str, Any]], rate: dict[str, float]) -> float | None:
    """A line's cost against BP with six seeds: measured in turn with BP, or from the rates of a run without that."""
    if (pair := measured.get(f"{line} beside bp | 6 in turn")) is not None:
        return statistics.median(pair["costs"])
    known = f"{line} | 6" in rate and alike(measured, f"{line} | 6", "bp | 6")
    return rate["bp | 6"] / rate[f"{line} | 6"] if known else None


def profile_table(profiles: dict[str, dict[str, Any]]) -> str:
    """Where the time of a step goes: matrix products + everything else, for each part."""
    part_names = [*next(iter(profiles.values()))["parts"], "all"]
    lines = []
    for name, m in profiles.items():
        both = [*m["parts"].values(), [sum(kind) for kind in zip(*m["parts"].values(), strict=True)]]
        cells = [f"{products * 1e3:.1f} + {rest * 1e3:.1f}" for products, rest in both]
        lines.append([name, *cells, f"{1e3 / m['rate']:.1f}"])
    return _markdown(["products + the rest", *part_names, "untraced"], lines)


def figure(measured: dict[str, dict[str, Any]], path: Path) -> None:
    """Seed-steps per second of every line, jcredit and torch, that was measured in one run with back-propagation."""
    import io

    from matplotlib.figure import Figure

    counts = sorted({int(n.split(" | ")[1]) for n in measured if n.split(" | ")[-1].isdigit() and ", L" not in n})
    sheet = Figure(figsize=(2.6 + 2.6 * len(counts), 4.2), layout="constrained")
    axes = sheet.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    for axis, seeds in zip(axes, counts, strict=True):
        lines = [n for n in measured if n.endswith(f" | {seeds}") and ", L" not in n and not n.startswith("torch ")]
        names = [n for n in lines if alike(measured, n, f"bp | {seeds}")]
        for offset, prefix, color in ((0.2, "", "#0072B2"), (-0.2, "torch ", "#D55E00")):
            found = [
                (i, measured[prefix + n]["rates"]) for i, n in enumerate(reversed(names)) if prefix + n in measured
            ]
            if found:
                axis.barh(
                    [i + offset for i, _ in found], [statistics.median(r) for _, r in found], 0.38, color=color,
                    label=prefix.strip() or "jcredit",
                )  # fmt: skip
        axis.set_yticks(range(len(names)), [n.split(" | ")[0] for n in reversed(names)])
        axis.set_xlabel("seed-steps per second")
        axis.set_title(f"{seeds} seed{'s' * (seeds > 1)}")
    sheet.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    buffer = io.BytesIO()
    sheet.savefig(buffer, format="png", dpi=130)
    write_bytes(path, buffer.getvalue())
